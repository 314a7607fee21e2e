"""One message of Celery's on its way through this worker: what becomes of one that is put back."""

from __future__ import annotations

from typing import Any

import structlog
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from farm.broker import waiting_queue
from workers.redaction import QuietRequest

log = structlog.get_logger(__name__)


class MovingRequest(QuietRequest):
    """A task request whose message, put back, is in no job's way.

    The ledger had no room for it. In a foreign queue it waits until this worker looks there again. A worker's own queue
    has the keeper's messages too and is looked at all the time, so there it would come back at once.
    """

    def reject(self, requeue: bool = False) -> None:
        """Done with the message; ``requeue``: for now."""
        if requeue and not self.acknowledged and self._moved():
            self.acknowledge()
            self.send_event("task-rejected", requeue=True)
        else:
            super().reject(requeue=requeue)

    def _moved(self) -> bool:
        """Whether the message is in the queue beside the one it came by, if there is one."""
        app: Any = self.app
        aside = waiting_queue(str(self.delivery_info.get("routing_key")))
        if aside not in app.amqp.queues:
            return False
        # As it came, and first: a worker that dies in between leaves two, and the ledger takes one id once.
        message: Any = self.message
        headers = {name: value for name, value in message.headers.items() if name != "compression"}  # it is undone
        kept = {name: message.properties[name] for name in ("correlation_id", "reply_to") if name in message.properties}
        try:
            with app.producer_pool.acquire(block=True) as producer:
                producer.publish(
                    message.body,
                    routing_key=aside,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=headers,
                    **kept,
                )
        except (RedisError, KombuError, OSError) as error:
            log.warning("foreign_message_not_moved", queue=aside, error=type(error).__name__)
            return False
        return True
