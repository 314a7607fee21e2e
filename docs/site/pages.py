"""The pages of docs/ as the site has them: links to files beside docs/ become those files' names.

In a checkout such a link leads to the file; the site has no source files. Pictures come along.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_IMAGE = re.compile(r'(<img src=")([^"]+)(")')
_FENCE = re.compile(r"^(```|    )")
PICTURES = (".svg", ".png")


def copy(root: Path, folder: Path) -> None:
    """Copy the pages of ``root``/docs, and README.md as the first of them."""
    for page in sorted((root / "docs").rglob("*.md")):
        _write(root, page, folder / page.relative_to(root / "docs"), folder)
    _write(root, root / "README.md", folder / "index.md", folder)


def _write(root: Path, page: Path, target: Path, folder: Path) -> None:
    lines = page.read_text(encoding="utf-8").split("\n")
    text = "\n".join(
        line if _FENCE.match(line) else _LINK.sub(_mend(root, page, target, folder), line) for line in lines
    )
    for picture in {found[2] for found in _IMAGE.finditer(text)}:
        mended = _LINK.sub(_mend(root, page, target, folder), f"![]({picture})")
        text = text.replace(f'src="{picture}"', f'src="{mended[4:-1]}"')
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _mend(root: Path, page: Path, target: Path, folder: Path) -> Callable[[re.Match[str]], str]:
    """What a link of this page becomes."""

    def mended(found: re.Match[str]) -> str:
        is_picture, text, link = found[1], found[2], found[3]
        place, _, anchor = link.partition("#")
        if not place or "://" in link or link.startswith("mailto:"):
            return found[0]
        aim = (page.parent / place).resolve()
        if not aim.is_relative_to(root) or not aim.exists():
            return found[0]
        inside = aim.relative_to(root)
        if aim.suffix in PICTURES:
            copied = folder / "pictures" / aim.name
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(aim, copied)
            return f"{is_picture}[{text}]({os.path.relpath(copied, target.parent)})"
        if inside.parts[0] == "docs" and aim.suffix == ".md":
            there = folder / aim.relative_to(root / "docs")
            return f"[{text}]({os.path.relpath(there, target.parent)}{'#' + anchor if anchor else ''})"
        name = f"`{inside}`"
        return name if text.strip("`") == str(inside) or name in text else f"{text} ({name})"

    return mended
