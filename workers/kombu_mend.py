"""A mend for kombu 5.7: closing a connection that is already gone must not end the worker.

When Redis goes away under running tasks, Celery closes its old connection after kombu has collected it. The Redis
transport then tries to put unacknowledged messages back through a channel without a connection, and the AttributeError
is none of the errors after which Celery reconnects. There is nothing to put back: the ledger publishes them again.
"""

from __future__ import annotations

from typing import Any

from kombu.transport.redis import QoS

_restore_unacked_once = QoS.restore_unacked_once


def _restore_if_connected(qos: Any, stderr: Any = None) -> None:
    connection = qos.channel.connection
    if connection is None or connection.client is None:
        qos._on_collect.cancel()
        return
    _restore_unacked_once(qos, stderr)


def mend() -> None:
    """Install the mend for this process. Twice is once."""
    QoS.restore_unacked_once = _restore_if_connected  # type: ignore[method-assign, assignment]
