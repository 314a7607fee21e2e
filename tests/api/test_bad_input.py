"""What strangers send: each is told what is wrong and where, and nothing of it is enqueued."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import httpx2
import pytest

from farm import keys
from farm.ledger.jobs import Jobs
from farm.ledger.records import entry
from tests.api.conftest import WEB, Serve, Served, submit
from tests.conftest import wait_until

JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 100_000 + b"]" * 100_000


def one(**fields: object) -> bytes:
    return json.dumps({"prompt": "x", **fields}).encode()


BODIES: list[tuple[bytes, int, str | None]] = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b"null", 400, "body"),
    (b"7", 400, "body"),
    (b'"prompt"', 400, "body"),
    (b"{}", 400, "prompt"),
    (b'{"prompt": "\xff\xfe"}', 400, "body"),
    (b'{"prompt": "\\ud800"}', 400, "body"),
    (b'{"prompt": "x", "temperature": NaN}', 400, "body"),
    (b'{"prompt": "x", "temperature": 1e999}', 400, "body"),
    (b'{"prompt": "x", "temperature": 1e300}', 400, "temperature"),
    (b'{"prompt": "x", "seed": %d}' % 10**400, 400, "body"),
    (b'{"prompt": "x", "seed": %d}' % 2**64, 400, "seed"),
    (one(top_k=2**31), 400, "top_k"),
    (one(max_tokens=0), 400, "max_tokens"),
    (one(max_tokens="5"), 400, "max_tokens"),
    (one(max_tokens=True), 400, "max_tokens"),
    (one(stop_token_ids=[2**63]), 400, "stop_token_ids"),
    (one(max_token=5), 400, "max_token"),
    (one(model="gpt-4"), 400, "model"),
    (one(model="///"), 400, "model"),
    (one(prompt=None), 400, "prompt"),
    (one(prompt=""), 400, "prompt"),
    (one(prompt=[]), 400, "prompt"),
    (one(prompt=[-1]), 400, "prompt"),
    (one(prompt=[1.5]), 400, "prompt"),
    (one(prompt={"a": 1}), 400, "prompt"),
    (one(metadata={"k": 1}), 400, "metadata"),
    (one(metadata={"k" * 65: "v"}), 400, "metadata"),
    (one(priority="urgent"), 400, "priority"),
    (one(deadline_s=-1), 400, "deadline_s"),
    (one(stop=["x"] * 5), 400, "stop"),
    (one(metadata=[[[[[[[[[[[1]]]]]]]]]]]), 400, "body"),
    (DEEP, 400, "body"),
    (b'{"prompt": ' + DEEP + b"}", 400, "body"),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400, "body"),
    (one(prompt="x" * 2_000_000), 413, "body"),
    (one(**{"x" * 100_000: 1}), 400, "x" * 57 + "..."),
]


@pytest.mark.parametrize(("body", "status", "param"), BODIES, ids=range(len(BODIES)))
async def test_a_bad_body_is_refused_by_name(
    web: httpx2.AsyncClient, jobs: Jobs, body: bytes, status: int, param: str | None
) -> None:
    """The field is named, the answer is short, and there is no job."""
    answer = await web.post("/v1/jobs", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text[:300]
    assert len(answer.content) < 1_000
    assert jobs.client.keys(keys.job("*")) == []


async def test_a_defect_is_told_and_logged_without_a_word_of_it(
    web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    """What nobody foresaw is a 500 with an id, under which the log says where; what was said is in neither."""

    def broken(values: dict[str, str]) -> None:
        raise RuntimeError(values["prompt"])

    monkeypatch.setattr("api.admission.parse_request", broken)
    answer = await web.post("/v1/jobs", json={"prompt": "Xyzzy"}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    logged = caplog.text + "".join(capsys.readouterr())
    assert "mine" in logged
    assert "RuntimeError" in logged
    assert "admission.py" in logged
    assert "Xyzzy" not in logged + answer.text


async def test_null_bytes_are_text(web: httpx2.AsyncClient) -> None:
    """A null byte is a character like any other to JSON, to the ledger and back."""
    answer = await web.post("/v1/jobs", json={"prompt": "a\0b", "metadata": {"k\0": "\0"}})
    assert answer.status_code == 202
    assert (await web.get(answer.json()["urls"]["get"])).json()["metadata"] == {"k\0": "\0"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "param"),
    [
        ("GET", "/v1/jobs?limit=0", {}, 400, "limit"),
        ("GET", "/v1/jobs?limit=101", {}, 400, "limit"),
        ("GET", "/v1/jobs?limit=x", {}, 400, "limit"),
        ("GET", "/v1/jobs?limit=%C2%B2", {}, 400, "limit"),
        ("GET", "/v1/jobs?state=done", {}, 400, "state"),
        ("GET", "/v1/jobs?after=x", {}, 400, "after"),
        ("GET", "/v1/jobs?limit=1&limit=2", {}, 400, "limit"),
        ("GET", "/v1/jobs?offset=1", {}, 400, "offset"),
        ("GET", "/v1/jobs?%ff=1", {}, 400, "query"),
        ("GET", "/v1/jobs?" + "&".join(f"a{n}=1" for n in range(100)), {}, 400, "query"),
        ("GET", "/v1/jobs/x?wait=61", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=-1", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=nan", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=1e9", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=1e999", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=inf", {}, 400, "wait"),
        ("GET", "/v1/jobs/x?wait=", {}, 400, "wait"),
        ("GET", "/v1/jobs/x/events", {"Last-Event-ID": ""}, 400, "Last-Event-ID"),
        ("POST", "/v1/jobs", {"Idempotency-Key": ""}, 400, "Idempotency-Key"),
        ("POST", "/v1/jobs", {"Idempotency-Key": "a b"}, 400, "Idempotency-Key"),
        ("POST", "/v1/jobs", {"Idempotency-Key": "x" * 256}, 400, "Idempotency-Key"),
        ("POST", "/v1/jobs?wait=5", {}, 400, "wait"),
        ("POST", "/v1/jobs", {"Content-Type": "text/plain"}, 415, None),
        ("POST", "/v1/jobs", {"Content-Type": ""}, 415, None),
        ("PUT", "/v1/jobs", {}, 405, None),
        ("DELETE", "/v1/jobs/x", {}, 405, None),
        ("GET", "/v1/jobs/x/cancel", {}, 405, None),
        ("GET", "/v1/jobs/", {}, 404, None),
        ("GET", "/v1/nothing", {}, 404, None),
        ("GET", "/docs/../pyproject.toml", {}, 404, None),
    ],
)
async def test_a_bad_request_is_refused_by_name(
    web: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str], status: int, param: str | None
) -> None:
    """Paths, methods, parameters and headers are read as strictly as bodies."""
    body = one() if method == "POST" else None
    answer = await web.request(method, path, content=body, headers={**(JSON if body else {}), **headers})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    if status == 405:
        assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


async def test_every_answer_has_a_request_id(web: httpx2.AsyncClient) -> None:
    """The caller's own is kept if it is fit for a log; else there is a new one each time."""
    mine = await web.get("/livez", headers={"X-Request-ID": "order-7.1"})
    assert mine.headers["x-request-id"] == "order-7.1"
    answers = [await web.get("/nope", headers={"X-Request-ID": value}) for value in ("a b", "x" * 200)]
    odd = [answer.headers["x-request-id"] for answer in answers]
    assert all(len(value) == 24 for value in odd)
    assert len(set(odd)) == 2


