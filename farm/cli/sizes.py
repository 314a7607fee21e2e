"""Sizes and lists of devices as people write them: ``16GiB``, ``4x16GiB``, ``16GiB,24GiB``."""

from __future__ import annotations

import re

from farm.errors import InvalidRequest

MAX_DEVICES = 256
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]i?)?b", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, option: str) -> int:
    """Bytes of a size: ``80GB`` is in powers of 1,000, ``80GiB`` of 1,024. Raises InvalidRequest for ``option``."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(option, f"{text!r} is no size; write it like 16GiB, 80GB or 512MiB")
    unit = (found[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** _POWERS[unit.rstrip("i")])


def parse_devices(text: str, option: str) -> list[int]:
    """Bytes of each device of a list. Raises InvalidRequest for ``option``."""
    sizes: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(?:(\d{1,9})\s*[x×]\s*)?(\S+?)\s*", part, re.IGNORECASE)
        size = _SIZE.fullmatch(found[2]) if found else None
        count = int(found[1] or 1) if found else 0
        if found is None or size is None:
            raise InvalidRequest(
                option, f"{part.strip()!r} names no devices; write them like 4x16GiB, 16GiB,24GiB or 80GB"
            )
        if not 1 <= len(sizes) + count <= MAX_DEVICES or count == 0:
            raise InvalidRequest(option, f"{text!r} is {len(sizes) + count:,} devices; give 1 to {MAX_DEVICES}")
        sizes += [parse_size(found[2], option)] * count
    if 0 in sizes:
        raise InvalidRequest(option, f"{text!r} has a device without memory; write them like 4x16GiB")
    return sizes
