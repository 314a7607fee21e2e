"""The playground in a browser: what somebody who has never seen the farm can do there, with eyes, thumbs or keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.keys import Keys

from api.routes.playground import FILES
from farm import keys
from farm.ledger.jobs import Jobs
from farm.settings import Settings
from tests.api.conftest import Serve, submit
from tests.browser import Page
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of

FOLDER = Path(__file__).parents[2] / "api" / "playground"
NO_WORKER = "Accepted, waiting for a worker; start one with: farm worker"


async def test_the_page_is_its_own_files(web: httpx2.AsyncClient) -> None:
    """All files of the page are served, are asked for anew by their tags, and name no other host; nothing else is."""
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)
    page = await web.get("/playground")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))
    assert linked == {"docs", "playground/icon.svg", "playground/style.css", "playground/app.js"}
    for name in FILES.keys() - {"index.html"}:
        answer = await web.get(f"/playground/{name}")
        assert answer.status_code == 200, name
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "//" not in re.sub(r"(?m)(^|\s)//.*$|http://www.w3.org/2000/svg", "", answer.text), name
        again = await web.get(f"/playground/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("index.html", "x.js", "..%2fapp.py", "__init__.py"):
        assert (await web.get(f"/playground/{name}")).status_code == 404, name


async def test_the_address_alone_leads_to_the_page(web: httpx2.AsyncClient) -> None:
    """Whoever opens the server's address in a browser gets the playground."""
    answer = await web.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "playground")


def test_a_prompt_becomes_text(serve: Serve, hand: Farmhand, page: Page) -> None:
    """The text comes piece by piece after its prompt, to the letter; then the page says what the job took."""
    hand.tokens_per_beat = 1
    with serve() as api, hand:
        page.open(api.url)
        assert page.text("said").startswith("Nothing here yet")
        page.submit("A goat", max_tokens=300)
        page.wait_text("text", "goat40")
        assert page.state == "running"
        assert text_of("A goat", 300).startswith(page.text("text"))
        wait_until(lambda: {"Worker", "Attempt", "Tokens/s"} <= page.facts.keys(), why="worker, attempt and pace")
        page.wait_state("succeeded")
        assert page.text("asked") == "A goat"
        assert page.text("text") == text_of("A goat", 300)
        facts = page.facts
        assert re.fullmatch(r"Succeeded with 300 tokens after [\d.]+ s\.", page.text("said"))
        assert facts["Worker"].startswith("hand-")
        assert facts["Usage"] == "1 + 300 = 301 tokens"
        assert (facts["Attempt"], facts["Tokens"], facts["Ended by"]) == ("1", "300", "length")
        assert float(facts["Tokens/s"]) > 0
        assert re.fullmatch(r"\d+\.\d{3} s", facts["First token"])
        assert not page.find("cancel").is_displayed()


