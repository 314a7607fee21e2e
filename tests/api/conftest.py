"""Fixtures for tests of the REST API: the app in this process, and servers on ports of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from selenium import webdriver

from api.app import create_app
from api.serve import config_of
from api.service import Service
from farm.contracts import parse_request
from farm.ledger.jobs import Jobs
from farm.ledger.keyring import Keyring
from farm.listening import listen
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.openai_client import Client
from tests.browser import Page, chromium
from tests.conftest import wait_until
from tests.farmhand import Farmhand, quick

BASE = "http://127.0.0.1"
WEB = httpx2.Client(verify=False, timeout=30, limits=httpx2.Limits(max_keepalive_connections=0))


@dataclass
class Served:
    """An API that is served, and its inside."""

    url: str
    service: Service

    def listeners(self) -> int:
        """How many streams and long polls are open."""
        return len(self.service.news.listeners)


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """A farm whose API takes requests without a key, and whose dead workers are noticed soon."""
    return with_values(quick(settings), api={"keys": "local"})


@pytest.fixture
def hand(api_settings: Settings, jobs: Jobs) -> Farmhand:
    """A worker; start it with ``with``."""
    return Farmhand(api_settings)


@pytest.fixture
def key(jobs: Jobs) -> Callable[..., dict[str, str]]:
    """Make a key for a tenant; returns the headers that show it."""

    def make(tenant: str, **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {Keyring(jobs).create(tenant, **more).secret}"}

    return make


@pytest.fixture
async def web(api_settings: Settings, jobs: Jobs) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app in this process."""
    async with client_of(api_settings) as client:
        yield client


@pytest.fixture
async def keyed(api_settings: Settings, jobs: Jobs) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an app that wants keys."""
    async with client_of(with_values(api_settings, api={"keys": "required"})) as client:
        yield client


@pytest.fixture
def serve(api_settings: Settings, jobs: Jobs) -> Serve:
    """Serve the API over sockets, with changes to its settings."""
    return lambda **changes: serving(with_values(api_settings, api=changes))


@pytest.fixture
def openai_of(served: Served, key: Callable[..., dict[str, str]]) -> Iterator[Client]:
    """OpenAI's client, as it comes, for a tenant."""
    made: list[openai.OpenAI] = []

    def make(tenant: str = "ann", **more: Any) -> openai.OpenAI:
        secret = key(tenant, **more)["Authorization"].removeprefix("Bearer ")
        made.append(openai.OpenAI(base_url=f"{served.url}/v1", api_key=secret, max_retries=0))
        return made[-1]

    yield make
    for client in made:
        client.close()


class client_of:  # noqa: N801
    """A client of an app over some settings, while the block lasts."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_app(settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        transport = httpx2.ASGITransport(self._app, raise_app_exceptions=True)
        self._client = httpx2.AsyncClient(transport=transport, base_url=BASE, timeout=30)

    async def __aenter__(self) -> httpx2.AsyncClient:
        await self._lifespan.__aenter__()
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()
        await self._lifespan.__aexit__(None, None, None)


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[Served]:
    """The API behind uvicorn, in a thread: sockets, protocol and limits as in production."""
    with listen("127.0.0.1", port, "") as listener:
        app = create_app(settings)
        server = uvicorn.Server(config_of(settings, lambda: app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), why="the API to start")
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service)
        finally:
            server.should_exit = True
            thread.join(30)


def submit(jobs: Jobs, prompt: str = "A goat", **fields: object) -> str:
    """Submit a prompt behind the API's back; returns the job's id."""
    placed = jobs.place(parse_request({"prompt": prompt, **fields}))
    jobs.submit([placed])
    return placed.id


@dataclass
class Event:
    """One server-sent event."""

    id: str | None = None
    name: str = "message"
    data: str = ""


@dataclass
class Events:
    """A stream read to its end: its events, and how many comments stood between them."""

    events: list[Event] = field(default_factory=list)
    comments: int = 0

    def text(self) -> str:
        return "".join(json_of(event)["text"] for event in self.events if event.name in ("tokens", "end"))


def parse(lines: Iterator[str]) -> Iterator[Event | None]:
    """Events as a browser would see them; None for a comment."""
    event = Event()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if event.data:
                yield event
            event = Event()
        elif not name:
            yield None
        elif name == "id":
            event.id = value
        elif name == "event":
            event.name = value
        elif name == "data":
            event.data += value


def json_of(event: Event) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(event.data)
    return body


def follow(url: str, job_id: str, *, after: str | None = None, stop_at: int | None = None) -> Events:
    """Read a job's events until they end, or until so many events came."""
    headers = {} if after is None else {"Last-Event-ID": after}
    heard = Events()
    with WEB.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.status_code
        for event in parse(answer.iter_lines()):
            if event is None:
                heard.comments += 1
            else:
                heard.events.append(event)
                if len(heard.events) == stop_at:
                    break
    return heard


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """A window of a desk's size. At the end nothing may have gone wrong inside it."""
    page = Page(driver).look()
    yield page
    complaints = page.complaints()
    driver.get("about:blank")
    assert complaints == []
