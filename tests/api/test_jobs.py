"""Jobs over HTTP: submitted, read, waited for, listed and cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
from pydantic import SecretStr

from farm import keys
from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.conftest import client_of
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of

GONE = "01890a5d-ac96-774b-bcce-b302099a8057"  # a UUIDv7 of 2023


async def submit(web: httpx2.AsyncClient, prompt: str = "A goat", **fields: Any) -> dict[str, Any]:
    answer = await web.post("/v1/jobs", json={"prompt": prompt, **fields})
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def wait_for(web: httpx2.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    answer = await web.get(job["urls"]["get"], params={"wait": 20})
    body: dict[str, Any] = answer.json()
    return body


async def test_a_submitted_job_is_answered(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """202 says where the job is and where it stands; later it holds the text."""
    first = await submit(web)
    answer = await web.post("/v1/jobs", json={"prompt": "A hen", "max_tokens": 3, "metadata": {"order": "7"}})
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == body["urls"]["get"] == f"/v1/jobs/{body['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (first["position"], body["position"], body["state"], body["eta_s"]) == (1, 2, "queued", None)
    with hand:
        job = await wait_for(web, body)
    assert (job["state"], job["text"], job["metadata"]) == ("succeeded", text_of("A hen", 3), {"order": "7"})
    assert job["usage"]["completion_tokens"] == 3
    assert job["urls"] == body["urls"]


async def test_an_answer_may_be_waited_for(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """Prefer: wait answers with the finished job if it ends in time, and with 202 if not."""
    late = await web.post(
        "/v1/jobs", json={"prompt": "A hen"}, headers={"Prefer": "respond-async, wait=0.1; x, wait=1"}
    )
    assert (late.status_code, late.headers["preference-applied"]) == (202, "wait=1")
    with hand:
        asked = {"prompt": "A goat", "max_tokens": 2}
        done = await web.post("/v1/jobs", json=asked, headers={"Prefer": "wait=20"})
    assert (done.status_code, done.json()["text"]) == (200, text_of("A goat", 2))


async def test_a_list_is_accepted_in_order(web: httpx2.AsyncClient, jobs: Jobs) -> None:
    """A thousand requests in one body: each has its job, in the order given."""
    answer = await web.post("/v1/jobs", json=[{"prompt": f"prompt {n}"} for n in range(1000)])
    found = answer.json()["jobs"]
    assert (answer.status_code, len(found)) == (202, 1000)
    assert [job["position"] for job in found] == list(range(1, 1001))
    stored = jobs.client.hget(keys.job(found[700]["id"]), "request")
    assert "prompt 700" in str(stored)


async def test_a_list_with_one_bad_request_enqueues_nothing(web: httpx2.AsyncClient, jobs: Jobs) -> None:
    """The error names the place and the field, whatever comes before it."""
    for bad, param in (
        ({"prompt": "x", "max_tokens": 0}, "[2].max_tokens"),
        ({"prompt": ""}, "[2].prompt"),
        ("x", "[2].body"),
        ({"prompt": "x", "model": "gpt"}, "[2].model"),
    ):
        answer = await web.post("/v1/jobs", json=[{"prompt": "a"}, {"prompt": "b"}, bad])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    for body in ([], [{"prompt": "x"}] * 1001):
        assert (await web.post("/v1/jobs", json=body)).json()["error"]["param"] == "body"
    assert jobs.client.keys(keys.job("*")) == []


async def test_an_idempotency_key_means_one_job(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """The same key and body give the same job, as it stands by then; another body is refused."""
    asked, headers = {"prompt": "A goat", "max_tokens": 2}, {"Idempotency-Key": "order-7"}
    first = await web.post("/v1/jobs", json=asked, headers=headers)
    again = await web.post("/v1/jobs", json=asked, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    other = await web.post("/v1/jobs", json={**asked, "max_tokens": 3}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    assert other.json()["error"]["param"] == "Idempotency-Key"
    with hand:
        await wait_for(web, first.json())
        late = await web.post("/v1/jobs", json=asked, headers=headers)
    assert (late.status_code, late.json()["text"]) == (200, text_of("A goat", 2))


async def test_an_idempotency_key_means_one_list(web: httpx2.AsyncClient, jobs: Jobs) -> None:
    """A repeated list gives the same jobs and completes what a broken connection left out; a different one is refused
    whole: longer, shorter, with another request, or a single one.
    """
    headers = {"Idempotency-Key": "batch"}
    asked = [{"prompt": f"p{n}"} for n in range(3)]

    async def send(body: Any) -> httpx2.Response:
        return await web.post("/v1/jobs", json=body, headers=headers)

    ids = [job["id"] for job in (await send(asked)).json()["jobs"]]
    jobs.cancel(ids[:1])
    jobs.client.delete(keys.job(ids[2]))
    again = (await send(asked)).json()["jobs"]
    assert [job["id"] for job in again] == ids
    assert [job["state"] for job in again] == ["cancelled", "queued", "queued"]
    before = len(jobs.client.keys(keys.job("*")))
    for body in ([*asked, {"prompt": "p4"}], asked[:2], [asked[0], {"prompt": "q"}, asked[2]], asked[0]):
        assert (await send(body)).status_code == 422, body
    assert len(jobs.client.keys(keys.job("*"))) == before


async def test_many_at_once_each_get_their_own_answer(web: httpx2.AsyncClient, jobs: Jobs) -> None:
    """Requests that go to the ledger together are answered one by one: a conflict is its sender's alone."""
    await web.post("/v1/jobs", json={"prompt": "first"}, headers={"Idempotency-Key": "taken"})

    async def send(number: int) -> httpx2.Response:
        key = {"Idempotency-Key": "taken"} if number % 10 == 0 else {}
        return await web.post("/v1/jobs", json={"prompt": f"prompt {number}"}, headers=key)

    answers = await asyncio.gather(*[send(number) for number in range(60)])
    assert [answer.status_code for answer in answers] == [422 if n % 10 == 0 else 202 for n in range(60)]
    ids = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(set(ids)) == 54
    views = jobs.views(ids)
    assert all(view is not None for view in views)


