"""Build the site into ``build/docs/site``, without a network: ``python -m docs.site``; ``--serve`` shows it, too.

Fails on whatever zensical warns of. ``tests/docs`` looks at every link of what comes out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from docs.site import pages, reference
from docs.site.serve import PORT, server

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


def main() -> None:
    """Build, print where, and with --serve answer at 127.0.0.1 until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m docs.site", description="Build the documentation's site.")
    parser.add_argument("--serve", action="store_true", help=f"show it at http://127.0.0.1:{PORT} until Ctrl-C")
    is_served = parser.parse_args().serve
    folder = build(ROOT / "build" / "docs")
    print(folder / "index.html")
    if is_served:
        with server(folder) as serving, suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{serving.server_port}   (Ctrl-C stops it)", flush=True)
            serving.serve_forever()


if __name__ == "__main__":
    main()
