"""What the scheduler asks of the KV cache's memory, whatever its layout. Counts tokens and knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.engine.kv.arena import Block
from workers.engine.sequence import Place, Sequence


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys and values of ``count`` tokens, moved to another block before the next step writes its own."""

    source: Block
    source_start: int
    target: Block
    target_start: int
    count: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Keys and values of ``count`` tokens from ``start`` on, set to zeros before the next step writes its own.

    For memory whose last holder may have left NaN there: attention reads what is masked, too, and 0 times NaN is NaN.
    """

    place: Place
    start: int
    count: int


Change = Copy | Clear
"""Changes are made in order, so a block may be freed, and taken again, as soon as a copy out of it is queued."""


class KVManager(Protocol):
    """Gives sequences memory for their keys and values, and keeps leading blocks of tokens that others may share.

    A sequence holds memory while its ``place`` is set. Steps are computed in the order in which they were scheduled, so
    memory may be given on while a step that reads it is still in flight.
    """

    @property
    def largest(self) -> int:
        """Tokens of the longest sequence that fits an empty cache."""

    @property
    def used(self) -> int:
        """Tokens that running sequences hold."""

    def admit(self, sequence: Sequence) -> bool:
        """Give it memory for its tokens and one more. False, and nothing is changed, if there is none.

        Leading tokens whose keys and values are cached count as computed; at least one is left to compute.
        """

    def extend(self, sequence: Sequence) -> bool:
        """See that a running sequence has memory for one token more than are computed. False if there is none.

        Pages count tokens in flight as computed; a contiguous block's sequence is never in flight here.
        """

    def share(self, sequence: Sequence) -> None:
        """Offer the full blocks of its computed tokens, all of them proven, to sequences that begin with the same."""

    def release(self, sequence: Sequence) -> None:
        """Take its memory back, and have cleared what it wrote there beyond its proven tokens."""

    def forget(self, lost: list[Change]) -> None:
        """Drop everything cached, which no sequence holds: its contents are not to be trusted.

        lost: changes that were handed out and may not have been made; what they were to clear is cleared.
        """

    def take_changes(self) -> list[Change]:
        """The changes to make before the next step, in order; each is handed out once."""
