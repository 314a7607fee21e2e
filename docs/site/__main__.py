"""Build the site into ``build/docs/site``, without a network: ``python -m docs.site``.

Fails on whatever zensical warns of. ``tests/docs`` looks at every link of what comes out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from docs.site import pages, reference

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("zensical.toml")


def build(target: Path) -> Path:
    """Build below ``target``; returns the folder that holds index.html. Raises CalledProcessError."""
    shutil.rmtree(target, ignore_errors=True)
    folder = target / "pages"
    pages.copy(ROOT, folder)
    for name, text in reference.pages().items():
        path = folder / "reference" / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (target / CONFIG.name).write_text(config(folder), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(target / CONFIG.name)]
    subprocess.run(command, check=True, cwd=target)
    return target / "site"


def config(folder: Path) -> str:
    """What zensical is told, with the navigation's stars replaced by pages of ``folder``."""
    text = CONFIG.read_text(encoding="utf-8").replace('paths = ["../.."]', f'paths = ["{ROOT}"]')
    pages = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))
    left = [page for page in pages if f'"{page}"' not in text]

    def expand(found: re.Match[str]) -> str:
        taken = [page for page in left if fnmatch(page, found[1])]
        left[:] = [page for page in left if page not in taken]
        return "".join(f'    "{page}",\n' for page in taken)

    text = re.sub(r'^    "([^"]*\*[^"]*)",\n', expand, text, flags=re.MULTILINE)
    return re.sub(r'^  \{ "[^"]*" = \[\n  \] \},\n', "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    print(build(ROOT / "build" / "docs") / "index.html")
