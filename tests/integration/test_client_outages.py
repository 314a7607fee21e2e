"""The Python client while its server dies and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm import Farm, ServerUnreachable
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of one's own, to kill. It forgets nothing that it acknowledged."""
    server = EmbeddedServer(tmp_path / "server", appendfsync="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mortal_settings(mortal: EmbeddedServer) -> Settings:
    return quick(load_settings(redis={"url": mortal.url, "timeout_s": 0.5}))


def test_waiting_and_streaming_go_on_after_the_server_is_killed(
    mortal: EmbeddedServer, mortal_settings: Settings
) -> None:
    """A server that is killed and started again costs waiters a pause: no error, no gap, no repetition."""
    with Farm(mortal_settings) as farm, Farmhand(mortal_settings, tokens_per_beat=2), ThreadPoolExecutor() as pool:
        job = farm.submit("hello", max_tokens=500)
        seen = threading.Event()

        def stream() -> list[int]:
            tokens: list[int] = []
            for delta in job.stream():
                tokens += delta.token_ids
                seen.set()
            return tokens

        streaming, waiting = pool.submit(stream), pool.submit(job.result)
        mapping = pool.submit(
            lambda: [r.text for r in farm.map([f"p{n}" for n in range(200)], max_tokens=20, window=16)]
        )
        assert seen.wait(20)
        for _ in range(2):
            mortal.kill()
            mortal.start()
        assert waiting.result(timeout=60).text == text_of("hello", 500)
        assert streaming.result(timeout=60) == list(range(500))
        assert mapping.result(timeout=60) == [text_of(f"p{n}", 20) for n in range(200)]


def test_map_sends_again_what_the_server_forgot(mortal: EmbeddedServer, mortal_settings: Settings) -> None:
    """Jobs that a server lost with its memory are submitted again by the map that waits for them."""
    with Farm(mortal_settings) as farm, ThreadPoolExecutor() as pool:
        mapping = pool.submit(lambda: [r.text for r in farm.map([f"p{n}" for n in range(50)], max_tokens=3)])
        wait_until(lambda: farm.ledger.client.dbsize() >= 50, why="the jobs")
        farm.ledger.client.flushall()
        with Farmhand(mortal_settings):
            assert mapping.result(timeout=60) == [text_of(f"p{n}", 3) for n in range(50)]


def test_a_long_outage_ends_waiting(mortal: EmbeddedServer, mortal_settings: Settings) -> None:
    """A server that stays away for client.outage_s is reported to those who wait; the job can be taken up later."""
    short = mortal_settings.client.model_copy(update={"outage_s": 0.3})
    with Farm(mortal_settings.model_copy(update={"client": short})) as farm, ThreadPoolExecutor() as pool:
        job = farm.submit("hello", max_tokens=3)
        waiting = pool.submit(job.result)
        streaming = pool.submit(lambda: list(job.stream()))
        wait_until(lambda: len(farm.reader.watched) == 1, why="both to wait")
        mortal.kill()
        for one in (waiting, streaming):
            with pytest.raises(ServerUnreachable):
                one.result(timeout=30)
        mortal.start()
        with Farmhand(mortal_settings):
            assert job.result(timeout=30).text == text_of("hello", 3)