def test_all_fields_reach_the_farm(serve: Serve, jobs: Jobs, page: Page) -> None:
    """What is typed is what is asked for, to the last digit; what is left empty is left to the farm."""
    with serve() as api:
        page.open(api.url).find("more").click()
        page.fill(max_tokens=5, temperature="0.25", seed=2**63 - 1, stop="one\n\\n\\\\")
        page.find("priority").send_keys("low")
        page.submit("Zoë’s goat\nsaid")
        page.wait_state("queued")
        asked = json.loads(str(jobs.client.hget(keys.job(page.facts["Id"]), "request")))
    assert asked == {
        "prompt": "Zoë’s goat\nsaid",
        "max_tokens": 5,
        "temperature": 0.25,
        "seed": 2**63 - 1,
        "stop": ["one", "\n\\"],
        "priority": "low",
    }


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_job_is_cancelled(serve: Serve, hand: Farmhand, jobs: Jobs, page: Page, how: str) -> None:
    """A button, or Esc wherever the focus is, ends the job that is shown; its text so far stays."""
    hand.tokens_per_beat = 1
    with serve() as api, hand:
        page.open(api.url).submit("A goat", max_tokens=2_000)
        page.wait_text("text", "goat5")
        if how == "button":
            page.find("cancel").click()
        else:
            page.press(Keys.ESCAPE)
        page.wait_state("cancelled")
        view = jobs.view(page.facts["Id"])
        assert view.state == "cancelled"
        wait_until(lambda: page.text("text") == view.text, why="the text that was kept")


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("prompt", "", "prompt: is empty"),
        ("max_tokens", "0", "max_tokens: 0 is out of range; give at least 1"),
        ("max_tokens", "many", "max_tokens: 'many' is of the wrong kind; give a whole number"),
        ("temperature", "0,7", "temperature: '0,7' is of the wrong kind; give a number"),
        ("seed", "-1", "seed: -1 is out of range; give at least 0"),
        ("stop", "a\nb\nc\nd\ne", "stop: 5 are too many; at most 4 are allowed"),
    ],
)
def test_a_bad_field_says_so(serve: Serve, page: Page, field: str, text: str, says: str) -> None:
    """The farm's complaint stands at its field, which has the focus and is seen; typing there takes it away."""
    with serve() as api:
        page.open(api.url)
        page.run("document.getElementById('more').open = true")
        page.fill(**{"prompt": "A goat", field: text})
        page.run("document.getElementById('more').open = false")
        page.find("submit").click()
        page.wait_text(f"{field}-error", says)
        assert page.focus == field
        assert page.find(field).is_displayed()
        assert page.find(field).get_attribute("aria-invalid") == "true"
        assert f"{field}-error" in str(page.find(field).get_attribute("aria-describedby"))
        assert page.find(f"{field}-error").get_attribute("role") == "alert"
        page.press("1")
        assert page.text(f"{field}-error") == ""
        assert page.find(field).get_attribute("aria-invalid") is None
        assert page.state == ""


def test_a_job_that_waits_says_for_what(serve: Serve, hand: Farmhand, jobs: Jobs, page: Page) -> None:
    """Without a worker the page shows the place in line and how to start one; with one the job goes on by itself."""
    with serve() as api:
        for _ in range(2):
            submit(jobs)
        page.open(api.url).submit("A goat", max_tokens=4)
        page.wait_text("notice", NO_WORKER)
        assert page.find("notice").is_displayed()
        assert (page.state, page.text("said")) == ("queued", "Queued, number 3 in line.")
        assert (page.facts["Position"], page.facts["Done in about"]) == ("3", "not known yet")
        assert "tiny-bloom (no worker)" in page.text("model")
        with hand:
            page.wait_state("succeeded")
        assert page.text("text") == text_of("A goat", 4)
        assert not page.find("notice").is_displayed()


def test_a_failed_job_says_why(serve: Serve, api_settings: Settings, page: Page) -> None:
    """The error of a job that failed stands under its text."""
    with serve() as api, Farmhand(api_settings, fail_prompts=frozenset({"A wolf"})):
        page.open(api.url).submit("A wolf", max_tokens=4)
        page.wait_state("failed")
        assert page.text("fault") == "the model said no (model_error)"


def test_markup_in_a_text_is_text(serve: Serve, hand: Farmhand, page: Page) -> None:
    """HTML that a model wrote, or that somebody asked with, is shown as it is and does nothing."""
    with serve() as api, hand:
        page.open(api.url).submit("<b>x</b>", max_tokens=3)
        page.wait_state("succeeded")
        assert page.text("text") == text_of("<b>x</b>", 3)
        assert page.find("output").text.startswith("<b>x</b> <b>x</b>0")
        assert page.run("return document.querySelectorAll('b').length") == 0
        with pytest.raises(JavascriptException, match="TrustedHTML"):  # not even a script of the page's own could
            page.run("document.body.insertAdjacentHTML('beforeend', '<b>x</b>')")
        page.complaints()


def test_the_last_jobs_can_be_opened_again(serve: Serve, hand: Farmhand, page: Page) -> None:
    """Jobs of the tab stay in a list, also after a reload; one that still runs goes on where it is."""
    with serve() as api, hand:
        page.open(api.url).submit("A hen", max_tokens=6)
        page.wait_state("succeeded")
        hand.tokens_per_beat = 1
        page.submit("A goat", max_tokens=2_000)
        page.wait_text("text", "goat5")
        page.run("document.querySelectorAll('#list button')[1].click()")
        wait_until(lambda: page.text("text") == text_of("A hen", 6), why="the other job")
        assert (page.state, page.text("asked")) == ("succeeded", "A hen")
        page.driver.refresh()
        wait_until(lambda: page.listed == ["running", "succeeded"], why="the list")
        page.run("document.querySelectorAll('#list button')[0].click()")
        page.wait_text("text", "goat20")
        assert page.state == "running"
        assert text_of("A goat", 2_000).startswith(page.text("text"))
        page.press(Keys.ESCAPE)
        page.wait_state("cancelled")
        assert page.listed == ["cancelled", "succeeded"]


