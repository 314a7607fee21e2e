"""Which GPUs CUDA gives a process: what CUDA_VISIBLE_DEVICES says, of those that NVML lists. Asks neither of them.

NVML numbers GPUs as they are plugged in. CUDA puts the fastest first, unless CUDA_DEVICE_ORDER=PCI_BUS_ID: the engine
sets that where nothing else is set, so that cuda:1 is what nvidia-smi calls 1. Only a UUID is the same for both.
Source: CUDA's programming guide, environment variables; NVIDIA's MIG guide, device names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

BUS_ORDER = "PCI_BUS_ID"
"""The value of CUDA_DEVICE_ORDER with which CUDA numbers GPUs as NVML does."""
_UUID = ("GPU-", "MIG-")
_NUMBER = re.compile(r"\+?\d+")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a GPU (MIG). old_name: by its GPU's UUID and its instances' numbers, as drivers before 470 call it."""

    uuid: str
    old_name: str


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as NVML lists it. parts: those it is cut into; None for a whole one, none at all if it is yet to be cut."""

    uuid: str
    model: str = ""
    parts: tuple[Part, ...] | None = None

    @property
    def device(self) -> str | None:
        """The UUID that CUDA sees where the card itself is named: of a card in parts, its first one."""
        if self.parts is None:
            return self.uuid
        return self.parts[0].uuid if self.parts else None


def visible(chosen: str | None, cards: Sequence[Card], order: str | None = None) -> dict[str, str]:
    """UUIDs of the GPUs that a process gets, by their names: as CUDA_VISIBLE_DEVICES has them, else their numbers.

    chosen: CUDA_VISIBLE_DEVICES, or None if it is not set.  order: CUDA_DEVICE_ORDER, or None for the engine's own.
    An entry that names no GPU, or more than one, ends the list, and one that is there twice empties it, as in CUDA.
    Raises ValueError for numbers that mean one GPU to CUDA and another one to NVML.
    """
    if chosen is None:
        return {str(number): card.device for number, card in enumerate(cards) if card.device is not None}
    named = [part.strip() for part in chosen.split(",")]
    is_known_order = order in (None, BUS_ORDER) or len({card.model for card in cards}) <= 1
    found: dict[str, str] = {}
    for name in named:
        if not is_known_order and not name.startswith(_UUID):
            raise ValueError(f"CUDA_DEVICE_ORDER={order} orders unlike cards by speed; set {BUS_ORDER}, or name UUIDs")
        uuid = _of_uuid(name, cards) if name.startswith(_UUID) else _of_number(name, cards)
        if uuid is None:
            break
        if uuid in found.values():
            return {}
        found[name] = uuid
    return found


def hides_all(chosen: str | None) -> bool:
    """Whether whoever set CUDA_VISIBLE_DEVICES meant no GPU: it is empty, or begins with -1 or a word, as SLURM's."""
    return chosen is not None and not chosen.strip().startswith((*"0123456789+", *_UUID))


def _of_number(name: str, cards: Sequence[Card]) -> str | None:
    """CUDA reads the digits that an entry begins with."""
    digits = _NUMBER.match(name)
    number = int(digits[0]) if digits else len(cards)
    return cards[number].device if number < len(cards) else None


def _of_uuid(beginning: str, cards: Sequence[Card]) -> str | None:
    """A UUID may be cut short as long as it means one device."""
    named = [(card.uuid, card.uuid) for card in cards if card.parts is None]
    named += [(name, part.uuid) for card in cards for part in card.parts or () for name in (part.uuid, part.old_name)]
    meant = {uuid for name, uuid in named if name.startswith(beginning)}
    return meant.pop() if len(meant) == 1 else None
