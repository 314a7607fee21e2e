"""The pictures of README and docs, as they were committed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "docs" / "pictures").iterdir())
TEXTS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_light_and_shown(path: Path) -> None:
    """Each picture is smaller than 150 kB, some page shows it, and a drawing asks no other host for anything."""
    assert path.stat().st_size < 150_000
    assert any(f"pictures/{path.name}" in text.read_text(encoding="utf-8") for text in TEXTS)
    if path.suffix == ".svg":
        drawn = path.read_text(encoding="utf-8")
        assert not re.search(r"""(href|src)=["']https?:|url\(["']?https?:|<script""", drawn)


def test_every_picture_is_there() -> None:
    """No page shows a picture that is not there, and each has a description."""
    found = 0
    for text in TEXTS:
        for match in re.finditer(r"!\[(?P<alt>[^]]*)\]\((?P<path>[^)]+)\)", text.read_text(encoding="utf-8")):
            assert (text.parent / match["path"]).exists(), f"{match['path']} in {text.name}"
            assert len(match["alt"]) > 5
            found += 1
    assert found >= 4
