"""Which sequences take part in the next step: slots, KV memory and prefill budget shared first come first served.

Knows no torch, no text and no clock; the engine tells it what time it is.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.engine.kv.manager import Change, KVManager
from workers.engine.sequence import Sequence

LEAST_BUDGET = 16
"""Prompt tokens that any step may compute: fewer would not pay for reading the weights."""
PROMPT_SHARES = 4
"""With several stages a step beside decoding sequences takes one part in so many, per stage, of the prompt tokens that
are there: a stage with little to do waits for its neighbour with much."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``count`` tokens of a prompt, computed in one step.

    ``completes``: the prompt is whole with it, so that its last row gives the next token.
    """

    sequence: Sequence
    count: int
    completes: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass computes: a token of each decoding sequence, then chunks of prompts, after the changes."""

    decodes: list[Sequence]
    chunks: list[Chunk]
    changes: list[Change] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(chunk.count for chunk in self.chunks)

    @property
    def sampled(self) -> list[Sequence]:
        """Sequences that get a token from this step, in the order of its rows."""
        return [*self.decodes, *(chunk.sequence for chunk in self.chunks if chunk.completes)]


class Scheduler:
    """Waiting and running sequences, each oldest first.

    A sequence is admitted when a slot is free and memory for its tokens so far. When a running one finds no memory for
    its next token, the youngest that is not in flight is preempted: it gives its memory back and waits to be computed
    again, with all its tokens. The head of the queue is never overtaken, so none is starved.

    With ``depth`` steps in flight each takes its share of the decoding sequences and of the prompts, so that all stages
    have work, and equally much. With a ``lookahead`` so many further steps follow them, for tokens whose predecessors
    are not known yet. Those cost nobody memory; where it runs short, everyone younger stands still until the youngest
    is not in flight.
    """

    def __init__(self, slots: int, kv: KVManager, prefill_budget: int, depth: int = 1, lookahead: int = 0) -> None:
        self.kv = kv
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.cached_tokens = 0
        """Tokens that were not computed at admission, since another sequence had begun with them."""
        self.pace = prefill_budget
        """Prompt tokens of long prompts in a step with decoding sequences, so that these are not stalled."""
        self._slots = self._most_slots = slots
        self._budget = self._most_budget = prefill_budget
        self._depth = depth
        self._lookahead = lookahead
        # Steps reach every stage in order, so that a prompt's next tokens may follow those in flight.
        self._may_overlap = lookahead > 0 or depth > 1
        self._is_short = False
        self._steps = 0
        self._arrivals = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit an empty cache."""
        assert sequence.kv_tokens <= self.kv.largest
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a waiting or running sequence and free its memory."""
        if sequence.place is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.kv.release(sequence)

    def overdue(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed."""
        return [s for s in (*self.running, *self.waiting) if s.deadline is not None and s.deadline <= now]

    def schedule(self) -> Step | None:
        """The next step; None if all sequences are in flight or there is none."""
        decodes = self._decodes()
        admitted = self._admit()
        step = Step(decodes, self._chunks(decodes, admitted))
        if not step.tokens:
            return None
        self._steps += 1
        for sequence, count in _counts(step):
            sequence.in_flight += count
            sequence.turn = self._steps
        step.changes.extend(self.kv.take_changes())
        return step

    def complete(self, step: Step, finite: list[bool]) -> None:
        """Note that a step's tokens are in the KV cache.

        finite: of each of ``step.sampled``, whether its logits were. They follow from all keys and values of the
        sequence, so those are finite, too, and may be shared. A prompt in chunks is proven as a whole.
        """
        for sequence, count in _counts(step):
            if sequence.place is not None:
                sequence.in_flight -= count
                sequence.computed += count
        for sequence, is_finite in zip(step.sampled, finite, strict=True):
            if sequence.place is not None and is_finite:
                self.kv.share(sequence)
                sequence.proven = sequence.computed

    def abandon(self, lost: Iterable[Step]) -> None:
        """Preempt everything, steps in flight included, and trust nothing that the KV cache holds.

        lost: the steps in flight, of which nobody knows how far they got.
        """
        for sequence in [*self.running]:
            self._preempt(sequence)
        self.kv.forget([change for step in lost for change in step.changes])

    def shrink(self) -> bool:
        """Halve what a step may compute. False if it is down to one sequence and the least budget already."""
        if self._slots == 1 and self._budget <= LEAST_BUDGET:
            return False
        self._slots = max(1, self._slots // 2)
        self._budget = max(min(LEAST_BUDGET, self._budget), self._budget // 2)
        return True

    def grow(self) -> None:
        """Take back one ``shrink``, up to what was set."""
        self._slots = min(self._most_slots, self._slots * 2)
        self._budget = min(self._most_budget, self._budget * 2)

    def _decodes(self) -> list[Sequence]:
        """This step's share of the decoding sequences, each with memory for its next token."""
        share = -(-len(self.running) // self._depth)
        decodes: list[Sequence] = []
        self._is_short = False
        ready = [s for s in self.running if not s.in_flight and s.unscheduled == 1]
        if self._lookahead:
            # Whose turn is longest ago runs ahead first: with several stages, its token is known first.
            ready += sorted((s for s in self.running if self._runs_ahead(s)), key=_turn)
        for sequence in ready:
            if len(decodes) == share or self._is_short:
                break
            if sequence.place is not None and self._make_room(sequence):
                decodes.append(sequence)
        return decodes

    def _runs_ahead(self, sequence: Sequence) -> bool:
        """Whether one in flight has another token to compute, known or not."""
        left = sequence.unscheduled
        is_within = left == 1 or (-self._lookahead < left < 1 and sequence.may_run_ahead)
        return sequence.in_flight > 0 and is_within

    def _make_room(self, sequence: Sequence) -> bool:
        """Find memory for its next token, at the cost of younger sequences. False if it had to give way itself, or has
        to wait."""
        while not self.kv.extend(sequence):
            if sequence.in_flight:
                return False
            if self._lookahead and self.running[-1].in_flight:
                self._is_short = True
                return False
            youngest = next(other for other in reversed(self.running) if not other.in_flight)
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.release(sequence)
        sequence.peak = max(sequence.peak, sequence.computed)
        sequence.computed = sequence.proven = 0
        sequence.in_flight = 0
        insort(self.waiting, sequence, key=_age)
        self.preemptions += 1

    def _admit(self) -> list[Sequence]:
        """Let in from the head of the queue what fits."""
        admitted = []
        while self.waiting and len(self.running) < self._slots and self.kv.admit(self.waiting[0]):
            sequence = self.waiting.pop(0)
            self.cached_tokens += sequence.computed
            sequence.proven = sequence.computed
            insort(self.running, sequence, key=_age)
            admitted.append(sequence)
        return admitted

    def _chunks(self, decodes: list[Sequence], admitted: list[Sequence]) -> list[Chunk]:
        """Share out the prefill budget. A prompt that takes several steps is paced beside decoding sequences."""
        # Those in flight wait for this step as well.
        is_beside = bool(decodes) or any(s.in_flight and s.pending == 1 for s in self.running)
        # All but the last token of a new one may have been cached.
        prompts = [s for s in self.running if s.unscheduled > 1 or (s.unscheduled == 1 and s in admitted)]
        budget = self._share(prompts, len(decodes), is_beside)
        paced = min(self.pace, budget)
        chunks: list[Chunk] = []
        for sequence in prompts:
            pending = sequence.unscheduled
            if sequence.in_flight and (self._is_short or not self._may_overlap):
                continue
            is_long = is_beside and len(sequence.tokens) > self._most_budget
            count = min(pending, paced if is_long else budget)
            if count <= 0:
                continue
            chunks.append(Chunk(sequence, count, count == pending))
            budget -= count
            paced = min(paced - count if is_long else paced, budget)
        return chunks

    def _share(self, prompts: list[Sequence], decodes: int, is_beside: bool) -> int:
        """How many tokens of these prompts the next step computes: all that it may, or with several stages a share."""
        if self._depth == 1:
            return self._budget
        pending = sum(sequence.pending for sequence in prompts)  # those in flight too: equal parts
        share = -(-pending // (self._depth * (PROMPT_SHARES if is_beside else 1)))
        return min(self._budget, max(LEAST_BUDGET, decodes, share))


def _counts(step: Step) -> list[tuple[Sequence, int]]:
    """How many tokens of which sequence a step computes."""
    return [(s, 1) for s in step.decodes] + [(chunk.sequence, chunk.count) for chunk in step.chunks]


def _age(sequence: Sequence) -> int:
    return sequence.arrival


def _turn(sequence: Sequence) -> int:
    return sequence.turn
