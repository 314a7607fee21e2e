"""From bodies to submissions: checked against the model before anything is enqueued.

Short prompts are checked where they come in. What must ask the server or count many tokens runs on a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.schemas import MAX_LIST
from api.service import Service
from farm.contracts import Request, parse_request
from farm.errors import IdempotencyConflict, InvalidRequest
from farm.ledger.records import Submission
from farm.prompts import check_length, needs_counting


class Admission:
    """Turns what callers sent into submissions, or raises InvalidRequest naming the field."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs = service.jobs
        self._checks = service.checks

    async def one(self, body: Mapping[str, object], tenant: str, key: str | None) -> Submission:
        """A request's submission. key: the same key and request again give the same job.

        Raises InvalidRequest, PromptTooLong, ServerUnreachable.
        """
        return await self._checked(parse_request(body), tenant, key)

    async def _checked(self, request: Request, tenant: str, key: str | None) -> Submission:
        self._service.check_webhook(request.webhook_url)
        facts = self._checks.known(request.model)
        if facts is not None and not needs_counting(request, facts):
            check_length(request, facts)
        else:
            await self._service.call(self._checks.checker(), request)
        return self._jobs.place(request, tenant=tenant, idempotency_key=key)

    async def many(self, bodies: Sequence[object], tenant: str, key: str | None) -> list[Submission]:
        """The submissions of a list, all checked. Raises like ``one``, naming the place in the list.

        With a key, a list that differs from the one sent with it before is an IdempotencyConflict.
        """
        if not bodies:
            raise InvalidRequest("body", "is an empty list; give at least one request")
        if len(bodies) > MAX_LIST:
            raise InvalidRequest("body", f"holds {len(bodies):,} requests; give at most {MAX_LIST:,} at once")
        return await self._service.call(self._place_all, bodies, tenant, key)

    async def choices(
        self, requests: Sequence[Request], samples: int, tenant: str, key: str | None
    ) -> list[Submission]:
        """The submissions of one answer's choices, ``samples`` for each prompt. Raises like ``many``."""
        self._service.check_webhook(requests[0].webhook_url)
        if len(requests) == 1:
            return [await self._checked(requests[0], tenant, key)]
        return await self._service.call(self._place_choices, requests, samples, tenant, key)

    # On a thread.

    def _place_choices(
        self, requests: Sequence[Request], samples: int, tenant: str, key: str | None
    ) -> list[Submission]:
        check = self._checks.checker()
        for index in range(0, len(requests), samples):
            try:
                check(requests[index])
            except InvalidRequest as error:
                if error.field != "prompt":
                    raise
                raise type(error)(f"prompt[{index // samples}]", error.problem) from None
        return self._place_list(requests, tenant, key)

    def _place_all(self, bodies: Sequence[object], tenant: str, key: str | None) -> list[Submission]:
        check = self._checks.checker()
        requests = []
        for index, body in enumerate(bodies):
            try:
                requests.append(_request_of(body))
                self._service.check_webhook(requests[-1].webhook_url)
                check(requests[-1])
            except InvalidRequest as error:
                raise type(error)(f"[{index}].{error.field}", error.problem) from None
        return self._place_list(requests, tenant, key)

    def _place_list(self, requests: Sequence[Request], tenant: str, key: str | None) -> list[Submission]:
        placed = [self._place(request, tenant, key, index, len(requests)) for index, request in enumerate(requests)]
        if key is not None and self._jobs.conflicting(placed):
            raise IdempotencyConflict("this key came with another list before; use another key, or send the same list")
        return placed

    def _place(self, request: Request, tenant: str, key: str | None, index: int, count: int) -> Submission:
        """The submission at a place in a list. With a key it is part of a list of so many, and of no other."""
        if key is None:
            return self._jobs.place(request, tenant=tenant)
        # A caller's key holds no space, so these are nobody else's.
        own = key if index == 0 else f"{key} {index}"
        return self._jobs.place(request, tenant=tenant, idempotency_key=own, part_of=f"list of {count}")


def _request_of(body: object) -> Request:
    if not isinstance(body, dict):
        raise InvalidRequest("body", "must be an object with a prompt")
    return parse_request(body)
