"""Errors that another attempt may cure: tried again after a drawn wait, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from farm import keys
from farm.contracts import JobState, parse_request
from farm.ledger.attempts import Attempts, Claim
from farm.ledger.jobs import Jobs
from farm.ledger.upkeep import Upkeep
from farm.settings import Settings, load_settings
from tests.integration.conftest import StartWorker, submit, wait_for_all
from workers import lives
from workers.engine.protocol import Add, Command, Failed, Finished, Ready, Report
from workers.runner import Runner

MAX_RETRIES = 3
BASE_S, CAP_S = 100.0, 250.0


class FailingEngine:
    """An engine process that fails every job with an error worth a retry, ``failures`` times; then it finishes it."""

    failures = 0
    silent_s = 0.0

    def __init__(self, _settings: object, on_report: Callable[[Report], None], _on_lost: object) -> None:
        self._on_report = on_report

    def start(self) -> Ready:
        return Ready(slots=4, context=64, kv_tokens=256, vocab=8, fingerprint="f", load_s=0.0, tokenizer="")

    def send(self, command: Command) -> None:
        if isinstance(command, Add):
            cls = type(self)
            cls.failures -= 1
            said = Failed(command.id, "no_memory", "no room", retryable=True)
            event = said if cls.failures >= 0 else Finished(command.id, "length")
            self._on_report(Report(steps=1, running=0, waiting=0, events=[event]))

    def halt(self, _timeout_s: float) -> bool:
        return True

    def kill(self) -> None:
        """Nothing to end."""


@pytest.fixture
def retrying(settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """A ledger whose jobs may be retried three times, with waits too long to pass by themselves."""
    monkeypatch.setattr(lives, "EngineProcess", FailingEngine)
    keeper = {"max_retries": MAX_RETRIES, "retry_base_s": BASE_S, "retry_cap_s": CAP_S}
    jobs = Jobs(load_settings(redis={"url": settings.redis.url}, keeper=keeper))
    yield jobs
    jobs.client.close()


def _attempt(jobs: Jobs, upkeep: Upkeep, attempts: Attempts, runner: Runner, job_id: str) -> JobState | None:
    """Let its wait pass, dispatch it, run it once."""
    if jobs.client.zscore(keys.PREFIX + "delayed", job_id) is not None:
        jobs.client.zadd(keys.PREFIX + "delayed", {job_id: 0})
    upkeep.keep()
    [message] = upkeep.dispatch().messages
    claim = attempts.claim(job_id, message.number)
    assert isinstance(claim, Claim)
    return runner.run(claim).state


@pytest.mark.parametrize("failures", [2, MAX_RETRIES + 1])
def test_retries(retrying: Jobs, failures: int) -> None:
    """A retryable error is retried with a wait of up to twice as long each time; after the last one the job has failed,
    and its history names every attempt's reason."""
    FailingEngine.failures = failures
    attempts, upkeep = Attempts(retrying, "w1.0"), Upkeep(retrying)
    runner = Runner(retrying.settings, attempts, "w1", lambda _: None)
    runner.start()
    placed = retrying.place(parse_request({"prompt": "x"}))
    retrying.submit([placed])
    for number in range(failures):
        state = _attempt(retrying, upkeep, attempts, runner, placed.id)
        if number == MAX_RETRIES:
            assert state is JobState.FAILED
            break
        assert state is JobState.QUEUED
        not_before = retrying.client.hget(keys.job(placed.id), "not_before")
        seconds, _ = retrying.client.time()
        assert float(str(not_before)) / 1000 <= int(seconds) + 1 + min(CAP_S, BASE_S * 2**number)
    else:
        assert _attempt(retrying, upkeep, attempts, runner, placed.id) is JobState.SUCCEEDED
    view = retrying.view(placed.id)
    reasons = [record.reason for record in view.history]
    assert reasons == (["no_memory"] * 4 if failures > MAX_RETRIES else ["no_memory", "no_memory", "finish"])
    if failures > MAX_RETRIES:
        assert view.error is not None
        assert (view.error.code, view.error.message) == ("no_memory", "no room")
    runner.drain()
    runner.stop()


def test_transient_failures_of_a_real_engine_are_cured_by_trying_again(jobs: Jobs, start_worker: StartWorker) -> None:
    """A job that fails twice with an error worth a retry succeeds at the third attempt, and another that always fails
    ends as failed: state, times, workers and reasons of every attempt stand in their histories."""
    quick = {"KEEPER__RETRY_BASE_S": 0.05, "KEEPER__MAX_RETRIES": MAX_RETRIES}
    start_worker("w1", ENGINE__SYNTHETIC_FAULTS="nettle=fail*2,thistle=fail*99", **quick)
    [cured] = submit(jobs, prompt="a nettle", max_tokens=3)
    [hopeless] = submit(jobs, prompt="a thistle", max_tokens=3)
    [healthy] = submit(jobs, prompt="a goat", max_tokens=3)
    cured_view, failed, plain = wait_for_all(jobs, [cured, hopeless, healthy])
    assert (cured_view.state, len(cured_view.token_ids)) == (JobState.SUCCEEDED, 3)
    assert [past.reason for past in cured_view.history] == ["fault_asked", "fault_asked", "finish"]
    assert failed.state is JobState.FAILED
    assert [past.reason for past in failed.history] == ["fault_asked"] * (MAX_RETRIES + 1)
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("fault_asked", True)
    for view in (cured_view, failed):
        assert [past.attempt for past in view.history] == list(range(1, len(view.history) + 1))
        times = [time for past in view.history for time in (past.started_at, past.ended_at)]
        assert times == sorted(times)
        assert all(past.worker.startswith("w1.") for past in view.history)
        assert view.strikes == 0
    assert (plain.state, plain.attempt) == (JobState.SUCCEEDED, 1)
    assert jobs.client.hget(keys.TOTALS, "released:fault_asked") == str(2 + MAX_RETRIES)
