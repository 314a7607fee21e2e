"""Reaching the server: what is tried again, and what is not."""

from __future__ import annotations

import socket

import pytest

from farm.errors import ServerUnreachable
from farm.ledger.jobs import Jobs
from farm.settings import load_settings

pytestmark = pytest.mark.fast


def test_a_silent_server_is_asked_once() -> None:
    """A server that takes connections and says nothing costs one time limit, not one for each of several tries."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        jobs = Jobs(load_settings(redis={"url": f"redis://:secret@127.0.0.1:{port}/0", "timeout_s": 0.2, "retries": 3}))
        with pytest.raises(ServerUnreachable, match=f"127.0.0.1:{port} does not answer") as error:
            jobs.view("order-7")
        jobs.client.close()
        assert "secret" not in str(error.value)
        silent.settimeout(0.0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
