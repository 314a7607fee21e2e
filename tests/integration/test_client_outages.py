"""The Python client while its server dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm import AsyncFarm, Farm, JobNotFound, ServerUnreachable
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of

pytestmark = pytest.mark.alone


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


@contextlib.contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """A server that takes connections and answers nothing."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_timeout_holds_while_the_server_is_frozen(mortal: EmbeddedServer, mortal_settings: Settings) -> None:
    """result(timeout) raises TimeoutError in time, however long one answer of the server may take."""
    slow = mortal_settings.redis.model_copy(update={"timeout_s": 2.5})
    patient = mortal_settings.model_copy(update={"redis": slow})
    with Farm(patient) as farm:
        job = farm.submit("hello", max_tokens=3)
        with frozen(mortal):
            started = time.monotonic()
            with pytest.raises(TimeoutError, match=job.id):
                job.result(timeout=0.6)
            assert 0.6 <= time.monotonic() - started < 1.6
            assert asyncio.run(_waited(patient, job.id, 0.6)) < 1.6
        with Farmhand(mortal_settings):
            assert job.result(timeout=20).text == text_of("hello", 3)


async def _waited(settings: Settings, job_id: str, timeout: float) -> float:
    async with AsyncFarm(settings) as farm:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=job_id):
            await farm.job(job_id).result(timeout)
        return time.monotonic() - started


def test_a_wait_may_begin_while_the_server_is_away(mortal: EmbeddedServer, mortal_settings: Settings) -> None:
    """A client that knows its server bears an outage from the first moment of a wait; a strange one fails at once."""
    with Farm(mortal_settings) as farm, Farm(mortal_settings) as stranger, ThreadPoolExecutor() as pool:
        job = farm.submit("hello", max_tokens=3)
        mortal.kill()
        with pytest.raises(ServerUnreachable):
            stranger.job(job.id).result()
        with pytest.raises(ServerUnreachable):
            next(stranger.job(job.id).stream())
        with pytest.raises(TimeoutError, match="does not answer"):
            job.result(timeout=0.6)
        waiting = pool.submit(job.result)
        streaming = pool.submit(lambda: [token for delta in job.stream() for token in delta.token_ids])
        mapping = pool.submit(lambda: [r.text for r in farm.map(["a", "b"], max_tokens=2)])
        wait_until(lambda: len(farm.reader.watched.get(job.id, [])) == 2, why="both to wait")
        mortal.start()
        with Farmhand(mortal_settings):
            assert waiting.result(timeout=30).text == text_of("hello", 3)
            assert streaming.result(timeout=30) == [0, 1, 2]
            assert mapping.result(timeout=30) == [text_of("a", 2), text_of("b", 2)]


def test_a_server_that_comes_back_empty_is_told_apart_from_one_that_is_slow(
    mortal: EmbeddedServer, mortal_settings: Settings
) -> None:
    """Who waits for a job that the server lost with its data gets JobNotFound, not a wait without end."""
    with Farm(mortal_settings) as farm, Farmhand(mortal_settings, tokens_per_beat=1) as hand:
        with ThreadPoolExecutor() as pool:
            job = farm.submit("hello", max_tokens=1_500)
            stream = job.stream()
            next(stream)
            waiting, streaming = pool.submit(job.result), pool.submit(list, stream)
            wait_until(lambda: len(farm.reader.watched.get(job.id, [])) == 2, why="both to wait")
            mortal.kill()
            shutil.rmtree(mortal.folder / "appendonlydir")
            mortal.start()
            for one in (waiting, streaming):
                with pytest.raises(JobNotFound, match="unknown; check"):
                    one.result(timeout=30)
        assert hand.is_alive
        assert farm.generate("hello", max_tokens=3, timeout=20).text == text_of("hello", 3)


def test_a_server_that_goes_back_in_time_repeats_nothing(
    mortal: EmbeddedServer, mortal_settings: Settings, tmp_path: Path
) -> None:
    """A stream that is ahead of a server restored from an older file goes on when it is caught up with."""
    with Farm(mortal_settings) as farm, ThreadPoolExecutor() as pool:
        job = farm.submit("hello", max_tokens=300)
        hand = Farmhand(mortal_settings, tokens_per_beat=1).start()
        stream = job.stream()
        tokens = list(next(stream).token_ids)
        shutil.copytree(mortal.folder / "appendonlydir", tmp_path / "older")
        later = farm.submit("later", max_tokens=3)
        while len(tokens) < 60:
            tokens += next(stream).token_ids
        hand.die()
        waiting, orphaned = pool.submit(job.result), pool.submit(later.result)
        wait_until(lambda: {job.id, later.id} <= farm.reader.watched.keys() or orphaned.done(), why="both to wait")
        mortal.kill()
        shutil.rmtree(mortal.folder / "appendonlydir")
        shutil.copytree(tmp_path / "older", mortal.folder / "appendonlydir")
        mortal.start()
        assert len(job.status().token_ids) < 60
        with Farmhand(mortal_settings, name="another", tokens_per_beat=3):
            tokens += [token for delta in stream for token in delta.token_ids]
            assert waiting.result(timeout=30).text == text_of("hello", 300)
        assert tokens == list(range(300))
        with contextlib.suppress(JobNotFound):  # it may have ended before the server was killed
            orphaned.result(timeout=30)
