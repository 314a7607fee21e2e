"""Headless Chromium, and the playground as somebody before it sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import tool, wait_until

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whoever asks another host gets nothing
)


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser. Skips or fails without one. folder: for its log."""
    options = Options()
    options.binary_location = str(tool("chromium", "chromium"))
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(str(tool("chromedriver", "chromium-driver")), log_output=str(folder / "chromedriver.log"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The playground in a browser's window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> Page:
        self.driver.get(f"{url}/playground")
        return self

    def look(self, width: int = 1200, *, height: int = 900, scheme: str = "light") -> Page:
        """Be as wide as this, in CSS pixels; below 600 with a phone's touch screen."""
        is_phone = width < 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return self

    def find(self, name: str) -> WebElement:
        """The element with an id."""
        return self.driver.find_element(By.ID, name)

    def fill(self, **fields: object) -> Page:
        """Type into fields."""
        for name, text in fields.items():
            self.find(name).clear()
            self.find(name).send_keys(str(text))
        return self

    def submit(self, prompt: str, **fields: object) -> Page:
        self.fill(prompt=prompt, **fields).find("submit").click()
        return self

    def press(self, *keys: str, held: str | None = None) -> None:
        """Press keys, whatever has the focus; all while another one is held."""
        chain = ActionChains(self.driver)
        if held:
            chain.key_down(held)
        chain.send_keys(*keys)
        if held:
            chain.key_up(held)
        chain.perform()

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script)

    def text(self, name: str) -> str:
        """An element's text to the letter, also where it is hidden."""
        found: str = self.run(f"return document.getElementById({name!r}).textContent")
        return found

    @property
    def state(self) -> str:
        return self.text("state")

    @property
    def focus(self) -> str:
        """The id of what has the focus."""
        found: str = self.run("return document.activeElement.id")
        return found

    @property
    def facts(self) -> dict[str, str]:
        """What the page says of the job."""
        pairs = "[...document.querySelectorAll('#facts > div')].map(one => [...one.children].map(c => c.textContent))"
        return dict(self.run(f"return {pairs}"))

    @property
    def listed(self) -> list[str]:
        """The states of the jobs in the list."""
        found: list[str] = self.run("return [...document.querySelectorAll('#list .state')].map(one => one.textContent)")
        return found

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        found: int = self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found

    def wait_state(self, state: str) -> None:
        wait_until(lambda: self.state == state, why=f"the page to say {state}")

    def wait_text(self, name: str, part: str) -> None:
        wait_until(lambda: part in self.text(name), why=f"{part!r} in {name}")

    def complaints(self) -> list[str]:
        """What went wrong inside since the last time: errors of scripts, and what the content policy refused."""
        # That an answer was an error, or did not come, the browser says by itself; what the page does of it is tested.
        log: Any = self.driver.get_log
        return [one["message"] for one in log("browser") if "Failed to load resource" not in one["message"]]
