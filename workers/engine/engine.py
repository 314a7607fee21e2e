"""The engine: continuous batching over a model. Schedule, forward, sample, emit, retire: one step at a time.

Requests join and leave at any step. What a model is it does not know (``model.Model``), so it needs no torch; it knows
no pipe, no Redis and no Celery either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from farm.errors import FarmError, InvalidRequest, PromptTooLong
from workers.engine.detokenizer import Detokenizer
from workers.engine.live import Live
from workers.engine.model import Model, OutOfMemory, Pick, Result
from workers.engine.pacer import Pacer
from workers.engine.protocol import Add, Admitted, Emitted, Event, Failed, Finished, FinishReason, Stats, Token
from workers.engine.scheduler import Scheduler, Step
from workers.engine.sequence import Sequence
from workers.engine.tally import Tally

DEFAULT_SLOWDOWN = 2.5
"""Leaves something of the factor of 3 that people are promised to what can't be foreseen."""
_RECOVERY_STEPS = 256
"""Steps without a shortage of memory until the engine tries more at once again."""


class Engine:
    """Generates for many jobs at once. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        model: Model,
        prefill_budget: int,
        *,
        slowdown: float = DEFAULT_SLOWDOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """prefill_budget: prompt tokens of a step.  slowdown: see ``Pacer``."""
        self.model = model
        self.ready = model.ready
        self.steps = 0
        self._clock = clock
        self._scheduler = Scheduler(self.ready.slots, model.memory(), prefill_budget, model.depth, model.lookahead)
        self._pacer = Pacer(slowdown, prefill_budget)
        self._in_flight: deque[Step] = deque()
        self._out_of_memory = 0
        self._steps_since_shortage = 0
        self._tally = Tally()
        self._now = clock()
        self._live: dict[str, Live] = {}
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say something."""
        return bool(self._live or self._events)

    @property
    def generated(self) -> int:
        """Tokens that were sampled since the start, those of jobs that were gone by then too."""
        return self._tally.sampled

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    def add(self, add: Add) -> None:
        """Take a job; the next step says Admitted or Failed. An id that is live starts anew."""
        self.cancel(add.id)
        try:
            live = self._open(add)
        except FarmError as error:
            self._events.append(Failed(add.id, error.code, str(error), error.retryable))
            return
        self._events.append(Admitted(add.id, live.sequence.prompt_tokens))
        self._live[add.id] = live
        self._scheduler.add(live.sequence)
        if not live.replay():
            self._retire(live, "stop")
        elif live.sequence.is_complete:
            self._retire(live, "length")

    def cancel(self, id: str) -> None:
        """Forget a job and all that was still to be said about it. An unknown id may just have ended: no error."""
        self._events = [event for event in self._events if event.id != id]
        live = self._live.pop(id, None)
        if live is not None:
            self._scheduler.remove(live.sequence)

    @property
    def stats(self) -> Stats:
        """Counts since the start, and what is in use now."""
        tally = self._tally
        return Stats(
            kv_tokens=self._scheduler.kv.used,
            preemptions=self._scheduler.preemptions,
            out_of_memory=self._out_of_memory,
            cached_prompt_tokens=self._scheduler.cached_tokens,
            prompt_tokens=tally.prompt,
            resumed_tokens=tally.resumed,
            recomputed_tokens=tally.recomputed,
            generated_tokens=tally.sampled,
            ending_tokens=tally.endings,
            batch_sizes=tuple(tally.batch_sizes.counts),
            decoded_rows=tally.batch_sizes.total,
            step_seconds=tuple(tally.step_seconds.counts),
            computing_s=round(tally.step_seconds.total, 6),
        )

    def step(self) -> list[Event]:
        """Compute one step and return what happened. Any exception means that the engine is lost."""
        self.steps += 1
        self._now = self._clock()
        for sequence in self._scheduler.overdue(self._now):
            self._retire(self._live[sequence.id], "expired")
        self._fill()
        if self._in_flight:
            try:
                self._take(self.model.collect())
            except OutOfMemory as error:
                self._recover(error)
        events, self._events = self._events, []
        return events

    def halt(self) -> list[Event]:
        """Take in the steps in flight and forget every job. Returns what happened until then."""
        while self._in_flight:
            try:
                self._take(self.model.collect())
            except OutOfMemory as error:
                self._recover(error)
        for live in [*self._live.values()]:
            self._drop(live)
        events, self._events = self._events, []
        return events

    def _fill(self) -> None:
        """Put steps in flight, as many as the model's stages can work on."""
        while len(self._in_flight) < self.model.depth + self.model.lookahead:
            self._scheduler.pace = self._pacer.tokens
            step = self._scheduler.schedule()
            if step is None:
                return
            self.model.submit(step)
            self._in_flight.append(step)

    def _take(self, result: Result) -> None:
        """Take in the oldest step. What it gave to sequences that are gone by now is nobody's."""
        step = self._in_flight.popleft()
        sampled = step.sampled
        self._tally.note(step, result.seconds)
        self._scheduler.complete(step, [pick.token is not None for pick in result.picks])
        self._pacer.observe(step, result.seconds)
        for sequence, pick in zip(sampled, result.picks, strict=True):
            live = self._live.get(sequence.id)
            if live is not None and live.sequence is sequence:
                self._emit(live, pick)
        self._steps_since_shortage += 1
        if self._steps_since_shortage % _RECOVERY_STEPS == 0:
            self._scheduler.grow()

    def _recover(self, error: OutOfMemory) -> None:
        """Compute less at once from here on, everything anew. Where nothing less is left, fail the oldest job."""
        self._out_of_memory += 1
        self._steps_since_shortage = 0
        self.model.drop()
        oldest = next(iter(self._scheduler.running), None)
        self._scheduler.abandon(self._in_flight)
        self._in_flight.clear()
        if not self._scheduler.shrink() and oldest is not None:
            self._fail(
                self._live[oldest.id], error.code, f"{error}; lower max_tokens or use more memory", retryable=True
            )

    def _open(self, add: Add) -> Live:
        """Check a request. Raises InvalidRequest or PromptTooLong."""
        params, vocab, context = add.params, self.ready.vocab, self.ready.context
        prompt = self._encode(add.prompt) if isinstance(add.prompt, str) else add.prompt
        if not prompt:
            raise InvalidRequest("prompt", "has no tokens; give some text or at least one token id")
        for name, ids in (("prompt", prompt), ("resume", add.resume), ("stop_token_ids", params.stop_token_ids)):
            wrong = next((id for id in ids if not 0 <= id < vocab), None)
            if wrong is not None:
                raise InvalidRequest(
                    name,
                    f"token id {wrong:,} is not in the model's vocabulary of {vocab:,}; give 0 or more, below that",
                )
        if len(prompt) + params.max_tokens > context:
            raise PromptTooLong.of(len(prompt), params.max_tokens, context)
        sequence = Sequence(
            id=add.id,
            prompt_tokens=len(prompt),
            tokens=list(prompt),
            params=params,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.model.eos_ids),
            deadline=None if add.deadline_s is None else self._clock() + add.deadline_s,
            scope=add.scope,
            is_resumed=add.was_computed,
        )
        return Live(sequence, Detokenizer(self.model.pieces(), params.stop), add.resume)

    def _encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("prompt", "holds half a surrogate pair, which is no text; repair it") from None
        return self.model.encode(prompt)

    def _emit(self, live: Live, pick: Pick) -> None:
        if pick.token is None:
            self._fail(live, "not_finite", "the model's logits are not finite numbers; use dtype float32 or bfloat16")
            return
        if pick.token in live.sequence.stop_ids and live.sequence.may_stop:
            self._tally.endings += 1
            self._retire(live, "stop")
            return
        live.last_at = self._now
        if live.first_at is None:
            live.first_at = live.last_at
        text = live.push(pick.token)
        self._events.append(Emitted(live.sequence.id, [Token(pick.token, text, pick.logprob, pick.top)]))
        if live.detokenizer.stopped:
            self._retire(live, "stop")
        elif live.sequence.is_complete:
            self._retire(live, "length")

    def _retire(self, live: Live, reason: FinishReason) -> None:
        self._drop(live)
        decode_s = 0.0 if live.first_at is None else round(live.last_at - live.first_at, 6)
        self._events.append(Finished(live.sequence.id, reason, live.detokenizer.flush(), decode_s))

    def _fail(self, live: Live, code: str, message: str, *, retryable: bool = False) -> None:
        self._drop(live)
        self._events.append(Failed(live.sequence.id, code, message, retryable))

    def _drop(self, live: Live) -> None:
        del self._live[live.sequence.id]
        self._scheduler.remove(live.sequence)
