"""The Celery app: how messages travel and how tasks are taken. What a job is and does stands in the ledger."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from farm.errors import SettingsError
from farm.settings import Settings

APP = "farm"
TASK = "farm.generate"
SYSTEM_QUEUE = "farm.system"


def queue_of(model: str) -> str:
    """The queue of a model's workers."""
    return f"farm.{model}"


def make_app(settings: Settings) -> Celery:
    """A Celery app over the farm's broker; nothing is connected yet. Raises SettingsError when no server is named."""
    url = settings.broker.url or settings.redis.url
    if url is None:
        raise SettingsError(
            "FARM_REDIS__URL is not set and no local farm is running; set it, or start one with: farm up"
        )
    app = Celery(APP, broker=url.get_secret_value(), backend=url.get_secret_value(), set_as_current=False)
    app.conf.update(configuration(settings))
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, each for the reason that stands beside it."""
    slow_s = 5 * settings.redis.timeout_s
    return {
        # JSON only, whatever a message claims to be.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # A message is done when its task is; a worker takes as many as it has slots and no more.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Threads wait for the engine; they never compute.
        "worker_pool": "threads",
        "worker_concurrency": settings.engine.max_slots if settings.worker.role == "model" else 4,
        "task_queues": [_queue(name) for name in _queues(settings)],
        "task_default_queue": settings.broker.foreign_queues[0] if settings.broker.foreign_queues else SYSTEM_QUEUE,
        "broker_transport_options": {
            "visibility_timeout": settings.broker.visibility_timeout_s,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "priority_steps": [0],
            "socket_timeout": slow_s,
            "socket_connect_timeout": settings.redis.timeout_s,
            "socket_keepalive": True,
        },
        "redis_socket_timeout": slow_s,
        "redis_socket_connect_timeout": settings.redis.timeout_s,
        "result_backend_always_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Flower reads events. They carry ids and counts, never prompts: see workers.redaction.
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
    }


def _queues(settings: Settings) -> list[str]:
    own = queue_of(settings.model.name) if settings.worker.role == "model" else SYSTEM_QUEUE
    return [own, *settings.broker.foreign_queues]


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)
