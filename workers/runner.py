"""The jobs that this worker runs, between Celery's threads, the ledger and the engine process.

A task thread brings a claimed job and waits. One thread writes all jobs' new tokens to the ledger and renews their
leases, one call per flush. The engine's reader thread adds tokens as they come. Whoever ends a job first (the engine,
the ledger, a drain, the engine's death) settles it; the task thread then writes the outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from farm.contracts import JobState
from farm.errors import LedgerTooNew, ServerUnreachable
from farm.ledger.attempts import ENTRIES_PER_CALL, Attempts, Claim, Kept, ReleaseKind
from farm.ledger.records import ModelFacts
from farm.logs import log_defect
from farm.results import JobError
from farm.settings import Settings
from workers.aboard import Aboard, Ending, order, outcome_of
from workers.backoff import jittered_s
from workers.beat import Beat
from workers.deck import Deck
from workers.engine.protocol import Cancel, Emitted, Failed, Finished, Ready, Report
from workers.engine_process import EngineProcess
from workers.lives import Lives
from workers.patience import Patience

log = structlog.get_logger(__name__)

HALT_S = 1.0  # how long a drain waits for the step that the engine is in


class Runner:
    """One worker's engine and the jobs aboard."""

    def __init__(self, settings: Settings, attempts: Attempts, name: str, on_refused: Callable[[str], None]) -> None:
        self._settings = settings
        self._attempts = attempts
        self._name = name
        self._on_refused = on_refused
        self._deck = Deck()
        self._lock = threading.Lock()
        # What the ledger is told of our capacity must not be overtaken by what was true before.
        self._telling = threading.Lock()
        self.ready: Ready | None = None
        """What the latest engine loaded; None before any did."""
        self._is_registered = threading.Event()
        self._draining = threading.Event()
        self._drain_lock = threading.Lock()
        self._patience = Patience()
        self.drained = threading.Event()
        """Set once all jobs were handed back, or can't be."""
        self.on_open: Callable[[], None] = lambda: None
        """Called whenever jobs are taken again."""
        self.beat = Beat(self._flush, self._interval_s)
        self.lives = Lives(
            settings.engine,
            on_report=self._on_report,
            on_ready=self._on_ready,
            on_lost=self._on_lost,
        )
        self._account = self.lives.account

    def start(self) -> None:
        """Load the model, make the worker known, start the beat. Raises ModelRefused; retries a dying engine."""
        self.beat.start()
        self.lives.start()

    def run(self, claim: Claim) -> Ending:
        """Generate for a claimed job and return how it ended. Blocks; the lease is kept meanwhile."""
        running = Aboard.of(claim)
        if claim.attempt == 1:
            self._account.waited(queue_s=claim.age_s)
        ending = Ending(None, "failed")
        try:
            engine = self._deck.board(running, lambda: None if self._draining.is_set() else self.lives.serving)
            if engine is not None:
                engine.send(order(claim))
                self.beat.wake()
            elif not running.settled.is_set():
                ending = self._send_back(claim)
                return ending
            running.settled.wait()
            ending = running.ending or self._conclude(running)
            return ending
        finally:
            self._deck.leave(running)
            self._close(running, ending)
            if claim.proof:
                self.on_open()

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken now."""
        return self._is_registered.is_set() and not self._draining.is_set() and not self._deck.is_on_trial

    def wait_until_open(self) -> None:
        """Block until jobs are taken, or it is plain that none will be soon: the ledger then refuses the claim."""
        while not self.is_open and not self._draining.is_set() and not self.lives.is_failing:
            self._draining.wait(0.05)

    def drain(self) -> None:
        """Take no more, write what there is, hand every job back. Other workers go on from the last token.

        A second caller waits until the first one is done. An engine that is still loading is ended.
        """
        self._draining.set()
        with self._drain_lock:
            if self.drained.is_set():
                return
            drain_s = self._settings.worker.drain_s
            self._patience.limit(drain_s)
            self.lives.cease()
            engine = self.lives.serving
            if engine is not None and not engine.halt(min(HALT_S, drain_s / 4)):
                log.warning("drained_without_engine", limit_s=min(HALT_S, drain_s / 4))
            self._hand_back("drain", "drain")
            self.drained.set()

    def stop(self) -> None:
        """End the engine and the beat, after ``drain``."""
        self._patience.end()
        self.beat.stop()
        self.lives.end()

    @property
    def capacity(self) -> int:
        """How many jobs the worker may hold now."""
        if self.ready is None or self.lives.serving is None or self._draining.is_set():
            return 0
        return max(1, len(self._deck)) if self._deck.is_on_trial else self.ready.slots

    @property
    def trouble(self) -> str:
        """Why no jobs are taken, for people; empty while they are."""
        return "draining" if self._draining.is_set() else self.lives.trouble

    def _on_ready(self, engine: EngineProcess, ready: Ready) -> None:
        self.ready = ready
        try:
            if not self._patience.until_answered(self._register):
                return
        except ServerUnreachable:
            log.warning("stopped_before_registering")
            return
        with self._lock:
            if self.lives.serving is engine:
                self._is_registered.set()
        self.on_open()

    def _register(self) -> bool:
        """Make the worker known; with facts about its model once one was loaded. False: it is refused, and stops."""
        model, it = self._settings.model.name, self.ready
        facts = None if it is None else ModelFacts(model, it.context, it.vocab, it.fingerprint, it.tokenizer)
        try:
            with self._telling:
                taken = self._attempts.register(self._name, model, self.capacity, "model", facts)
        except LedgerTooNew as error:
            self._on_refused(str(error))
            return False
        if taken:
            log.info("jobs_of_previous_life_queued_again", jobs=taken)
        return True

    def _on_report(self, report: Report) -> None:
        grown = []
        for event in report.events:
            running = self._deck.get(event.id)
            if isinstance(event, Emitted):
                self._account.receive(running, len(event.tokens))
            if running is None or running.settled.is_set():
                continue
            if isinstance(event, Emitted | Finished):
                self.lives.gave_token()
            running.take(event)
            if isinstance(event, Emitted):
                grown.append(running)
        # One that has ended brings its last tokens to the ledger itself.
        if not all(running.settled.is_set() for running in grown):
            self.beat.call_now()

    def _on_lost(self, engine: EngineProcess, reason: str) -> None:
        """Hand back the jobs of an engine that is gone. The next one may be up before the server answers."""
        with self._lock:
            if self.lives.serving is None:
                self._is_registered.clear()
        self._hand_back("lost", reason, engine)

    def _hand_back(self, kind: ReleaseKind, reason: str, life: EngineProcess | None = None) -> None:
        """Release all jobs, or those of one life, with what was generated, once the server answers.

        If it does not, their leases end, and what was not written is generated again.
        """
        self._save()
        held = self._interrupt(Ending(JobState.QUEUED, reason), life)
        try:
            self._patience.until_answered(
                lambda: self._attempts.release(held, kind, reason, draining=self._draining.is_set())
            )
            log.info("handed_back", jobs=len(held), reason=reason)
        except ServerUnreachable as error:
            log.warning("not_handed_back", jobs=len(held), reason=reason, error=str(error))

    def _interrupt(self, ending: Ending, life: EngineProcess | None = None) -> list[tuple[str, str]]:
        """Settle every job that the engine has not ended, or those of one life. Returns (id, nonce) of each."""
        aboard = [running for running in self._deck.all() if life is None or running.life is life]
        return [(running.claim.id, running.claim.nonce) for running in aboard if running.settle(ending=ending)]

    def _interval_s(self) -> float:
        """Between two flushes, unless tokens come: those are written as they do. Often enough to be seen to live."""
        alive_s = min(self._settings.keeper.liveness_s / 3, 0.5)
        return min(alive_s, 2 * self._settings.lease.flush_s) if self._deck else alive_s

    def _save(self) -> None:
        try:
            self._patience.until_answered(self._flush)
        except ServerUnreachable as error:
            log.warning("not_flushed", error=str(error))
        except Exception as error:
            log_defect(log, "flush_failed", error)

    def _flush(self) -> None:
        with self._telling:
            aboard = self._deck.all()
            advances = [running.advance() for running in aboard]
            known, words = self._attempts.progress(
                advances, self.capacity, draining=self._draining.is_set(), trouble=self.trouble
            )
        engine = self.lives.serving
        for running, kept in zip(aboard, words, strict=True):
            if kept.word != "lost":
                self._note_kept(running, kept.tokens)
            elif running.settle(ending=Ending(None, "lost", found=kept.state)) and engine is not None:
                # Cancelled, expired, or given to another after our lease ended.
                engine.send(Cancel(running.claim.nonce))
        if self._deck.end_trial():
            self.on_open()
        # One that has never served is made known when it fails, so that people can see why.
        if not known and not self._draining.is_set() and (self._is_registered.is_set() or self.lives.is_failing):
            self._register()

    def _send_back(self, claim: Claim) -> Ending:
        """Hand back a job that found no engine. That is nobody's fault."""
        reason = "drain" if self._draining.is_set() else "engine_starting"
        self._patience.until_answered(lambda: self._attempts.release([(claim.id, claim.nonce)], "drain", reason))
        return Ending(JobState.QUEUED, reason)

    def _conclude(self, running: Aboard) -> Ending:
        """Write the outcome that the engine gave, until the ledger has answered."""
        final, ready = running.final, self.ready
        assert final is not None
        assert ready is not None
        if isinstance(final, Failed) and final.retryable:
            return self._retry(running, JobError(final.code, final.message, retryable=True))
        outcome = outcome_of(final, ready.fingerprint)
        while True:
            self._write_down(running, ENTRIES_PER_CALL)
            answer = self._patience.until_answered(lambda: self._attempts.finish(running.advance(), outcome))
            if isinstance(answer, Kept):
                self._note_kept(running, answer.tokens)
                continue
            if answer is None:
                self._note_kept(running, len(running.entries))
                return Ending(outcome.state, "finish", outcome.error, len(running.entries))
            return Ending(None, f"already {answer.value}", found=answer)

    def _write_down(self, running: Aboard, left: int) -> None:
        """Have the ledger take a job's tokens, all but so many; none of a job that is gone."""
        flushed = -1
        while flushed != running.flushed < len(running.entries) - left:
            flushed = running.flushed
            self._patience.until_answered(self._flush)

    def _note_kept(self, running: Aboard, tokens: int) -> None:
        """The ledger holds so many of its tokens."""
        running.flushed = tokens
        self._account.accept(running, tokens)

    def _close(self, running: Aboard, ending: Ending) -> None:
        """Settle what is on the account for a job that leaves, and say how it went: the one line of a job."""
        is_gone = ending.found is not None and ending.found.is_terminal
        self._account.close(running, "cancelled" if is_gone else "lost")
        if ending.state is not None and ending.state.is_terminal:
            self._account.waited(e2e_s=running.total_s, time_per_output_token_s=running.time_per_output_token_s)
        log.info("job", worker=self._attempts.worker, model=self._settings.model.name, **running.facts(ending))

    def _retry(self, running: Aboard, error: JobError) -> Ending:
        """Hand the job back with its tokens for another attempt, after a wait drawn with full jitter."""
        claim, keeper = running.claim, self._settings.keeper
        self._write_down(running, 0)
        wait_s = jittered_s(claim.retries, keeper.retry_base_s, keeper.retry_cap_s)
        [state] = self._patience.until_answered(
            lambda: self._attempts.release([(claim.id, claim.nonce)], "retry", error.code, wait_s=wait_s, error=error)
        )
        return Ending(state, error.code, error)
