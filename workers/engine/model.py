"""What the engine drives: a model that computes steps, and what comes of one.

Here apart from the engine, so that models need not know who drives them. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from farm.errors import FarmError
from workers.engine.detokenizer import Pieces
from workers.engine.kv.manager import KVManager
from workers.engine.protocol import Ready
from workers.engine.scheduler import Step


@dataclass(frozen=True, slots=True)
class Pick:
    """The token chosen for a sequence; None if its logits were not finite numbers.

    ``logprob`` and ``top`` are set when the request asked for logprobs, as in ``Token``.
    """

    token: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a step: a pick for each of its ``sampled``, in order, and how long its slowest stage computed.

    Sampling counts as the last stage's, and what a stage waited for counts for none.
    """

    picks: list[Pick]
    seconds: float


class OutOfMemory(FarmError):
    """A step found no memory to compute in."""

    code = "out_of_memory"
    retryable = True


class Model(Protocol):
    """What the engine drives. Steps are computed in the order in which they were submitted."""

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

    @property
    def depth(self) -> int:
        """How many steps in flight keep all its stages busy."""

    @property
    def lookahead(self) -> int:
        """How many further steps it takes whose tokens follow on others that are not known yet."""

    def memory(self) -> KVManager:
        """The bookkeeping of its KV cache, empty."""

    def submit(self, step: Step) -> None:
        """Begin a step; at most ``depth`` and ``lookahead`` are in flight."""

    def collect(self) -> Result:
        """Wait for the oldest step in flight. Raises OutOfMemory, after which every other step is to be dropped."""

    def drop(self) -> None:
        """Wait for the steps in flight and forget what came of them."""
