"""A batch's input: looked through once before its first line is run, then read from where it had come to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from farm.batch_lines import numbered_lines, peek
from farm.file_store import store_errors
from farm.ledger.driving import Progress, Ranges
from workers.system.tally import ranges_of


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a file: lines that are not blank, those that repeat a custom_id, the first model that is named."""

    total: int
    repeats: Ranges
    model: str


def survey(file: BinaryIO, most_lines: int, most_bytes: int, check: Callable[[], None]) -> Survey:
    """Look through a file; stops behind ``most_lines``. check: called now and then, and may raise."""
    seen: set[bytes] = set()
    repeats: list[int] = []
    total, model = 0, ""
    for number, raw, _ in lines(file, Progress(), most_bytes):
        total += 1
        if total > most_lines:
            break
        if total % 100 == 0:
            check()
        custom_id, named = peek(raw)
        model = model or named or ""
        if custom_id is not None:
            digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                repeats.append(number)
            seen.add(digest)
    return Survey(total, ranges_of(repeats), model)


def lines(file: BinaryIO, progress: Progress, most_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number, content and end of each line that is not settled or comes after such a one. None: it is too long."""
    with store_errors():
        file.seek(progress.offset)
    found = numbered_lines(file, progress.next_line - 1, most_bytes)
    while True:
        with store_errors():
            item = next(found, None)
            if item is None:
                return
            end = file.tell()
        yield *item, end
