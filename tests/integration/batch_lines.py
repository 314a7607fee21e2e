"""Lines of a batch's files, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(path: Path, *lines: object) -> None:
    """Write lines: text and bytes as they are, all else as JSON."""
    with path.open("wb") as file:
        for line in lines:
            raw = (
                line
                if isinstance(line, bytes)
                else line.encode()
                if isinstance(line, str)
                else json.dumps(line).encode()
            )
            file.write(raw + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {record["custom_id"]: record for record in read(path)}


def short(number: int, tokens: int = 3) -> dict[str, object]:
    return {"custom_id": f"c{number}", "prompt": f"p{number}", "max_tokens": tokens}
