"""The engine: continuous batching over a model. Schedule, forward, sample, emit, retire: one step at a time.

Requests join and leave at any step. What a model is (``Model``) it does not know, so it needs no torch; it knows no
pipe, no Redis and no Celery either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from farm.errors import FarmError, InvalidRequest, PromptTooLong
from workers.engine.arena import Arena
from workers.engine.detokenizer import Detokenizer, Pieces
from workers.engine.protocol import Add, Admitted, Emitted, Event, Failed, Finished, FinishReason, Ready, Token
from workers.engine.scheduler import Scheduler, Step
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Pick:
    """The token chosen for a sequence; None if its logits were not finite numbers.

    ``logprob`` and ``top`` are set when the request asked for logprobs, as in ``Token``.
    """

    token: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


class Model(Protocol):
    """What the engine drives."""

    @property
    def ready(self) -> Ready:
        """Slots, context, KV tokens and vocabulary of the loaded model."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens by which the model ends a text."""

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""

    def pieces(self) -> Pieces:
        """A fresh detokenizer for one sequence."""

    def run(self, step: Step) -> list[Pick]:
        """Compute a step's tokens and pick one for each of ``step.sampled``, in order."""


class Engine:
    """Generates for many jobs at once. Not thread-safe: one loop owns it."""

    def __init__(self, model: Model, prefill_budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self.ready = model.ready
        self.steps = 0
        self._clock = clock
        self._scheduler = Scheduler(self.ready.slots, Arena(self.ready.kv_tokens), prefill_budget)
        self._live: dict[str, _Live] = {}
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say something."""
        return bool(self._live or self._events)

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
        if not self._replay(live):
            self._retire(live, "stop")
        elif live.sequence.is_complete:
            self._retire(live, "length")

    def cancel(self, id: str) -> None:
        """Forget a job and all that was still to be said about it. An unknown id may just have ended: no error."""
        self._events = [event for event in self._events if event.id != id]
        live = self._live.pop(id, None)
        if live is not None:
            self._scheduler.remove(live.sequence)

    def step(self) -> list[Event]:
        """Compute one step and return what happened. Any exception means that the engine is lost."""
        self.steps += 1
        now = self._clock()
        for sequence in self._scheduler.overdue(now):
            self._retire(self._live[sequence.id], "expired")
        step = self._scheduler.schedule()
        if step.tokens:
            picks = self.model.run(step)
            sampled = step.sampled
            self._scheduler.complete(step)
            for sequence, pick in zip(sampled, picks, strict=True):
                self._emit(self._live[sequence.id], pick)
        events, self._events = self._events, []
        return events

    def _open(self, add: Add) -> _Live:
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
        )
        return _Live(sequence, Detokenizer(self.model.pieces(), params.stop), add.resume)

    def _encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("prompt", "holds half a surrogate pair, which is no text; repair it") from None
        return self.model.encode(prompt)

    def _replay(self, live: _Live) -> bool:
        """Take in the tokens of earlier attempts. False if they already ended the text."""
        for token in live.resume:
            if live.sequence.is_complete:
                break
            if token in live.sequence.stop_ids and live.sequence.may_stop:
                return False
            live.push(token)
            if live.detokenizer.stopped:
                return False
        return True

    def _emit(self, live: _Live, pick: Pick) -> None:
        if pick.token is None:
            self._fail(live, "not_finite", "the model's logits are not finite numbers; use dtype float32 or bfloat16")
            return
        if pick.token in live.sequence.stop_ids and live.sequence.may_stop:
            self._retire(live, "stop")
            return
        text = live.push(pick.token)
        self._events.append(Emitted(live.sequence.id, [Token(pick.token, text, pick.logprob, pick.top)]))
        if live.detokenizer.stopped:
            self._retire(live, "stop")
        elif live.sequence.is_complete:
            self._retire(live, "length")

    def _retire(self, live: _Live, reason: FinishReason) -> None:
        self._drop(live)
        self._events.append(Finished(live.sequence.id, reason, live.detokenizer.flush()))

    def _fail(self, live: _Live, code: str, message: str) -> None:
        self._drop(live)
        self._events.append(Failed(live.sequence.id, code, message))

    def _drop(self, live: _Live) -> None:
        del self._live[live.sequence.id]
        self._scheduler.remove(live.sequence)


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    """A sequence, its text, and the tokens that it brought along."""

    sequence: Sequence
    detokenizer: Detokenizer
    resume: list[int]

    def push(self, token: int) -> str:
        """Append a token and return the text that became certain."""
        self.sequence.append(token)
        # A stop counts once min_tokens tokens are there: this one included.
        return self.detokenizer.push(token, may_stop=self.sequence.may_stop)
