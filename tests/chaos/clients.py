"""Clients of the farm under test: they submit until they are acknowledged, follow their jobs, and record all of it.

They use the public API alone. A client bears what a program has to bear, ``ServerUnreachable`` and ``TimeoutError``, by
calling again; what else a call raises is recorded and ends the matter.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from farm import Farm, FarmError
from farm.client import Job
from farm.contracts import JobState, keyed_job_id
from farm.errors import JobNotSucceeded, ServerFull, ServerUnreachable
from farm.results import JobView
from tests.chaos.profiles import Load
from tests.chaos.record import Asked, Call, Heard, Recorder

TENANT = "chaos"
PAUSE_S = 0.1
POLL_S = (0.05, 0.4)
WAITS_S = (0.3, 5.0)
CANCEL_AFTER_S = (0.0, 1.5)
DEADLINES_S = (1.0, 30.0)

T = TypeVar("T")
Prompts = Callable[[int, random.Random], dict[str, Any]]


class Quota:
    """How many jobs are still to be submitted. Thread-safe."""

    def __init__(self, jobs: int | None) -> None:
        self._lock = threading.Lock()
        self._left = jobs
        self._next = 0
        self.is_open = True

    def take(self, count: int) -> range:
        """Numbers of the next jobs; none when there are no more."""
        with self._lock:
            count = 0 if not self.is_open else count if self._left is None else min(count, self._left)
            if self._left is not None:
                self._left -= count
            self._next += count
            return range(self._next - count, self._next)


class Client(threading.Thread):
    """One thread of a program that uses the farm. ``prompts`` makes a job's fields from its number."""

    def __init__(
        self, number: int, farms: list[Farm], load: Load, quota: Quota, seed: int, prompts: Prompts, recorder: Recorder
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._farms = farms
        self._timeout_s = farms[0].settings.redis.timeout_s
        self._load = load
        self._quota = quota
        self._dice = random.Random(f"{seed}/client/{number}")
        self._prompts = prompts
        self._recorder = recorder
        self._readers = itertools.count(number * 1_000_000)
        self.given_up = threading.Event()
        self.error: BaseException | None = None
        """What ended it, if that is no error of the farm's."""

    @property
    def _farm(self) -> Farm:
        return self._dice.choice(self._farms)

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def _work(self) -> None:
        while numbers := self._quota.take(self._load.batch):
            requests = [self._ask(number) for number in numbers]
            if self._dice.random() < self._load.maps:
                self._map(requests)
                continue
            jobs = self._submit(requests)
            ways = self._dice.choices(list(self._load.follow), list(self._load.follow.values()), k=len(jobs))
            # Those to be cancelled and taken over first, while they run.
            for way, job in sorted(zip(ways, jobs, strict=True), key=lambda pair: pair[0]):
                self._follow(way, job)

    def _ask(self, number: int) -> dict[str, Any]:
        """A job's fields; its id is known before it is submitted, as it follows from the key."""
        key = f"job-{number}"
        fields = self._prompts(number, self._dice)
        if self._dice.random() < self._load.deadlines:
            fields["deadline_s"] = round(self._dice.uniform(*DEADLINES_S), 1)
        self._recorder.add(asked(self._recorder.now, keyed_job_id(TENANT, key), fields))
        return {**fields, "idempotency_key": key}

    def _submit(self, requests: list[dict[str, Any]]) -> list[str]:
        """Submit until acknowledged, all at once or one by one. Returns the ids of those that were."""
        accepted = self._send(requests) if self._dice.random() < 0.5 else []
        # A call is refused as a whole, for one deadline that can't be met.
        return accepted or [job_id for request in requests for job_id in self._send([request])]

    def _send(self, batch: list[dict[str, Any]]) -> list[str]:
        """Submit in one call, until it is answered. Returns the ids if it was accepted."""
        ids = _ids(batch)
        accepted: list[str] = []

        def submit() -> None:
            if len(batch) == 1:
                self._farm.submit(**batch[0])
            else:
                self._farm.submit_many(batch)
            accepted.extend(ids)

        self._until(lambda: self._call("submit", ids, submit))
        return accepted

    def _map(self, requests: list[dict[str, Any]]) -> None:
        """Have a batch answered by one call, which submits, waits and bears outages by itself."""
        ids, began = _ids(requests), self._recorder.now
        try:
            for job_id, result in zip(ids, self._farm.map(requests, return_exceptions=True), strict=True):
                told = _told(result)
                if told.get("state") == "succeeded" and getattr(result, "id", "") != job_id:
                    told = {"error": "out_of_order"}
                self._record("map", (job_id,), began, **told)
        except ValueError:
            self._record("map", ids, began, error="wrong_number")
        except FarmError as raised:
            self._record("map", ids, began, error=raised.code)

    # Ways to follow a job to its end.

    def _follow(self, way: str, job_id: str) -> None:
        if way == "wait":
            self._wait(job_id)
        elif way == "stream":
            self._stream(job_id, 1)
        elif way == "take over":
            self._stream(job_id, 3)
        elif way == "poll":
            self._poll(job_id)
        elif way == "cancel":
            self._pause(self._dice.uniform(*CANCEL_AFTER_S))
            if self._until(lambda: self._call("cancel", (job_id,), lambda: Job(self._farm, job_id).cancel())):
                self._wait(job_id)

    def _wait(self, job_id: str) -> None:
        def once() -> bool:
            limit_s = round(self._dice.uniform(*WAITS_S), 2)
            return self._call("result", (job_id,), lambda: Job(self._farm, job_id).result(limit_s), limit_s=limit_s)

        self._until(once)

    def _poll(self, job_id: str) -> None:
        states: list[JobState] = []

        def look() -> JobView:
            view = Job(self._farm, job_id).status()
            states.append(view.state)
            return view

        def once() -> bool:
            states.clear()
            is_answered = self._call("status", (job_id,), look)
            self._pause(self._dice.uniform(*POLL_S))
            return is_answered and (not states or states[0].is_terminal)

        self._until(once)

    def _stream(self, job_id: str, hands: int) -> None:
        """Read a job's text as it grows; with several hands another client goes on where one left off."""
        index, hand = 0, 0

        def once() -> bool:
            nonlocal index, hand
            hand += 1
            stream = self._hear(job_id, index, None if hand >= hands else self._dice.randint(1, 4))
            began, error, state = self._recorder.now, "", ""
            try:
                for index in stream:  # noqa: B007
                    pass
                state = "succeeded" if hand >= hands else ""
            except JobNotSucceeded as raised:
                state = raised.job.state.value if raised.job else ""
            except FarmError as raised:
                error = raised.code
            self._record("stream", (job_id,), began, error=error, state=state)
            return bool(state) or (error != "" and not _passes(error))

        self._until(once)

    def _hear(self, job_id: str, start: int, deltas: int | None) -> Iterator[int]:
        """Record what one stream gives; leave after so many deltas. Yields the index reached."""
        reader = next(self._readers)
        stream = Job(self._farm, job_id).stream(start)
        try:
            for delta in itertools.islice(stream, deltas):
                self._recorder.add(
                    Heard(self._recorder.now, reader, job_id, delta.index, tuple(delta.token_ids), delta.text)
                )
                yield delta.index
        finally:
            stream.close()  # type: ignore[attr-defined]

    # Calls.

    def _call(self, op: str, jobs: tuple[str, ...], call: Callable[[], T], limit_s: float | None = None) -> bool:
        """Make one call and record it. True when it was answered for good, whatever the answer."""
        limit_s = limit_s or self._timeout_s
        began = self._recorder.now
        try:
            answer = call()
        except JobNotSucceeded as raised:
            self._record(op, jobs, began, limit_s, **_told(raised))
            return True
        except TimeoutError:
            self._record(op, jobs, began, limit_s, error="timeout")
            return False
        except FarmError as raised:
            self._record(op, jobs, began, limit_s, error=raised.code)
            return not isinstance(raised, ServerUnreachable | ServerFull)
        self._record(op, jobs, began, limit_s, **_told(answer))
        return True

    def _record(self, op: str, jobs: tuple[str, ...], began: float, limit_s: float | None = None, **told: Any) -> None:
        took_s = round(self._recorder.now - began, 4)
        self._recorder.add(Call(round(began, 4), took_s, self.name, op, jobs, limit_s, **told))

    def _until(self, once: Callable[[], bool]) -> bool:
        """Repeat until it is answered. False when the run ended before."""
        while not self.given_up.is_set():
            if once():
                return True
            self._pause(PAUSE_S)
        return False

    def _pause(self, seconds: float) -> None:
        self.given_up.wait(seconds)


def asked(now: float, job_id: str, fields: dict[str, Any]) -> Asked:
    """The record of a request that is about to be submitted."""
    return Asked(now, job_id, **{name: value for name, value in fields.items() if name in Asked.__slots__})


def _ids(requests: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(keyed_job_id(TENANT, fields["idempotency_key"]) for fields in requests)


def _passes(error: str) -> bool:
    return error in (ServerUnreachable.code, ServerFull.code)


def _told(answer: Any) -> dict[str, Any]:
    """What a call's answer, or error, says of its job."""
    if isinstance(answer, JobNotSucceeded):
        assert answer.job is not None
        return _told(answer.job)
    if isinstance(answer, FarmError):
        return {"error": answer.code}
    if isinstance(answer, JobState):
        return {"state": answer.value}
    if hasattr(answer, "token_ids"):
        state = answer.state.value if hasattr(answer, "state") else "succeeded"
        return {"state": state, "tokens": tuple(answer.token_ids), "text": answer.text}
    return {}


def close(farms: list[Farm], clients: list[Client], timeout_s: float) -> None:
    """Have clients give up: whoever still waits is told that its farm is closed. Raises what ended one before."""
    for client in clients:
        client.given_up.set()
    for farm in farms:
        farm.close()
    deadline = time.monotonic() + timeout_s
    for client in clients:
        client.join(max(0.0, deadline - time.monotonic()))
        if client.error is not None:
            raise client.error
