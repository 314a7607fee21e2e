"""The documentation: all of it is on the site, every link leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import re
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import farm
from docs.site import __main__ as site
from docs.site import reference
from docs.site.serve import PORT, server
from farm import keys
from farm.settings import setting_names
from grafana import runbooks

ROOT = Path(__file__).parents[2]
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


@dataclass
class Read:
    """What matters of a built page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Collects a page's anchors, links and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Read()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.page.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.page.links.append(values["href"])
        if values.get(LOADED.get(tag, "")) and values.get("rel") != "canonical":
            self.page.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    return site.build(tmp_path_factory.mktemp("docs") / "docs")


@pytest.fixture(scope="module")
def read(built: Path) -> dict[Path, Read]:
    """What is in each page of it."""
    pages: dict[Path, Read] = {}
    for path in built.rglob("*.html"):
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        pages[path] = reader.page
    return pages


def test_every_link_and_anchor_leads_somewhere(built: Path, read: dict[Path, Read]) -> None:
    """Links between pages, to their headings and to pictures are whole, in the text and in the navigation."""
    assert len(read) > 20
    broken = []
    for path, page in read.items():
        if path.name == "404.html":  # its links begin at the root, wherever that will be
            continue
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            aim = aim / "index.html" if aim.is_dir() else aim
            anchor = unquote(parts.fragment)
            if not aim.exists() or (anchor and aim in read and anchor not in read[aim].ids):
                broken.append(f"{path.relative_to(built)}: {link}")
    assert broken == []


def test_links_of_alerts_and_dashboards_open(built: Path) -> None:
    """Every address that a rule or dashboard leads to answers where python -m docs.site --serve shows the site."""
    texts = [path.read_text(encoding="utf-8") for folder in ("json", "prometheus") for path in _below(folder)]
    links = {link for text in texts for link in re.findall(rf"{runbooks.docs_url()}/[\w./-]+", text)}
    assert len(links) > 15
    with server(built, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        for link in links:
            here = f"http://127.0.0.1:{serving.server_port}{link.removeprefix(runbooks.docs_url())}"
            with urllib.request.urlopen(here, timeout=10) as answer:
                assert "<h1" in answer.read().decode(), link
        serving.shutdown()
    assert f"http://127.0.0.1:{PORT}" == runbooks.LOCAL


def _below(folder: str) -> Iterator[Path]:
    return (path for path in (ROOT / "grafana" / folder).rglob("*") if path.suffix in (".json", ".yml"))


def test_nothing_is_loaded_from_another_host(built: Path, read: dict[Path, Read]) -> None:
    """Pages, their scripts' addresses and their styles name no other host, so that they work without a network."""
    assert [url for page in read.values() for url in page.loaded if urlsplit(url).netloc] == []
    for path in built.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_page_is_in_the_navigation(built: Path) -> None:
    """A page that is written can be found; one that is listed exists."""
    pages = built.parent / "pages"
    listed = list(_files(tomllib.loads(site.config(pages))["project"]["nav"]))
    assert sorted(listed) == sorted(str(path.relative_to(pages)) for path in pages.rglob("*.md"))
    assert {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} < set(listed)


def _files(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from _files(value if isinstance(value, list) else [value])


@pytest.mark.parametrize(
    "page", sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]), ids=lambda path: path.name
)
def test_links_of_a_checkout_lead_to_files(page: Path) -> None:
    """Read where it is written, each page's links lead to files of the repository."""
    text = re.sub(r"^(```.*?^```|    .*?)$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_the_reference_has_all_that_there_is(built: Path) -> None:
    """Every public name, setting, key, command and path of the API is described."""

    def has(page: str, *words: str) -> None:
        text = (built / "reference" / f"{page}.html").read_text(encoding="utf-8")
        assert [word for word in words if word not in text] == []

    has(
        "python",
        *(f'id="{home}.{name}"' for home, names in farm._HOMES.items() for name in names if name != "Settings"),
    )
    has("settings", *setting_names())
    has("keys", *(key.name.replace("<", "&lt;").replace(">", "&gt;") for key in keys.KEYS))
    has("cli", "farm dead retry", "farm keys create", "farm submit", "--stream")
    has("rest", "POST /v1/jobs", "GET /v1/jobs/{job_id}/events", "POST /v1/completions", "Last-Event-ID")


def test_settings_and_commands_are_explained() -> None:
    """No setting stands in the reference without a word about what it is."""
    rows = [line for line in reference.settings().splitlines() if line.startswith("| `FARM_")]
    assert [row for row in rows if row.endswith("|  |")] == []
