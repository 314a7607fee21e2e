"""The jobs that this worker runs, between Celery's threads, the ledger and the engine process.

A task thread brings a claimed job and waits. One thread writes all jobs' new tokens to the ledger and renews their
leases, one call per flush. The engine's reader thread adds tokens as they come. Whoever ends a job first (the engine,
the ledger, a drain, the engine's death) settles it; the task thread then writes the outcome.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from farm.contracts import JobState
from farm.errors import EngineLost, ModelRefused, ServerUnreachable
from farm.ledger.attempts import ENTRIES_PER_CALL, Attempts, Claim, Kept, Outcome, ReleaseKind
from farm.ledger.jobs import ModelFacts, entry
from farm.results import JobError
from farm.settings import Settings
from workers.aboard import Aboard, Ending, order
from workers.engine.protocol import Admitted, Cancel, Emitted, Failed, Ready, Report
from workers.engine_process import EngineProcess

log = structlog.get_logger(__name__)

T = TypeVar("T")
RESPAWN_CAP_S = 30.0
RETRY_CAP_S = 2.0


class Runner:
    """One worker's engine and the jobs aboard."""

    def __init__(self, settings: Settings, attempts: Attempts, name: str, on_refused: Callable[[str], None]) -> None:
        self._settings = settings
        self._attempts = attempts
        self._name = name
        self._on_refused = on_refused
        self._lock = threading.Lock()
        # By nonce, which is also the engine's name for it: what an earlier attempt left in the pipe is nobody's.
        self._aboard: dict[str, Aboard] = {}
        self._engine: EngineProcess | None = None
        self._ready: Ready | None = None
        self._can_run = threading.Event()
        self._draining = threading.Event()
        self._drain_lock = threading.Lock()
        self._has_drained = False
        self._give_up_at = math.inf
        self._stopped = threading.Event()
        self._deaths = 0
        self.last_report = Report(0, 0, 0, [])

    def start(self) -> None:
        """Load the model, make the worker known, start the beat. Raises ModelRefused; retries a dying engine."""
        self._launch()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def run(self, claim: Claim) -> Ending:
        """Generate for a claimed job and return how it ended. Blocks; the lease is kept meanwhile."""
        running = Aboard.of(claim)
        with self._lock:
            engine = self._engine if self._can_run.is_set() and not self._draining.is_set() else None
            if engine is not None:
                self._aboard[claim.nonce] = running
        if engine is None:
            reason = "drain" if self._draining.is_set() else "engine_starting"
            self._patiently(lambda: self._attempts.release([(claim.id, claim.nonce)], "drain", reason))
            return Ending(JobState.QUEUED, reason)
        engine.send(order(claim))
        running.settled.wait()
        try:
            return running.ending or self._conclude(running)
        finally:
            with self._lock:
                self._aboard.pop(claim.nonce, None)

    def wait_until_ready(self) -> None:
        """Block until the engine can take a job or the worker drains."""
        while not self._can_run.wait(0.2) and not self._draining.is_set():
            pass

    def drain(self) -> None:
        """Take no more, write what there is, hand every job back. Other workers go on from the last token.

        A second caller waits until the first one is done. An engine that is still loading is ended.
        """
        self._draining.set()
        with self._drain_lock:
            if self._has_drained:
                return
            self._has_drained = True
            self._give_up_at = time.monotonic() + self._settings.worker.drain_s
            if not self._can_run.is_set() and self._engine is not None:
                self._engine.kill()
            try:
                self._flush()
            except ServerUnreachable as error:
                log.warning("drained_without_server", error=str(error))
            self._hand_back(self._interrupt(Ending(JobState.QUEUED, "drain")), "drain", "drain")

    def stop(self) -> None:
        """End the engine and the beat, after ``drain``."""
        self._stopped.set()
        self._can_run.clear()
        if self._engine is not None:
            self._engine.kill()

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last showed progress; 0 while there is none to show it."""
        engine = self._engine
        return engine.silent_s if engine is not None and self._can_run.is_set() else 0.0

    @property
    def capacity(self) -> int:
        """How many jobs the worker may hold now."""
        return self._ready.slots if self._ready and self._can_run.is_set() and not self._draining.is_set() else 0

    def _launch(self) -> None:
        """Bring up an engine, however many deaths it takes, unless the worker drains. Raises ModelRefused."""
        while not self._draining.is_set():
            engine = EngineProcess(self._settings.engine, self._on_report, self._on_engine_lost)
            self._engine = engine
            try:
                ready = engine.start()
            except EngineLost as error:
                if self._draining.is_set():
                    return
                self._deaths += 1
                log.warning("engine_start_failed", error=str(error), deaths=self._deaths)
                self._draining.wait(min(RESPAWN_CAP_S, 0.5 * 2 ** min(self._deaths, 10)))
                continue
            with self._lock:
                self._ready = ready
                self._can_run.set()
            facts = {"kernels": ready.kernels, "slots": ready.slots, "load_s": round(ready.load_s, 2)}
            log.info("engine_ready", model=self._settings.model.name, **facts)
            try:
                self._patiently(self._register)
            except ServerUnreachable:
                log.warning("stopped_before_registering")
            return

    def _register(self) -> None:
        ready = self._ready
        assert ready is not None
        model = self._settings.model.name
        facts = ModelFacts(model, ready.context, ready.vocab, ready.fingerprint, ready.tokenizer)
        taken = self._attempts.register(self._name, model, self.capacity, "model", facts)
        if taken:
            log.info("jobs_of_previous_life_queued_again", jobs=taken)

    def _on_report(self, report: Report) -> None:
        self.last_report = report
        for event in report.events:
            running = self._aboard.get(event.id)
            if running is None or running.settled.is_set():
                continue
            if isinstance(event, Emitted):
                self._deaths = 0
                running.entries += [entry(t.id, t.text, t.logprob, t.top) for t in event.tokens]
            elif isinstance(event, Admitted):
                running.prompt_tokens = event.prompt_tokens
            else:
                running.settle(final=event)

    def _on_engine_lost(self, reason: str) -> None:
        with self._lock:
            self._can_run.clear()
        self.last_report = Report(0, 0, 0, [])
        if self._draining.is_set():
            return
        self._deaths += 1
        try:
            self._flush()
        except ServerUnreachable as error:
            log.warning("engine_lost_without_server", error=str(error))
        except Exception:
            log.exception("flush_failed")
        # First, so that nothing which the next engine takes is handed back with what this one had.
        held = self._interrupt(Ending(JobState.QUEUED, reason))
        threading.Thread(target=self._relaunch, name="engine-relaunch", daemon=True).start()
        self._hand_back(held, "lost", reason)

    def _hand_back(self, held: list[tuple[str, str]], kind: ReleaseKind, reason: str) -> None:
        """Release jobs until the server has answered; else their leases end."""
        try:
            self._patiently(lambda: self._attempts.release(held, kind, reason, draining=self._draining.is_set()))
            log.info("handed_back", jobs=len(held), reason=reason)
        except ServerUnreachable as error:
            log.warning("not_handed_back", jobs=len(held), reason=reason, error=str(error))

    def _relaunch(self) -> None:
        self._draining.wait(min(RESPAWN_CAP_S, 0.25 * 2 ** min(self._deaths - 1, 10)))
        try:
            self._launch()
        except ModelRefused as error:
            self._on_refused(str(error))

    def _interrupt(self, ending: Ending) -> list[tuple[str, str]]:
        """Settle every job that the engine has not ended. Returns (id, nonce) of each."""
        with self._lock:
            aboard = [running for running in self._aboard.values() if not running.settled.is_set()]
        for running in aboard:
            if self._engine is not None:
                self._engine.send(Cancel(running.claim.nonce))
            running.settle(ending=ending)
        return [(running.claim.id, running.claim.nonce) for running in aboard]

    def _beat(self) -> None:
        """Flush at every interval while jobs run, and show life while none do."""
        idle_s = self._settings.keeper.liveness_s / 3
        is_silent = False
        while not self._stopped.wait(self._settings.lease.flush_s if self._aboard else min(idle_s, 0.5)):
            try:
                self._flush()
                is_silent = False
            except ServerUnreachable as error:
                if not is_silent:
                    log.warning("server_unreachable", error=str(error))
                is_silent = True
            except Exception:
                log.exception("beat_failed")

    def _flush(self) -> None:
        with self._lock:
            aboard = list(self._aboard.values())
        advances = [running.advance() for running in aboard]
        known, words = self._attempts.progress(advances, self.capacity, draining=self._draining.is_set())
        for running, kept in zip(aboard, words, strict=True):
            if kept.word != "lost":
                running.flushed = kept.tokens
            elif not running.settled.is_set():
                # Cancelled, expired, or given to another after our lease ended.
                if self._engine is not None:
                    self._engine.send(Cancel(running.claim.nonce))
                running.settle(ending=Ending(None, "lost"))
        if not known and not self._draining.is_set():
            self._register()

    def _conclude(self, running: Aboard) -> Ending:
        """Write the outcome that the engine gave, until the ledger has answered."""
        final, claim = running.final, running.claim
        assert final is not None
        assert self._ready is not None
        if isinstance(final, Failed) and final.retryable:
            error = JobError(final.code, final.message, retryable=True)
            return self._retry(claim, error)
        if isinstance(final, Failed):
            error = JobError(final.code, final.message)
            outcome = Outcome(JobState.FAILED, None, "", self._ready.fingerprint, error)
        else:
            is_late = final.reason == "expired"
            outcome = Outcome(
                JobState.EXPIRED if is_late else JobState.SUCCEEDED, final.reason, final.tail, self._ready.fingerprint
            )
        while True:
            if len(running.entries) - running.flushed > ENTRIES_PER_CALL:
                self._patiently(self._flush)
                continue
            answer = self._patiently(lambda: self._attempts.finish(running.advance(), outcome))
            if isinstance(answer, Kept):
                running.flushed = answer.tokens
                continue
            if answer is None:
                return Ending(outcome.state, "finish", outcome.error)
            return Ending(None, f"already {answer.value}")

    def _retry(self, claim: Claim, error: JobError) -> Ending:
        """Hand the job back for another attempt, after a wait drawn with full jitter."""
        keeper = self._settings.keeper
        longest_s = min(keeper.retry_cap_s, keeper.retry_base_s * 2 ** (claim.attempt - 1))
        [state] = self._patiently(
            lambda: self._attempts.release(
                [(claim.id, claim.nonce)], "retry", error.code, wait_s=random.uniform(0, longest_s), error=error
            )
        )
        return Ending(state, error.code, error)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until the server answers. Raises ServerUnreachable once a drain has taken ``worker.drain_s``."""
        wait_s = 0.05
        while True:
            try:
                return call()
            except ServerUnreachable as error:
                if wait_s == 0.05:
                    log.warning("waiting_for_server", error=str(error))
                if time.monotonic() >= self._give_up_at or self._stopped.wait(wait_s):
                    raise
                wait_s = min(RETRY_CAP_S, 2 * wait_s)
