"""The playground while an API, a worker or a model goes away: the text that is shown stays whole."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from uuid import UUID

from selenium.webdriver.common.keys import Keys

from farm.ledger.jobs import Jobs
from farm.ledger.listing import list_jobs
from farm.ledger.records import ModelFacts
from farm.settings import Settings
from tests.api.conftest import Serve, serving
from tests.api.test_serve import api_process
from tests.browser import Page
from tests.conftest import wait_until
from tests.farmhand import VOCAB, Farmhand, text_of


def test_a_stream_goes_on_after_the_api_was_killed(
    api_settings: Settings, hand: Farmhand, page: Page, tmp_path: Path
) -> None:
    """kill -9: the page says that it was cut off, comes back by itself, and no piece is missing or there twice."""
    hand.tokens_per_beat = 1
    whole = text_of("A goat", 2_000)
    with hand:
        with api_process(api_settings, tmp_path) as api:
            page.open(api.url).submit("A goat", max_tokens=2_000)
            page.wait_text("text", "goat40")
            hand.tokens_per_beat = 0
            api.stop(signal.SIGKILL)
            page.wait_text("notice", "The connection was lost; trying again in")
            before = page.text("text")
        with api_process(api_settings, tmp_path, API__PORT=int(api.url.rpartition(":")[2])):
            hand.tokens_per_beat = 1
            wait_until(lambda: len(page.text("text")) > len(before) + 200, why="the text to go on")
            text = page.text("text")
            assert page.state == "running"
            assert whole.startswith(text)
            assert not page.find("notice").is_displayed()
            hand.tokens_per_beat = 1_000_000
            page.wait_state("succeeded")
            assert page.text("text") == whole


def test_a_stream_goes_on_at_the_next_server(api_settings: Settings, hand: Farmhand, page: Page) -> None:
    """A server that stops sends its streams on: a page that is open during an update only stands still for a moment."""
    hand.tokens_per_beat = 1
    with hand:
        with serving(api_settings) as api:
            page.open(api.url).submit("A goat", max_tokens=2_000)
            page.wait_text("text", "goat40")
            hand.tokens_per_beat = 0
        with serving(api_settings, int(api.url.rpartition(":")[2])):
            hand.tokens_per_beat = 1
            page.wait_text("text", f"goat{int(page.facts['Tokens']) + 40} ")
            assert text_of("A goat", 2_000).startswith(page.text("text"))
            page.press(Keys.ESCAPE)
            page.wait_state("cancelled")


def test_a_prompt_waits_for_an_api_that_is_away(api_settings: Settings, hand: Farmhand, jobs: Jobs, page: Page) -> None:
    """What nobody answers is sent again under one idempotency key, until it is accepted once or Esc is pressed."""
    with serving(api_settings) as api:
        page.open(api.url)
    page.submit("A hen", max_tokens=4)
    page.wait_text("form-error", "The farm does not answer; trying again in")
    page.press(Keys.ESCAPE)
    wait_until(lambda: page.text("form-error") == "", why="the page to give up")
    page.submit("A goat", max_tokens=4)
    page.wait_text("form-error", "The farm does not answer; trying again in")
    with serving(api_settings, int(api.url.rpartition(":")[2])), hand:
        page.wait_state("succeeded")
        assert page.text("text") == text_of("A goat", 4)
    assert [view.id for view in list_jobs(jobs, "default").views] == [page.facts["Id"]]
    assert UUID(page.facts["Id"]).version == 5


def test_a_lost_worker_is_told(serve: Serve, api_settings: Settings, page: Page) -> None:
    """When a worker dies, the next one goes on in the same text, and the page says what happened."""
    with serve() as api:
        page.open(api.url).submit("A goat", max_tokens=30)
        with Farmhand(api_settings, name="first", tokens_per_beat=1, die_at=10) as first:
            wait_until(lambda: not first.is_alive, why="the first worker to die")
        with Farmhand(api_settings, name="second", tokens_per_beat=1):
            page.wait_state("succeeded")
        assert page.text("text") == text_of("A goat", 30)
        assert page.facts["Attempt"] == "2"
        assert page.facts["Worker"].startswith("second-")
        assert re.match(r"Attempt 1 on first-\w+: \d+ tokens, then ", page.text("past"))


def test_a_changed_model_begins_the_text_anew(serve: Serve, api_settings: Settings, page: Page) -> None:
    """When the model was changed under a job, its text so far goes, and the other revision's is shown whole."""
    with serve() as api:
        page.open(api.url).submit("A goat", max_tokens=30)
        with Farmhand(api_settings, name="old", tokens_per_beat=1, die_at=10) as old:
            wait_until(lambda: not old.is_alive, why="the first worker to die")
        wait_until(lambda: page.text("text"), why="some text")
        other = ModelFacts("tiny-bloom", 2_048, VOCAB, "another", "")
        with Farmhand(api_settings, name="new", tokens_per_beat=1, facts=other):
            page.wait_state("succeeded")
        assert page.text("text") == text_of("A goat", 30)
