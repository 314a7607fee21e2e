"""Those who wait: how they share one reader of events, what they notice, and what is left when they go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from farm import (
    Farm,
    FarmError,
)
from farm.ledger import streams
from farm.ledger.jobs import Jobs
from farm.settings import Settings
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick, text_of


def readers(client: redis.Redis) -> int:
    """How many connections wait for events."""
    return sum(entry["cmd"].startswith("xread") for entry in client.client_list())


def test_a_thousand_waiters_share_one_reader(farm: Farm, settings: Settings, client: redis.Redis) -> None:
    """Waiting for 1,000 jobs takes one blocking connection and one thread, and reads each state once."""
    patient = settings.client.model_copy(update={"reread_s": 60.0})
    with Farm(quick(settings).model_copy(update={"client": patient})) as waiting:
        jobs = waiting.submit_many([f"p{n}" for n in range(1_000)], max_tokens=2)
        client.config_resetstat()
        threads = threading.active_count()
        with waiting.watching([job.id for job in jobs]) as inbox:
            wait_until(lambda: threading.active_count() == threads + 1, why="the first look to end")
            wait_until(lambda: readers(client) == 1, why="the reader to wait for events")
            stats = client.info("commandstats")
            assert stats["cmdstat_hget"]["calls"] <= 2_000  # by who waits, and by the reader as it starts
            with Farmhand(farm.settings):
                ended = {inbox.get(timeout=20)[0] for _ in jobs}
        assert ended == {job.id for job in jobs}
        stats = client.info("commandstats")
        assert stats["cmdstat_hgetall"]["calls"] == 1_000
        assert stats["cmdstat_xread"]["calls"] <= 1_000
        assert readers(client) == 1


def test_waiters_notice_what_the_events_did_not_say(farm: Farm, settings: Settings, client: redis.Redis) -> None:
    """Events that are trimmed before they are read cost a moment, not the result."""
    soon = settings.client.model_copy(update={"reread_s": 0.1})
    with Farm(quick(settings).model_copy(update={"client": soon})) as waiting, ThreadPoolExecutor() as pool:
        job = waiting.submit("hello", max_tokens=300)
        result = pool.submit(job.result)
        stream = pool.submit(lambda: list(job.stream()))
        with Farmhand(farm.settings, tokens_per_beat=3):
            while not (result.done() and stream.done()):
                client.xtrim("{farm}:events", maxlen=0, approximate=False)
        assert result.result().text == text_of("hello", 300)
        assert [token for delta in stream.result() for token in delta.token_ids] == list(range(300))


def test_waiters_notice_when_events_start_again(farm: Farm, settings: Settings, client: redis.Redis) -> None:
    """When the events' ids go back, as on a server restored from an older copy, waiters still hear of new ones."""
    client.xadd("{farm}:events", {"j": "someone 1 succeeded"}, id="99999999999999-0")
    soon = settings.client.model_copy(update={"reread_s": 0.1})
    with Farm(quick(settings).model_copy(update={"client": soon})) as waiting:
        job = waiting.submit("hello", max_tokens=3)
        with waiting.watching([job.id]) as inbox:
            wait_until(lambda: readers(client) == 1, why="the reader to wait for events")
            client.delete("{farm}:events")
            with Farmhand(farm.settings):
                assert inbox.get(timeout=20)[0] == job.id


def test_closing_ends_all_waiting(settings: Settings, jobs: Jobs, client: redis.Redis) -> None:
    """close wakes waiters with an error and leaves neither a thread nor a connection."""
    before = {entry["id"] for entry in client.client_list()}
    farm = Farm(settings)
    job = farm.submit("hello")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(job.result)
        wait_until(lambda: readers(client) == 1, why="the reader to wait for events")
        farm.close()
        with pytest.raises(FarmError, match="closed while waiting"):
            waiting.result(timeout=20)
    assert not [thread for thread in threading.enumerate() if thread.name == "farm-events"]
    wait_until(lambda: {e["id"] for e in client.client_list()} <= before, why="connections to close", timeout_s=5)
    with pytest.raises(FarmError, match="is closed"):
        job.result()


def test_the_reader_rests_when_nobody_waits(
    farm: Farm, settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A while after the last waiter its thread and connection are gone, and the next waiter gets new ones."""
    monkeypatch.setattr(streams, "LINGER_S", 0.05)
    soon = settings.client.model_copy(update={"reread_s": 0.05})
    with Farm(quick(settings).model_copy(update={"client": soon})) as waiting, Farmhand(farm.settings):
        for _ in range(2):
            assert waiting.generate("hello", max_tokens=2, timeout=20).text == text_of("hello", 2)
            wait_until(lambda: "farm-events" not in {t.name for t in threading.enumerate()}, why="the thread to end")
            wait_until(lambda: readers(client) == 0, why="its connection to close")


def test_a_reader_that_fails_tells_its_waiters(farm: Farm, client: redis.Redis) -> None:
    """When events can't be read at all, waiters get an error rather than wait for ever; the next ones fare better."""
    client.set("{farm}:events", "not a stream")
    job = farm.submit("hello", max_tokens=2)
    with pytest.raises(FarmError, match="waiting failed"):
        job.result(timeout=20)
    client.delete("{farm}:events")
    with Farmhand(farm.settings):
        assert job.result(timeout=20).text == text_of("hello", 2)


def test_an_abandoned_stream_is_forgotten(farm: Farm, hand: Farmhand) -> None:
    """A stream that is dropped half way is not read for any longer."""
    hand.tokens_per_beat = 1
    stream = farm.submit("hello", max_tokens=1_000).stream()
    next(stream)
    assert farm.reader.watched
    del stream
    assert not farm.reader.watched
