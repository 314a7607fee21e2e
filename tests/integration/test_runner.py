"""The runner beside a server and an engine that are slow, odd or away: beats, outcomes, retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from farm import keys
from farm.contracts import JobState, parse_request
from farm.ledger.attempts import ENTRIES_PER_CALL, Attempts, Claim
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.local.server import EmbeddedServer
from farm.settings import load_settings
from tests.conftest import wait_until
from workers import lives
from workers.aboard import Ending
from workers.engine.protocol import Add, Command, Emitted, Event, Failed, Finished, Ready, Report, Stats, Token
from workers.runner import Runner


class ToldEngine:
    """An engine process that says of a job what it is told to."""

    says: Callable[[str], list[Event]]
    silent_s = 0.0
    end = "was ended by SIGKILL"

    def __init__(
        self,
        _settings: object,
        on_report: Callable[[Report], None],
        on_lost: Callable[[ToldEngine, str], None],
    ) -> None:
        self._on_report = on_report
        self._on_lost = on_lost

    def start(self) -> Ready:
        return Ready(slots=4, context=9_000, kv_tokens=9_000, vocab=8, fingerprint="f", load_s=0.0, tokenizer="")

    def send(self, command: Command) -> None:
        if isinstance(command, Add) and (events := type(self).says(command.id)):
            tokens = sum(len(event.tokens) for event in events if isinstance(event, Emitted))
            self._on_report(Report(1, 0, 0, events, Stats(generated_tokens=tokens)))

    def halt(self, _timeout_s: float) -> bool:
        return True

    def kill(self) -> None:
        """Nothing to end."""

    def die(self) -> None:
        self._on_lost(self, "engine_died")


def emitted(nonce: str, tokens: int) -> Emitted:
    return Emitted(nonce, [Token(7, " seven")] * tokens)


@contextmanager
def running(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, says: Callable[[str], list[Event]]) -> Iterator[Runner]:
    """A runner whose engine says that of each job."""
    monkeypatch.setattr(ToldEngine, "says", staticmethod(says), raising=False)
    monkeypatch.setattr(lives, "EngineProcess", ToldEngine)
    runner = Runner(jobs.settings, Attempts(jobs, "w1.0"), "w1", lambda _: None)
    runner.start()
    try:
        yield runner
    finally:
        runner.drain()
        runner.stop()


def claimed(jobs: Jobs, **request: object) -> Claim:
    """A job that the runner's worker holds."""
    placed = jobs.place(parse_request({"prompt": "x", **request}))
    jobs.submit([placed])
    upkeep = Upkeep(jobs)
    upkeep.keep()
    [message] = upkeep.dispatch().messages
    claim = Attempts(jobs, "w1.0").claim(placed.id, message.number)
    assert isinstance(claim, Claim)
    return claim


def started(runner: Runner, claim: Claim) -> tuple[threading.Thread, list[Ending]]:
    """The thread that runs the job, and where it puts how that ended."""
    endings: list[Ending] = []
    thread = threading.Thread(target=lambda: endings.append(runner.run(claim)), daemon=True)
    thread.start()
    return thread, endings


def test_a_worker_whose_tokens_may_wait_long_is_live_all_the_time(
    jobs: Jobs, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long tokens may wait to be written, a worker with jobs aboard beats often enough to be sent more."""
    patient = load_settings(redis={"url": jobs.settings.redis.url}, lease={"flush_s": 5, "lease_s": 60})
    jobs = Jobs(patient)
    with running(jobs, monkeypatch, lambda _nonce: []) as runner:
        started(runner, claimed(jobs))
        beats: list[float] = []

        def is_new() -> bool:
            beat = client.zscore(keys.PREFIX + "workers", "w1.0")
            if beats[-1:] != [beat]:
                beats.append(float(beat))
            return len(beats) >= 5

        wait_until(is_new, why="beats")
        assert max(after - before for before, after in pairwise(beats)) < 1_500
    jobs.client.close()


def test_many_tokens_of_a_job_that_is_gone_hold_up_nobody(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was cancelled while more of its tokens wait than one call takes ends, and its slot is free."""

    def says(nonce: str) -> list[Event]:
        [job] = jobs.client.zrange(keys.PREFIX + "running", 0, -1)
        jobs.cancel([job])
        return [emitted(nonce, ENTRIES_PER_CALL + 1), Finished(nonce, "length")]

    with running(jobs, monkeypatch, says) as runner:
        thread, endings = started(runner, claimed(jobs, max_tokens=8_000))
        thread.join(10)
        assert [ending.found for ending in endings] == [JobState.CANCELLED]
        assert runner.lives.account.read().tokens["cancelled"] == ENTRIES_PER_CALL + 1


def test_a_retry_goes_on_from_the_last_token(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that come with an error worth another attempt are kept for that attempt, and none is wasted."""
    with running(jobs, monkeypatch, lambda nonce: [emitted(nonce, 3), Failed(nonce, "no_memory", "", True)]) as runner:
        claim = claimed(jobs)
        assert runner.run(claim).state is JobState.QUEUED
        view = jobs.view(claim.id)
        assert (len(view.token_ids), [past.tokens for past in view.history]) == (3, [3])
        tokens = runner.lives.account.read().tokens
        assert (tokens["generated"], tokens["lost"]) == (3, 0)


def test_tokens_outlive_an_engine_that_dies_while_the_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker had from the engine is written when the server is back, before the job is handed back."""
    server = EmbeddedServer(tmp_path / "server")
    server.start()
    jobs = Jobs(load_settings(redis={"url": server.url}))

    def says(nonce: str) -> list[Event]:
        if nonce == lives.TEST.id:
            return [Finished(nonce, "length")]
        server.kill()
        return [emitted(nonce, 3)]

    with running(jobs, monkeypatch, says) as runner:
        claim = claimed(jobs)
        thread, endings = started(runner, claim)
        wait_until(lambda: not runner.beat.is_answered, why="the worker to miss the server")
        engine = runner.lives.serving
        assert isinstance(engine, ToldEngine)
        death = threading.Thread(target=engine.die)
        death.start()
        thread.join(0.5)
        assert endings == [], "its tokens are nowhere else"
        server.start()
        for one in (death, thread):
            one.join(10)
        assert endings == [Ending(JobState.QUEUED, "engine_died")]
        assert len(jobs.view(claim.id).token_ids) == 3
        tokens = runner.lives.account.read().tokens
        assert (tokens["generated"], tokens["lost"]) == (3, 0)
    jobs.client.close()
    server.stop()
