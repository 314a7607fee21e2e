"""The Celery app: how messages travel and how tasks are taken. What a job is and does stands in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from celery import Celery
from kombu import Exchange, Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm import redis_url
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
    setting = "FARM_BROKER__URL" if settings.broker.url else redis_url.SETTING
    server = celery_server(url.get_secret_value(), settings.redis.timeout_s, setting)
    app = Celery(APP, broker=server.url, backend=server.url, set_as_current=False)
    app.conf.update(configuration(settings))
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **server.options}
    app.conf.result_backend_transport_options = server.options
    app.conf.broker_use_ssl = app.conf.redis_backend_use_ssl = server.tls
    return app


@dataclass(frozen=True)
class CeleryServer:
    """A server as Celery names it. ``options`` say what a URL can't; ``tls`` is None without TLS."""

    url: str
    options: dict[str, Any]
    tls: dict[str, str | bool] | None


def celery_server(url: str, timeout_s: float, setting: str = redis_url.SETTING) -> CeleryServer:
    """A server of ours in Celery's terms. Raises SettingsError, naming the setting, for a URL that makes no sense."""
    service = redis_url.sentinel_url(url, setting)
    tls = redis_url.tls_options(url, setting)
    parts = urlsplit(url)
    if service is not None:
        login = f"{quote(service.username or '', '')}:{quote(service.password or '', '')}@"
        urls = [
            f"sentinel://{login if service.password else ''}{f'[{host}]' if ':' in host else host}:{port}/{service.db}"
            for host, port in service.sentinels
        ]
        asking: dict[str, Any] = {
            "username": service.sentinel_username,
            "password": service.sentinel_password,
            # A silent Sentinel leaves time for the others.
            "socket_timeout": timeout_s / (len(urls) + 1),
            "socket_connect_timeout": timeout_s / (len(urls) + 1),
            "retry": Retry(NoBackoff(), 0),
            **({"ssl": True, **tls} if tls else {}),
        }
        return CeleryServer(";".join(urls), {"master_name": service.service, "sentinel_kwargs": asking}, tls)
    if parts.scheme == "unix":
        db = dict(parse_qsl(parts.query)).get("db", "0")
        return CeleryServer(f"redis+socket://{parts.netloc}{parts.path}?virtual_host={db}", {}, None)
    return CeleryServer(urlunsplit(parts._replace(query="")) if tls else url, {}, tls)


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, each for the reason that stands beside it."""
    timeout_s = settings.redis.timeout_s
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
        "task_queues": [_queue(name) for name in [own_queue(settings), *foreign_queues(settings)]],
        "task_default_queue": settings.broker.foreign_queues[0] if settings.broker.foreign_queues else SYSTEM_QUEUE,
        "broker_transport_options": {
            "visibility_timeout": settings.broker.visibility_timeout_s,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "priority_steps": [0],
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "socket_keepalive": True,
            # A consumer that hears nothing for so long connects again: its server may be the master no longer.
            "health_check_interval": max(1, round(timeout_s)),
        },
        "redis_socket_timeout": timeout_s,
        "redis_socket_connect_timeout": timeout_s,
        "result_backend_always_retry": True,
        # One for all threads: made anew in each it costs milliseconds, and a connection.
        "result_backend_thread_safe": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A server that refuses a command, being out of memory or disk, is waited for like one that is away.
        "broker_channel_error_retry": True,
        # Flower reads events. They carry ids and counts, never prompts: see workers.redaction.
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
    }


def own_queue(settings: Settings) -> str:
    """Where the keeper's messages for a worker of these settings are."""
    return queue_of(settings.model.name) if settings.worker.role == "model" else SYSTEM_QUEUE


def foreign_queues(settings: Settings) -> list[str]:
    """Where a worker finds messages of other senders alone: its own queue may be among those that are set."""
    return [name for name in settings.broker.foreign_queues if name != own_queue(settings)]


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)