def test_keys_alone_do(serve: Serve, hand: Farmhand, page: Page) -> None:
    """Without a mouse: to the prompt, submit, cancel, and back to an earlier job; the focus is always seen."""
    hand.tokens_per_beat = 1
    with serve() as api, hand:
        page.open(api.url)
        page.press(Keys.TAB, Keys.TAB)
        assert page.focus == "prompt"
        page.press("A goat", Keys.TAB, Keys.TAB, "2000")
        page.press(Keys.ENTER, held=Keys.CONTROL)
        page.wait_text("text", "goat5")
        page.press(Keys.ESCAPE)
        page.wait_state("cancelled")
        assert page.focus == "max_tokens"
        seen = []
        while not (job := page.run("return document.activeElement.dataset.job")):
            page.press(Keys.TAB)
            seen.append(page.focus)
            outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", page.focus
            assert len(seen) < 12, seen
        assert {"temperature", "submit", "output"} <= set(seen)
        page.press(Keys.ENTER)
        page.wait_state("cancelled")
        assert page.facts["Id"] == job


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(serve: Serve, hand: Farmhand, page: Page, width: int) -> None:
    """With a long word, errors, all fields and a list, nothing scrolls sideways; what is touched fits a thumb."""
    with serve() as api, hand:
        page.look(width).open(api.url)
        assert page.overflow == 0
        page.run("document.getElementById('more').open = true")
        page.submit("A" * 300, max_tokens="x" * 80)
        page.wait_text("max_tokens-error", "wrong kind")
        assert page.overflow == 0
        page.submit("A" * 300, max_tokens=50)
        page.wait_state("succeeded")
        assert page.overflow == 0
        for name in ("submit", "prompt", "model", "temperature"):
            assert page.find(name).size["height"] >= 44, name


def test_dark_and_light_follow_the_reader(serve: Serve, page: Page) -> None:
    """The page is dark where the reader's other windows are."""
    shade = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    with serve() as api:
        assert page.look(scheme="dark").open(api.url).run(shade) < 150
        assert page.look(scheme="light").run(shade) > 600


def test_a_farm_that_wants_keys_asks_for_one(
    serve: Serve, hand: Farmhand, page: Page, key: Callable[..., dict[str, str]]
) -> None:
    """The page asks for a key only then, says when it is refused, keeps it in the tab alone, and forgets it if told."""
    secret = key("ann")["Authorization"].removeprefix("Bearer ")
    with serve(keys="local") as api:
        page.open(api.url)
        page.wait_text("model", "tiny-bloom")
        assert not page.find("key-form").is_displayed()
    with serve(keys="required") as api, hand:
        page.open(api.url)
        wait_until(lambda: page.focus == "key", why="the question for a key")
        page.fill(key="no key").press(Keys.ENTER)
        page.wait_text("key-error", "This is no key")
        page.fill(key="bf_" + "x" * 43).press(Keys.ENTER)
        page.wait_text("key-error", "this key is unknown or was revoked")
        assert page.focus == "key"
        page.fill(key=secret).press(Keys.ENTER)
        wait_until(lambda: page.focus == "prompt", why="the prompt")
        page.submit("A goat", max_tokens=4)
        page.wait_state("succeeded")
        assert page.text("text") == text_of("A goat", 4)
        assert secret not in page.driver.page_source + page.driver.current_url
        assert page.run("return localStorage.length + document.cookie.length") == 0
        page.driver.refresh()
        page.wait_text("model", "tiny-bloom")
        assert not page.find("key-form").is_displayed()
        page.find("forget").click()
        wait_until(lambda: page.focus == "key", why="the question for a key")
        assert secret not in page.run("return JSON.stringify(sessionStorage)")
