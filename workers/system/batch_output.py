"""What a batch writes: parts, while it runs, and of these two files at its end. Each appears whole or not at all.

A part is written before the ledger hears of it. Its name holds the nonce of whoever wrote it, so that a driver that was
given up and wakes again can't touch what counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

from farm.file_store import Store, store_errors
from farm.ledger.driving import Drive, Product
from farm.ledger.trash import Trash

Role = Literal["output", "error"]
ROLES: tuple[Role, ...] = get_args(Role)
COPY_BYTES = 1 << 20
FULL_BYTES = 4 << 20
FULL_RECORDS = 1_000


class Output:
    """What is to be written of one batch."""

    def __init__(self, store: Store, drive: Drive) -> None:
        self._store = store
        self._drive = drive
        self._waiting: dict[Role, list[bytes]] = {role: [] for role in ROLES}
        self._bytes = 0

    @property
    def records(self) -> int:
        """How many wait to be written."""
        return sum(map(len, self._waiting.values()))

    @property
    def is_full(self) -> bool:
        """Whether it is time to write a part."""
        return self._bytes >= FULL_BYTES or self.records >= FULL_RECORDS

    def add(self, role: Role, record: dict[str, Any]) -> None:
        """Have a record stand in the next part."""
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self._waiting[role].append(line)
        self._bytes += len(line)

    def write_parts(self) -> list[str]:
        """Write what waits. Returns the names of the parts, which count once they are in the ledger."""
        names = []
        for role, records in self._waiting.items():
            if records:
                name = f"{role}-{self._drive.step + 1:06}-{self._drive.nonce}.jsonl"
                with self._store.writer(self._drive.folder + name) as writer:
                    writer.write(b"".join(records))
                    writer.commit()
                records.clear()
                names.append(name)
        self._bytes = 0
        return names

    def assemble(self, trash: Trash, check: Callable[[], None]) -> list[Product]:
        """Write the files that the batch leaves behind, out of all parts. check: called for each part; may raise."""
        products = []
        for role in ROLES:
            names = [name for name in self._drive.parts if name.startswith(f"{role}-")]
            if names:
                path = f"files/{self._drive.file_id(role)}-{self._drive.nonce}"
                trash.announce(path)
                products.append(Product(role, path, self._join(names, path, check)))
        return products

    def _join(self, names: list[str], path: str, check: Callable[[], None]) -> int:
        size = 0
        with self._store.writer(path) as writer:
            for name in names:
                check()
                with self._store.reader(self._drive.folder + name) as part, store_errors():
                    while piece := part.read(COPY_BYTES):
                        writer.write(piece)
                        size += len(piece)
            writer.commit()
        return size
