"""What is known of a run, arranged by job: what clients saw, and what the ledger had at the end. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from farm import keys
from tests.chaos.census import Census
from tests.chaos.record import Asked, Call, Heard, History

SHOWN = 12  # events of a job that a violation shows

Expected = Callable[[Asked], tuple[list[int], str]]
"""The tokens and the text that a job ought to have at its full length."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise. ``rule`` names it; ``seen`` is what the history has of the job."""

    rule: str
    job: str
    reason: str
    seen: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.rule}: {self.job or 'the farm'}: {self.reason}", *self.seen]
        return "\n      ".join(lines)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of a job's history in the ledger; times are Unix seconds."""

    attempt: int
    worker: str
    started_at: float
    ended_at: float
    reason: str
    tokens: int

    def __str__(self) -> str:
        span = f"{self.started_at:.2f} to {self.ended_at:.2f}"
        return f"attempt {self.attempt} of {self.worker}: {span}, {self.tokens} tokens, {self.reason}"


@dataclass(frozen=True)
class Ended:
    """A job as the ledger had it at the end."""

    id: str
    fields: dict[str, str]
    entries: list[list[Any]]
    attempts: list[Attempt]

    @property
    def state(self) -> str:
        return self.fields["state"]

    @cached_property
    def tokens(self) -> list[int]:
        return [entry[0] for entry in self.entries]

    @cached_property
    def text(self) -> str:
        return "".join(entry[1] for entry in self.entries) + self.fields.get("tail", "")

    @property
    def stamps(self) -> list[float] | None:
        """Who made each token; None if the engine stamped none."""
        return [entry[2] for entry in self.entries] if all(len(entry) > 2 for entry in self.entries) else None


@dataclass
class Evidence:
    """All that is known of a run, arranged for the rules."""

    history: History
    census: Census
    rule: Expected | None = None
    jobs: dict[str, Ended] = field(init=False)

    def __post_init__(self) -> None:
        start = len(keys.job(""))
        ids = [key[start:] for key in self.census.world if key.startswith(keys.job(""))]
        self.jobs = {job_id: self._ended(job_id) for job_id in ids}

    def _ended(self, job_id: str) -> Ended:
        entries = [json.loads(entry) for entry in self.census.world.get(keys.out(job_id), [])]
        past = [Attempt(**json.loads(record)) for record in self.census.world.get(keys.history(job_id), [])]
        return Ended(job_id, self.census.world[keys.job(job_id)], entries, past)

    @cached_property
    def asked(self) -> dict[str, Asked]:
        return self.history.asked

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """Calls by job, in the order in which they returned."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.history.of(Call):
            for job_id in call.jobs:
                found[job_id].append(call)
        return found

    @cached_property
    def heard(self) -> dict[str, list[Heard]]:
        found: dict[str, list[Heard]] = defaultdict(list)
        for heard in self.history.of(Heard):
            found[heard.job].append(heard)
        return found

    def expected(self, asked: Asked) -> tuple[list[int], str] | None:
        """The tokens and the text that a job ought to have at its full length, as far as that is known.

        By rule, or those of the first job with the same request, which was answered before anything went wrong.
        """
        if self.rule is not None:
            return self.rule(asked)
        twin = self._twins.get(_request(asked))
        return None if twin is None else (twin.tokens, twin.text)

    @cached_property
    def _twins(self) -> dict[tuple[object, ...], Ended]:
        found: dict[tuple[object, ...], Ended] = {}
        for asked in self.asked.values():
            job = self.jobs.get(asked.job)
            if job is not None and job.state == "succeeded" and len(job.attempts) == 1:
                found.setdefault(_request(asked), job)
        return found

    def found(self, rule: str, job_id: str, reason: str) -> Violation:
        """A violation with what was seen of its job."""
        events: list[Call | Heard] = [*self.calls.get(job_id, ()), *self.heard.get(job_id, ())]
        seen = [str(event) for event in sorted(events, key=lambda event: event.t)][-SHOWN:]
        if job_id in self.jobs:
            job = self.jobs[job_id]
            seen += [f"in the ledger: {job.state}, {len(job.entries)} tokens, attempt {job.fields.get('attempt', 0)}"]
            seen += [str(attempt) for attempt in job.attempts]
        return Violation(rule, job_id, reason, tuple(seen))


def _request(asked: Asked) -> tuple[object, ...]:
    return asked.prompt, asked.max_tokens, asked.seed, asked.temperature
