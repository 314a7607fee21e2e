"""Which sequences take part in the next step: slots, KV tokens and prefill budget shared first come first served.

Knows no torch, no text and no clock; the engine tells it what time it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from workers.engine.arena import Arena
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``count`` tokens of a prompt, computed in one step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether the prompt is whole with it, so that its last row gives the next token."""
        return self.count == self.sequence.pending


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass computes: a token of each decoding sequence, then chunks of prompts."""

    decodes: list[Sequence]
    chunks: list[Chunk]

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(chunk.count for chunk in self.chunks)

    @property
    def sampled(self) -> list[Sequence]:
        """Sequences that get a token from this step, in the order of its rows."""
        return [*self.decodes, *(chunk.sequence for chunk in self.chunks if chunk.completes)]


class Scheduler:
    """Waiting and running sequences.

    A sequence is admitted when a slot and a block for its prompt and max_tokens are free, so a running one never lacks
    memory. The head of the queue is never overtaken: a large request is not starved by small ones.
    """

    def __init__(self, slots: int, arena: Arena, prefill_budget: int) -> None:
        self.slots = slots
        self.arena = arena
        self.prefill_budget = prefill_budget
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit an empty arena."""
        assert sequence.kv_tokens <= self.arena.largest
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a waiting or running sequence and free its memory."""
        if sequence.block is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.arena.give_back(sequence.block)
        sequence.block = None

    def overdue(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed."""
        return [s for s in (*self.running, *self.waiting) if s.deadline is not None and s.deadline <= now]

    def schedule(self) -> Step:
        """Admit what fits and share out the prefill budget. Never empty while there is a sequence."""
        while self.waiting and len(self.running) < self.slots:
            block = self.arena.take(self.waiting[0].kv_tokens)
            if block is None:
                break
            sequence = self.waiting.popleft()
            sequence.block = block
            self.running.append(sequence)
        chunks: list[Chunk] = []
        budget = self.prefill_budget
        for sequence in self.running:
            if budget > 0 and sequence.pending > 1:
                chunks.append(Chunk(sequence, min(sequence.pending, budget)))
                budget -= chunks[-1].count
        return Step([sequence for sequence in self.running if sequence.pending == 1], chunks)

    def complete(self, step: Step) -> None:
        """Note that a step's tokens are in the KV cache."""
        for sequence in step.decodes:
            sequence.computed += 1
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.count
