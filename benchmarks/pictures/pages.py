"""Flower and the playground as headless Chromium shows them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from selenium import webdriver

from tests.browser import Page, chromium
from tests.commands import Up
from tests.conftest import wait_until

COLOURS = 128  # a page has few; so it weighs a third
PROMPT = "Once upon a time there was a goat"


def write_pages(up: Up, out: Path, folder: Path) -> None:
    """Take them. folder: for the browser's log."""
    with chromium(folder) as browser:
        page = Page(browser)
        page.look(1100, height=860).open(up.ready["api_url"])
        page.submit(PROMPT, max_tokens=80)
        page.wait_state("succeeded")
        _save(browser, out / "playground.png")
        page.look(1280, height=720)
        flower = up.ready["flower_url"]
        browser.get(f"{flower}/tasks")
        _wait_for(browser, "#tasks-table tbody td.text-nowrap")
        _save(browser, out / "flower-tasks.png")
        browser.get(f"{flower}/workers")
        _wait_for(browser, "#workers-table tbody .badge")
        _save(browser, out / "flower-workers.png")


def _wait_for(browser: webdriver.Chrome, selector: str) -> None:
    script = f"return document.querySelectorAll({selector!r}).length"
    wait_until(lambda: browser.execute_script(script), why=f"{selector} on {browser.current_url}")


def _save(browser: webdriver.Chrome, path: Path) -> None:
    whole = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