# Over sockets: what a client library would not send.


@pytest.fixture
def served(serve: Serve) -> Iterator[Served]:
    """An API with little patience."""
    with serve(request_s=0.4, max_head_bytes=4_096) as api:
        yield api


def connect(api: Served) -> socket.socket:
    host, port = api.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read(sock: socket.socket) -> bytes:
    """All until the other side closes."""
    found = b""
    with closing(sock):
        while chunk := sock.recv(65_536):
            found += chunk
    return found


def is_error(answer: bytes, status: int, code: str) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return (
        head.startswith(b"HTTP/1.1 %d " % status)
        and b"x-request-id: " in head
        and json.loads(body)["error"]["code"] == code
    )


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "invalid_http"),
        (b"POST /v1/jobs HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "invalid_http"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 200_000, 431, "head_too_large"),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head_too_large"),
        (b"GET /livez HTTP/1.1\r\nHost:", 408, "request_timeout"),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
         408, "request_timeout"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_and_cut_off(served: Served, sent: bytes, status: int, code: str) -> None:
    """Other protocols, endless headers and clients that stop halfway get an answer in JSON, and a closed connection."""
    sock = connect(served)
    sock.sendall(sent)
    assert is_error(read(sock), status, code)
    assert WEB.get(f"{served.url}/livez").status_code == 200


def test_a_silent_connection_is_closed(served: Served) -> None:
    """Who connects and says nothing is not kept for ever."""
    assert read(connect(served)) == b""


def test_a_dribbled_body_is_cut_off(served: Served, jobs: Jobs) -> None:
    """A byte now and then does not keep a request alive: its time counts as a whole."""
    began = time.monotonic()
    answer = b""
    with closing(connect(served)) as sock:
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Content-Length: 99\r\n\r\n")
        sock.settimeout(0.05)
        while not answer and time.monotonic() - began < 10:
            with suppress(TimeoutError):
                sock.sendall(b" ")
                answer = sock.recv(65_536)
    assert is_error(answer, 408, "request_timeout")
    assert time.monotonic() - began >= 0.3
    assert jobs.client.keys(keys.job("*")) == []


def test_a_hundred_megabytes_are_refused_while_they_come(serve: Serve, jobs: Jobs) -> None:
    """Announced or in chunks: the refusal arrives, and the server holds none of it."""

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000_000

    with serve() as api:
        for content in (b" " * 100_000_000, endless()):
            answer = WEB.post(f"{api.url}/v1/jobs", content=content, headers=JSON)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert jobs.client.keys(keys.job("*")) == []


def test_a_client_that_takes_nothing_is_let_go(serve: Serve, jobs: Jobs) -> None:
    """A stream whose client has stopped reading is dropped, and its place is free."""
    with serve(request_s=0.5) as api, closing(connect(api)) as sock:
        job = submit(jobs)
        sock.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: api.listeners() == 1, why="the stream to begin")
        jobs.client.rpush(keys.out(job), entry(1, "x" * 20_000_000, None, None))
        jobs.client.xadd(keys.EVENTS, {"j": f"{job} 1 running"})
        wait_until(lambda: api.listeners() == 0, why="the client to be let go")
        assert sock.recv(1_000).startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """Several requests in one packet are several requests, each with its own time and size."""
    with serve(request_s=5, max_head_bytes=1_024) as api:
        sock = connect(api)
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"a" * 500) * 5)
        sock.sendall(b"GET /nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = read(sock)
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert answer.count(b"HTTP/1.1 404") == 1
    assert answer.index(b"HTTP/1.1 404") > answer.rindex(b"HTTP/1.1 200")
