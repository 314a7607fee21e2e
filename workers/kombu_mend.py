"""Two mends for kombu 5.7's Redis transport.

A message whose connection is gone must not end the worker.

When Redis goes away under running tasks, Celery closes its old connection and opens another one. What is still to be
acknowledged or put back belongs to a channel without a connection, and the AttributeError that this raises is none of
the errors after which Celery reconnects. There is nothing to do for such a message: the ledger publishes a job again
that needs it, and drops a delivery too many.

A channel must not make a new client for every command: making one takes longer than the command.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS

_create_client = Channel._create_client  # type: ignore[attr-defined]
_restore_unacked_once, _ack, _reject = QoS.restore_unacked_once, QoS.ack, QoS.reject


def _is_connected(qos: Any) -> bool:
    connection = qos.channel.connection
    return connection is not None and connection.client is not None


def _restore_if_connected(qos: Any, stderr: Any = None) -> None:
    if _is_connected(qos):
        _restore_unacked_once(qos, stderr)
    else:
        qos._on_collect.cancel()


def _ack_if_connected(qos: Any, delivery_tag: str) -> None:
    if _is_connected(qos):
        _ack(qos, delivery_tag)
    else:
        virtual.QoS.ack(qos, delivery_tag)


def _reject_if_connected(qos: Any, delivery_tag: str, requeue: bool = False) -> None:
    if _is_connected(qos):
        _reject(qos, delivery_tag, requeue)
    else:
        virtual.QoS.ack(qos, delivery_tag)


def _kept_client(channel: Any, asynchronous: bool = False) -> Any:
    """A channel's client; another one after its connections were dropped."""
    if asynchronous:
        return _create_client(channel, asynchronous=True)
    client = getattr(channel, "_farm_client", None)
    if client is None or client.connection_pool is not channel._pool:
        client = channel._farm_client = _create_client(channel)
    return client


def mend() -> None:
    """Install the mends for this process. Twice is once."""
    Channel._create_client = _kept_client  # type: ignore[attr-defined]
    QoS.restore_unacked_once = _restore_if_connected  # type: ignore[method-assign, assignment]
    QoS.ack = _ack_if_connected  # type: ignore[method-assign, assignment]
    QoS.reject = _reject_if_connected  # type: ignore[method-assign, assignment]