async def test_a_running_job_shows_its_text_so_far(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """What was generated can be read before the end, and the tag changes with it."""
    hand.tokens_per_beat = 1
    with hand:
        job = await submit(web, max_tokens=1_000)
        url = job["urls"]["get"]
        seen = await web.get(url)
        while not seen.json()["text"]:
            seen = await web.get(url)
        hand.tokens_per_beat = 0
        await asyncio.sleep(0.05)
        held = await web.get(url)
        assert held.json()["state"] == "running"
        assert held.json()["text"].startswith(seen.json()["text"])
        same = await web.get(url, headers={"If-None-Match": held.headers["etag"]})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", held.headers["etag"])
        hand.tokens_per_beat = 1_000_000
        done = await web.get(url, params={"wait": 20}, headers={"If-None-Match": held.headers["etag"]})
    assert (done.status_code, done.json()["state"]) == (200, "succeeded")
    known = f'W/"x", {done.headers["etag"]}'
    assert (await web.get(url, headers={"If-None-Match": known})).status_code == 304


async def test_waiting_asks_the_server_nothing(web: httpx2.AsyncClient, hand: Farmhand, jobs: Jobs) -> None:
    """Fifty requests that wait cost the server no more than the one reader of events does."""
    ids = [(await submit(web, max_tokens=4))["urls"]["get"] for _ in range(50)]

    def commands() -> int:
        return int(jobs.client.info("stats")["total_commands_processed"])  # type: ignore[index]

    def waits() -> int:
        return len(reader.watched)

    reader = web._transport.app.state.service._reader  # type: ignore[attr-defined]
    polls = [asyncio.create_task(web.get(url, params={"wait": 20})) for url in ids]
    await asyncio.to_thread(wait_until, lambda: waits() == 50, why="all to wait")
    await asyncio.sleep(0.3)
    before = commands()
    await asyncio.sleep(1.0)
    assert commands() - before < 150  # one look at fifty states, a few reads of the events; polling would be thousands
    with hand:
        answers = await asyncio.gather(*polls)
    assert {answer.json()["state"] for answer in answers} == {"succeeded"}


async def test_a_wait_that_is_too_short_shows_the_job_as_it_is(web: httpx2.AsyncClient) -> None:
    """A poll that runs out is an answer, not an error."""
    job = await submit(web)
    answer = await web.get(job["urls"]["get"], params={"wait": "0.05"})
    assert (answer.status_code, answer.json()["state"], answer.headers["retry-after"]) == (200, "queued", "1")


async def test_jobs_that_are_not_there(web: httpx2.AsyncClient) -> None:
    """404 for what never was, 410 for what was once and is past its retention."""
    for suffix, method in (("", "GET"), ("/events", "GET"), ("/cancel", "POST")):
        for job_id, status, code in (
            ("0ffff0c1-0000-7000-8000-000000000000", 404, "job_not_found"),
            ("nonsense", 404, "job_not_found"),
            ("%00%ff ", 404, "job_not_found"),
            ("x" * 500, 404, "job_not_found"),
            (GONE, 410, "job_gone"),
        ):
            answer = await web.request(method, f"/v1/jobs/{job_id}{suffix}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (job_id, suffix)


async def test_a_cancelled_job_stays_cancelled(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """Cancelling answers with the job; doing it again, or after the end, changes nothing."""
    job = await submit(web)
    for _ in range(2):
        answer = await web.post(job["urls"]["cancel"])
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    with hand:
        done = await submit(web, max_tokens=2)
        await wait_for(web, done)
        assert (await web.post(done["urls"]["cancel"])).json()["state"] == "succeeded"
    assert (await web.get(job["urls"]["get"])).json()["state"] == "cancelled"


async def test_jobs_are_listed_page_by_page(web: httpx2.AsyncClient, jobs: Jobs) -> None:
    """The newest first, none twice, none left out; or only those in a state."""
    ids = [(await submit(web, f"prompt {n}"))["id"] for n in range(7)]
    jobs.cancel(ids[:2])
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await web.get("/v1/jobs", params={"limit": 3, **after})).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == ids[::-1]
    cancelled = (await web.get("/v1/jobs", params={"state": "cancelled"})).json()["jobs"]
    assert [job["id"] for job in cancelled] == ids[1::-1]
    assert cancelled[0]["urls"]["get"] == f"/v1/jobs/{ids[1]}"


async def test_a_model_without_workers_is_waited_for(web: httpx2.AsyncClient, hand: Farmhand) -> None:
    """With every worker gone the farm is ready all the same, and says that its model waits."""
    assert (await web.get("/readyz")).json() == {"status": "ready", "models": {"tiny-bloom": "waiting"}}
    job = await submit(web, max_tokens=2)
    with hand:
        assert (await wait_for(web, job))["state"] == "succeeded"


async def test_an_unreachable_server_is_said_and_not_named(api_settings: Settings) -> None:
    """503 with Retry-After, without the inner address; alive, and not ready."""
    broken = with_values(api_settings, redis={"url": SecretStr("redis://:secret@127.0.0.1:1/0"), "timeout_s": 0.5})
    async with client_of(broken) as web:
        for answer in (
            await web.post("/v1/jobs", json={"prompt": "A goat"}),
            await web.get(f"/v1/jobs/{GONE}"),
            await web.get("/readyz"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unreachable")
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in answer.text
            assert "secret" not in answer.text
        assert (await web.get("/livez")).status_code == 200
