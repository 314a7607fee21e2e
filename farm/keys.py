"""Every key that the farm keeps in Redis: its type, lifetime and owner. The one place that spells them.

All share the hash tag ``{farm}``, so one script may touch any of them on a cluster too. Times are server milliseconds.
Scripts build the same names from the prefix they get as KEYS[1]; ``tests/unit/test_keys.py`` holds them to this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "{farm}:"


@dataclass(frozen=True, slots=True)
class Key:
    """One family of keys. ``name`` holds the parts that vary in angle brackets."""

    name: str
    type: Literal["hash", "list", "zset", "set", "string", "stream"]
    ttl: str
    holds: str


KEYS = (
    Key("job:<id>", "hash", "retention after the end", "one job: request, state, attempt, fence, outcome"),
    Key("out:<id>", "list", "retention after the end", "its generated tokens, one JSON entry each"),
    Key("history:<id>", "list", "retention after the end", "its past attempts, the latest 20"),
    Key("queue:<model>:<priority>:<tenant>", "zset", "none", "queued jobs by their sequence number"),
    Key("lanes:<model>:<priority>", "zset", "none", "tenants with queued jobs by their virtual time"),
    Key("vtime:<model>", "hash", "none", "tenants' virtual time, in tokens over weight; idle ones are forgotten"),
    Key("vclock:<model>", "string", "none", "virtual time of the latest dispatch; where newcomers start"),
    Key("owed:<model>", "hash", "none", "tokens charged to tenants for jobs that have not ended"),
    Key("weights", "hash", "none", "tenants' weights other than 1"),
    Key("delayed", "zset", "none", "queued jobs that must wait, by the time they may go"),
    Key("dispatched", "zset", "none", "jobs whose message is out, by the time to publish it again"),
    Key("running", "zset", "none", "running jobs by the end of their lease"),
    Key("deadlines", "zset", "none", "unfinished jobs with a deadline"),
    Key("finished", "zset", "none", "finished jobs as id|bytes by their end"),
    Key("finished_bytes", "string", "none", "sum of the bytes in finished"),
    Key("dead", "zset", "none", "dead jobs by their end"),
    Key("undelivered", "zset", "none", "finished plain-Celery jobs whose result is not known to be stored"),
    Key("counts:<model>", "hash", "none", "jobs now queued, dispatched, running"),
    Key("totals", "hash", "none", "jobs submitted, ended and revived, releases by reason, since the beginning"),
    Key("rate:<model>", "hash", "none", "finished jobs per second, smoothed, for eta_s"),
    Key("seq", "string", "none", "the latest sequence number given to a job"),
    Key("workers", "zset", "none", "workers by their latest beat"),
    Key("worker:<worker>", "hash", "a day once succeeded", "one worker: model, capacity, drain, suspect, or successor"),
    Key("held:<worker>", "set", "none", "the jobs that a worker runs"),
    Key("names", "hash", "none", "a worker's name -> its latest incarnation"),
    Key("models", "hash", "none", "a model's name -> its context, fingerprint and tokenizer as JSON"),
    Key("beat", "string", "none", "when a worker or keeper last reached the server"),
    Key("grace", "string", "none", "until when no lease ends, after the server was silent"),
    Key("leader", "string", "keeper.lock_s", "the leading keeper"),
    Key("full", "string", "5 s", "present while memory is short, so that new jobs are refused"),
    Key("wake", "list", "none", "holds one item when the keeper has something to do"),
    Key("events", "stream", "10,000 entries", "jobs that got tokens or ended: id, tokens, state"),
)

FULL = PREFIX + "full"
WAKE = PREFIX + "wake"
EVENTS = PREFIX + "events"
MODELS = PREFIX + "models"
WORKERS = PREFIX + "workers"
NAMES = PREFIX + "names"
TOTALS = PREFIX + "totals"
WEIGHTS = PREFIX + "weights"
UNDELIVERED = PREFIX + "undelivered"
LEADER = PREFIX + "leader"
FINISHED = PREFIX + "finished"
DEAD = PREFIX + "dead"


def job(job_id: str) -> str:
    """The key of a job's hash."""
    return f"{PREFIX}job:{job_id}"


def out(job_id: str) -> str:
    """The key of a job's tokens."""
    return f"{PREFIX}out:{job_id}"


def history(job_id: str) -> str:
    """The key of a job's past attempts."""
    return f"{PREFIX}history:{job_id}"


def worker(worker_id: str) -> str:
    """The key of a worker's hash."""
    return f"{PREFIX}worker:{worker_id}"


def held(worker_id: str) -> str:
    """The key of the set of jobs that a worker runs."""
    return f"{PREFIX}held:{worker_id}"


def counts(model: str) -> str:
    """The key of a model's job counters."""
    return f"{PREFIX}counts:{model}"


def rate(model: str) -> str:
    """The key of a model's pace."""
    return f"{PREFIX}rate:{model}"


def queue(model: str, priority: str, tenant: str) -> str:
    """The key of one tenant's queue at one priority."""
    return f"{PREFIX}queue:{model}:{priority}:{tenant}"


def lanes(model: str, priority: str) -> str:
    """The key of the tenants that have queued jobs at one priority."""
    return f"{PREFIX}lanes:{model}:{priority}"
