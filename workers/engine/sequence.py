"""A sequence: one job inside the engine, its tokens and how many of them are in the KV cache.

Plain bookkeeping: knows no torch, no text and no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from workers.engine.kv.arena import Block
from workers.engine.protocol import SamplingParams


@dataclass(frozen=True, slots=True)
class Pages:
    """A table of pages: token i lies in page ``table[i // PAGE]``."""

    table: list[int]


Place = Block | Pages
"""Where a sequence's keys and values lie, in either layout of the KV cache."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and generated tokens of one job.

    ``tokens`` is prompt, resumed and new tokens in a row; the first ``computed`` of them are in the KV cache, at
    ``place``, and the first ``proven`` of those are finite: a token came of them, or they were cached. ``stop_ids`` end
    the text; ``deadline`` is a reading of the monotonic clock in seconds. ``scope`` parts those who may share cached
    prefixes. ``arrival`` orders sequences by age. ``in_flight`` counts its tokens in steps that have not been
    collected, ``turn`` is the number of the last such step. ``peak`` is how many tokens had been computed when it was
    preempted last; ``is_resumed``: an earlier attempt has computed its prompt.
    """

    id: str
    prompt_tokens: int
    tokens: list[int]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    scope: str = ""
    arrival: int = 0
    computed: int = 0
    proven: int = 0
    place: Place | None = None
    in_flight: int = 0
    turn: int = 0
    peak: int = 0
    is_resumed: bool = False
    block_names: list[bytes] = field(default_factory=list, repr=False)
    counts: Counter[int] | None = field(default=None, repr=False)

    @property
    def output_tokens(self) -> int:
        """How many tokens were generated, by all attempts."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens that are not in the KV cache yet: 1 while decoding, more during prefill."""
        return len(self.tokens) - self.computed

    @property
    def unscheduled(self) -> int:
        """Known tokens that no step has taken yet; below 1, tokens that steps in flight will give stand in between."""
        return self.pending - self.in_flight

    @property
    def next_index(self) -> int:
        """Which token of the output its last step in flight gives."""
        return self.computed + self.in_flight - self.prompt_tokens

    @property
    def may_run_ahead(self) -> bool:
        """Whether its next token can be computed before the last one is known: not if that one is surely the last, nor
        if penalties, which count tokens, apply."""
        params = self.params
        is_penalized = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        return not is_penalized and self.next_index + 1 < params.max_tokens

    @property
    def kv_tokens(self) -> int:
        """KV tokens that the sequence may need at the most."""
        return self.prompt_tokens + self.params.max_tokens

    @property
    def is_complete(self) -> bool:
        return self.output_tokens >= self.params.max_tokens

    @property
    def may_stop(self) -> bool:
        """Whether the next token may end the text."""
        return self.output_tokens >= self.params.min_tokens

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens.append(token)
        if self.counts is not None:
            self.counts[token] += 1

    def output_counts(self) -> Counter[int]:
        """How often each token was generated, by all attempts."""
        if self.counts is None:
            self.counts = Counter(self.tokens[self.prompt_tokens :])
        return self.counts
