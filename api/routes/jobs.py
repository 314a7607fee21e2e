"""``/v1/jobs``: submit, read, list and cancel."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from api.admission import Admission
from api.answers import Answer, Header, encode
from api.auth import Guard
from api.requests import MAX_WAIT_S, Call, number
from api.schemas import STATES, urls_of
from api.service import Service, Written
from farm.contracts import JobState
from farm.errors import InvalidRequest, nearest
from farm.ledger.listing import MOST as MAX_PAGE
from farm.ledger.listing import list_jobs
from farm.ledger.records import Submission
from farm.results import JobView

POLL_S = (1, 30)  # least and most that a client is told to wait before it asks again
PAGE = 20
# What a job is may be kept by whoever asked for it, and asked for again by its tag.
CACHE: Header = (b"cache-control", b"private, no-cache")


class JobRoutes:
    """The endpoints. Each raises what becomes an answer."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard
        self._admission = Admission(service)

    async def submit(self, call: Call) -> Answer:
        """Accept a request, or a list of them."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        key = call.idempotency_key()
        body = await call.json()
        if isinstance(body, list):
            return await self._submit_list(await self._admission.many(body, tenant, key))
        if not isinstance(body, dict):
            raise InvalidRequest("body", "must be an object with a prompt, or a list of such objects")
        return await self._submit_one(call, await self._admission.one(body, tenant, key))

    async def read(self, call: Call) -> Answer:
        """A job as it stands; with ``wait``, once it has ended."""
        tenant = await self._guard.admit(call, "read")
        query = call.query("wait")
        wait_s = number("wait", query["wait"], MAX_WAIT_S) if "wait" in query else 0.0
        view = await self._service.view(call.path_params["job_id"], tenant)
        if wait_s and not view.state.is_terminal:
            call.note_waiting()
            view = await self._service.ended(view.id, wait_s)
        return answer_with(view, call.head.get(b"if-none-match"))

    async def list(self, call: Call) -> Answer:
        """A tenant's jobs, the newest first."""
        tenant = await self._guard.admit(call, "read")
        query = call.query("state", "after", "limit")
        state = query.get("state")
        if state is not None and state not in STATES:
            raise InvalidRequest(
                "state", f"{state[:60]!r} is no state{nearest(state[:60], STATES)}; there are {', '.join(STATES)}"
            )
        limit = query.get("limit", str(PAGE))
        if not limit.isascii() or not limit.isdigit() or len(limit) > 9:
            raise InvalidRequest("limit", f"{limit[:60]!r} is no number of jobs; give 1 to {MAX_PAGE}")
        page = await self._service.call(
            list_jobs,
            self._service.jobs,
            tenant,
            state=None if state is None else JobState(state),
            after=query.get("after"),
            limit=int(limit),
        )
        return Answer(
            encode({"jobs": [body_of(view) for view in page.views], "next": page.next_after}), headers=[CACHE]
        )

    async def cancel(self, call: Call) -> Answer:
        """End a job, unless it has ended."""
        tenant = await self._guard.admit(call, "submit")
        call.query()
        view = await self._service.view(call.path_params["job_id"], tenant)
        if not view.state.is_terminal:
            await self._service.call(self._service.jobs.cancel, [view.id])
            view = await self._service.view(view.id, tenant)
        return answer_with(view)

    async def _submit_one(self, call: Call, submission: Submission) -> Answer:
        wait_s = call.preferred_wait_s()
        written = await self._service.submit(submission)
        headers: list[Header] = [(b"preference-applied", b"wait=%d" % wait_s)] if wait_s else []
        view: JobView | None = None
        if not written.is_new:
            view = await self._service.view(submission.id, submission.tenant)
        if wait_s and (view is None or not view.state.is_terminal):
            call.note_waiting()
            view = await self._service.ended(submission.id, wait_s)
        if view is not None and view.state.is_terminal:
            return Answer(encode(body_of(view)), 200, headers)
        body = accepted(submission, written) if view is None else _accepted_of(view)
        headers.append((b"location", body["urls"]["get"].encode()))
        headers.append(retry_after(body["eta_s"]))
        return Answer(encode(body), 202, headers)

    async def _submit_list(self, submissions: Sequence[Submission]) -> Answer:
        written = await self._service.submit_list(submissions)
        bodies = [accepted(*pair) for pair in zip(submissions, written, strict=True)]
        old = [submission.id for submission, one in zip(submissions, written, strict=True) if not one.is_new]
        if old:
            views = await self._service.call(self._service.jobs.views, old)
            states = {view.id: _shown(view.state) for view in views if view is not None}
            for body in bodies:
                body["state"] = states.get(body["id"], body["state"])
        return Answer(encode({"jobs": bodies}), 202, [retry_after(bodies[-1]["eta_s"])])


def accepted(submission: Submission, written: Written) -> dict[str, Any]:
    """What is said of a job that was just written."""
    request = submission.request
    standing = written.standing
    least = request.max_tokens if request.ignore_eos else request.min_tokens
    return {
        "id": submission.id,
        "state": "queued",
        "position": standing.position or None,
        "eta_s": standing.eta_s(least, request.max_tokens),
        "urls": urls_of(submission.id),
    }


def body_of(view: JobView) -> dict[str, Any]:
    """A job as JSON."""
    return {**view.to_dict(), "urls": urls_of(view.id)}


def answer_with(view: JobView, known: bytes | None = None) -> Answer:
    """A job as an answer, or 304 when the caller knows it as it is. known: the If-None-Match header."""
    body = encode(body_of(view))
    tag = b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
    headers: list[Header] = [(b"etag", tag), CACHE]
    if not view.state.is_terminal:
        headers.append(retry_after(view.eta_s))
    if known is not None and any(_is_tag(one, tag) for one in known.split(b",")):
        return Answer(b"", 304, headers)
    return Answer(body, 200, headers)


def retry_after(eta_s: float | None) -> Header:
    """When to ask again."""
    least, most = POLL_S
    return b"retry-after", b"%d" % min(most, max(least, math.ceil(eta_s or 0)))


def _is_tag(given: bytes, tag: bytes) -> bool:
    given = given.strip()
    return given in (tag, b"*", b"W/" + tag)


def _accepted_of(view: JobView) -> dict[str, Any]:
    body: Mapping[str, Any] = view.to_dict()
    return {name: body[name] for name in ("id", "state", "position", "eta_s")} | {"urls": urls_of(view.id)}


def _shown(state: JobState) -> str:
    return "queued" if state is JobState.DISPATCHED else state.value
