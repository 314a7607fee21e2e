"""What workers mend in kombu: messages and clients of connections that are gone."""

from __future__ import annotations

import pytest
from kombu import Connection

from farm.local.server import EmbeddedServer
from workers import kombu_mend


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
def test_message_of_a_connection_that_is_gone(server: EmbeddedServer, answer: str) -> None:
    """A message whose connection was closed can still be answered; the worker lives, and the ledger sees to the job."""
    kombu_mend.mend()
    connection = Connection(server.url)
    queue = connection.SimpleQueue("mend")
    queue.put({})
    message = queue.get(timeout=10)
    connection.close()
    assert message.channel.connection is None
    message.channel._disconnect_pools()  # Celery's next connection finds it without a pool
    getattr(message, answer)()
    assert message.acknowledged


def test_a_channel_keeps_its_client_while_its_connections_last(server: EmbeddedServer) -> None:
    """Commands share a client; when the connections were dropped the next command gets another one."""
    kombu_mend.mend()
    with Connection(server.url) as connection:
        channel = connection.channel()
        first = channel._create_client()
        assert channel._create_client() is first
        assert channel._create_client(asynchronous=True) is not first
        channel._disconnect_pools()
        second = channel._create_client()
        assert second is not first
        assert second.ping()
