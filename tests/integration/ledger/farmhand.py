"""A farm in miniature for tests of the ledger: workers, keepers, messages and time, all moved by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farm import keys
from farm.contracts import JobState, Request
from farm.ledger.attempts import Advance, Attempts, Claim, Kept, Outcome, Refusal, ReleaseKind
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts, Submission, entry
from farm.ledger.upkeep import Dispatch, Round, Upkeep
from farm.ledger.webhooks import Due
from farm.results import JobError, JobView

MODEL = "tiny-bloom"
ENDED = ("succeeded", "failed", "cancelled", "expired", "dead")
FACTS = ModelFacts(MODEL, 2048, 512, "f00d", "/nowhere")

# Everything that the ledger remembers as a time, moved into the past. ARGV: ms, '1' when nobody beat meanwhile.
_LATER = """
local P, ms = KEYS[1], tonumber(ARGV[1])
local zsets = {'running', 'dispatched', 'delayed', 'deadlines', 'kept_oldest', 'kept_newest', 'finished',
  'undelivered', 'dead', 'workers', 'webhooks', 'hook_tenants', 'files_due', 'files_trash', 'batches_due'}
for i, name in ipairs(zsets) do zsets[i] = P .. name end
for _, family in ipairs({'hooks:*', 'hook_lanes:*', 'files:*', 'batches:*', 'kept:*'}) do
  for _, key in ipairs(redis.call('KEYS', P .. family)) do zsets[#zsets + 1] = key end
end
for _, key in ipairs(zsets) do
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do redis.call('ZADD', key, string.format('%.0f', members[i + 1] - ms), members[i]) end
end
for _, name in ipairs({'beat', 'grace'}) do
  local value = redis.call('GET', P .. name)
  if value and (name ~= 'beat' or ARGV[2] == '1') then
    redis.call('SET', P .. name, string.format('%.0f', value - ms))
  end
end
for _, kind in ipairs({'job:*', 'batch:*', 'file:*'}) do
  for _, key in ipairs(redis.call('KEYS', P .. kind)) do
    for _, name in ipairs({'deadline', 'claimed', 'created', 'started', 'finished', 'not_before', 'first_token',
        'revived', 'expires'}) do
      local value = redis.call('HGET', key, name)
      if value and value ~= '0' then redis.call('HSET', key, name, string.format('%.0f', value - ms)) end
    end
  end
end
for _, key in ipairs(redis.call('KEYS', P .. '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, left - ms) end
end
"""


@dataclass
class Run:
    """One attempt as its worker sees it: the job, its nonce, and the entries it has from index 0 on."""

    id: str
    nonce: str
    entries: list[str]

    def generate(self, tokens: int) -> None:
        """Add tokens: each carries its index, so holes and doubles show, and the nonce of its maker."""
        for _ in range(tokens):
            self.entries.append(token(len(self.entries), self.nonce))

    def advance(self, start: int = 0, upto: int | None = None) -> Advance:
        """The entries from ``start`` on, as a worker sends them."""
        return Advance(self.id, self.nonce, start, self.entries[start:upto], prompt_tokens=3)


@dataclass
class Hand:
    """One incarnation of a worker."""

    name: str
    attempts: Attempts
    capacity: int
    model: str = MODEL
    runs: dict[str, Run] = field(default_factory=dict)

    def claim(self, message: Dispatch, nonce: str | None = None) -> Claim | Refusal:
        """Claim a job for a message and keep the run when granted."""
        answer = self.attempts.claim(message.id, message.number, nonce)
        if isinstance(answer, Claim):
            kept = [entry(number, text, None, None) for number, text in answer.kept]
            self.runs[message.id] = Run(message.id, answer.nonce, kept)
        return answer

    def write(self, job_id: str, tokens: int) -> Kept:
        """Generate tokens for one job and write them, renewing all leases."""
        self.runs[job_id].generate(tokens)
        return self.beat()[job_id]

    def beat(self, *, draining: bool = False) -> dict[str, Kept]:
        """Write what all jobs have and renew their leases."""
        _, words = self.attempts.progress(
            [run.advance() for run in self.runs.values()], self.capacity, draining=draining
        )
        return dict(zip(self.runs, words, strict=True))

    def finish(self, job_id: str, tokens: int = 0) -> Kept | JobState | None:
        """Generate some last tokens and end the job as succeeded."""
        run = self.runs[job_id]
        run.generate(tokens)
        answer = self.attempts.finish(run.advance(), succeeded())
        del self.runs[job_id]
        return answer

    def release(self, kind: ReleaseKind, reason: str, job_ids: Sequence[str] | None = None, **more: Any) -> Any:
        """Hand back some jobs, or all."""
        wanted = list(self.runs if job_ids is None else job_ids)
        runs = [self.runs.pop(job_id) for job_id in wanted]
        return self.attempts.release([(run.id, run.nonce) for run in runs], kind, reason, **more)


class Field:
    """The server, its jobs and everything around them."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.client = jobs.client
        self.keeper = Upkeep(jobs)
        self._later = self.client.register_script(_LATER)
        self.mail: dict[str, Dispatch] = {}
        self.calls: list[Due] = []
        self._incarnations = 0

    # Producers

    def place(self, prompt: str = "Once", **more: Any) -> Submission:
        fields = {name: more.pop(name) for name in list(more) if name in Request.model_fields}
        return self.jobs.place(Request(prompt=prompt, **fields), **more)

    def submit(self, count: int = 1, prompt: str = "Once", **more: Any) -> list[str]:
        """Submit jobs; returns their ids in order."""
        placed = [self.place(prompt, **more) for _ in range(count)]
        self.jobs.submit(placed)
        return [job.id for job in placed]

    def view(self, job_id: str) -> JobView:
        return self.jobs.view(job_id)

    def state(self, job_id: str) -> str:
        return str(self.client.hget(keys.job(job_id), "state") or "")

    # Workers and keepers

    def worker(self, name: str = "barn", capacity: int = 2, model: str = MODEL, role: str = "model") -> Hand:
        """A new incarnation of a worker, registered."""
        self._incarnations += 1
        attempts = Attempts(self.jobs, f"{name}-{self._incarnations}")
        attempts.register(name, model, capacity, role, FACTS if model == MODEL else None)
        return Hand(name, attempts, capacity, model)

    def keep(self) -> Round:
        done = self.keeper.keep()
        self.mail |= {message.id: message for message in done.messages}
        return done

    def dispatch(self) -> list[Dispatch]:
        messages = self.keeper.dispatch().messages
        self.mail |= {message.id: message for message in messages}
        return messages

    def run(self, hand: Hand, job_id: str, *, tries: int = 40) -> Run:
        """Have one queued job claimed by one worker, whatever must happen first."""
        for _ in range(tries):
            self.dispatch()
            if job_id in self.mail and isinstance(hand.claim(self.mail.pop(job_id)), Claim):
                return hand.runs[job_id]
            self.keep()
            hand.beat()
            self.later(600)
        raise AssertionError(f"{job_id} was not claimed; it is {self.state(job_id)}")

    def crash(self, hand: Hand) -> None:
        """A worker dies; others live on and its leases end."""
        hand.runs.clear()
        self.later(self.jobs.settings.lease.lease_s * 1000 + 1)
        self.keep()

    # Time

    def later(self, milliseconds: float, *, silent: bool = False) -> None:
        """Let time pass. ``silent``: nobody reached the server meanwhile; otherwise somebody did."""
        self._later(keys=[keys.PREFIX], args=[int(milliseconds), int(silent)])

    # What the server holds

    def dump(self, *, but: Sequence[str] = ()) -> dict[str, Any]:
        """All keys and what they hold, in an order that does not depend on how the server stores them."""
        scanned = set(self.client.scan_iter(f"{keys.PREFIX}*", count=10_000))
        found = sorted(key for key in scanned if key.removeprefix(keys.PREFIX) not in but)
        with self.client.pipeline(transaction=False) as pipe:
            for key in found:
                pipe.type(key)
            for key, kind in zip(found, pipe.execute(), strict=True):
                _ask(pipe, key, kind)
            values = pipe.execute()
        return {key: dict(value) if _is_scored(value) else value for key, value in zip(found, values, strict=True)}

    def read(self, key: str) -> Any:
        return self.dump().get(key)

    def snapshot(self, raw: Any) -> dict[bytes, tuple[int, bytes]]:
        """All keys as the server would save them. ``raw``: a client that decodes nothing."""
        return {key: (max(0, raw.pttl(key)), raw.dump(key)) for key in raw.scan_iter(count=10_000)}

    def restore(self, raw: Any, saved: dict[bytes, tuple[int, bytes]]) -> None:
        """Put the server back to a snapshot, as an older file would."""
        raw.flushall()
        for key, (ttl, value) in saved.items():
            raw.restore(key, ttl, value)


def _ask(pipe: Any, key: str, kind: str) -> None:
    if kind == "hash":
        pipe.hgetall(key)
    elif kind == "list":
        pipe.lrange(key, 0, -1)
    elif kind == "set":
        pipe.smembers(key)
    elif kind == "zset":
        pipe.zrange(key, 0, -1, withscores=True)
    elif kind == "stream":
        pipe.xrange(key)
    else:
        pipe.get(key)


def _is_scored(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and len(value[0]) == 2 and isinstance(value[0][1], float)


def token(index: int, maker: str) -> str:
    """The entry of one token."""
    return entry(index, maker, None, None)


def indices(entries: Sequence[str]) -> list[int]:
    """The token ids of stored entries: 0, 1, 2, … when there is neither hole nor double."""
    return [json.loads(item)[0] for item in entries]


def succeeded(reason: str = "length") -> Outcome:
    return Outcome(JobState.SUCCEEDED, reason, "", "f00d")


def failed() -> Outcome:
    return Outcome(JobState.FAILED, None, "", "f00d", JobError("broken", "it broke"))


def check(field: Field) -> dict[str, dict[str, str]]:
    """Assert what must hold of the ledger at any moment. Returns all jobs' hashes."""
    world = field.dump(but=("events",))
    jobs = check_dump(world)
    for job_id, job in jobs.items():
        ttl = field.client.ttl(keys.job(job_id))
        assert (ttl > 0) == (job["state"] in ENDED), f"{job_id} {job['state']} lives for {ttl} s"
        entries = world.get(keys.out(job_id), [])
        assert indices(entries) == list(range(len(entries))), f"{job_id} has holes or doubles: {entries}"
    return jobs


def check_dump(world: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Assert what must hold of a ledger's keys at any moment, whatever the tokens are. Returns all jobs' hashes."""
    families: dict[str, dict[str, Any]] = {}
    for key, value in world.items():
        name, _, rest = key.removeprefix(keys.PREFIX).partition(":")
        families.setdefault(name, {})[rest] = value

    def get(name: str, empty: Any) -> Any:
        return families.get(name, {}).get("", empty)

    def family(name: str) -> dict[str, Any]:
        return families.get(name, {})

    jobs = family("job")
    places: dict[str, list[str]] = {job_id: [] for job_id in jobs}

    def put(job_id: str, place: str) -> None:
        assert job_id in places, f"{place} holds {job_id}, which is no job"
        places[job_id].append(place)

    for name, members in family("queue").items():
        model, priority, tenant = name.split(":")
        for job_id, seq in members.items():
            put(job_id, "queue")
            job = jobs[job_id]
            assert (job["model"], job["priority"], job["tenant"]) == (model, priority, tenant)
            assert int(job["seq"]) == seq, "a job lost its place in its queue"
    for name in ("delayed", "dispatched", "running"):
        for job_id in get(name, {}):
            put(job_id, name)
    for worker, held in family("held").items():
        for job_id in held:
            put(job_id, "held")
            assert jobs[job_id]["worker"] == worker
    for tenant, members in family("kept").items():
        for member, ended in members.items():
            put(job_id := member.split("|")[0], "kept")
            assert (jobs[job_id]["tenant"], int(jobs[job_id]["finished"])) == (tenant, ended)
    for member in get("finished", {}):
        put(member.split("|")[0], "kept")
    for job_id in get("dead", {}):
        put(job_id, "dead")

    allowed = {
        "queued": (["queue"], ["delayed"]),
        "dispatched": (["dispatched"],),
        "running": (["running", "held"],),
        "dead": (["kept", "dead"],),
    }
    for job_id, job in jobs.items():
        assert places[job_id] in allowed.get(job["state"], (["kept"],)), f"{job_id} {job['state']}: {places[job_id]}"
        is_over = job["state"] in ENDED
        assert is_over == ("finished" in job)
        has_deadline = job_id in get("deadlines", {})
        assert has_deadline == ("deadline" in job and not is_over)
        assert 0 <= int(job.get("strikes", 0)) <= 3
        assert 0 <= int(job.get("losses", 0)) <= 10
        assert len(family("history").get(job_id, [])) <= 20
    for name in ("out", "history"):
        assert set(family(name)) <= set(jobs), f"{name} of jobs that are gone"

    for model in {job["model"] for job in jobs.values()}:
        states = [job["state"] for job in jobs.values() if job["model"] == model]
        counts = family("counts").get(model, {})
        for state in ("queued", "dispatched", "running"):
            assert int(counts.get(state, 0)) == states.count(state), f"counts.{state} is {counts}, jobs are {states}"

    waiting = [job for job in jobs.values() if job["state"] in ("queued", "dispatched")]
    by_tenant: dict[str, list[int]] = {}
    for job in waiting:
        by_tenant.setdefault(job["tenant"], []).append(int(job["cost"]))
    counted = {tenant: int(count) for tenant, count in get("waiting_jobs", {}).items()}
    assert counted == {tenant: len(costs) for tenant, costs in by_tenant.items()}, "waiting jobs are miscounted"
    counted = {tenant: int(count) for tenant, count in get("waiting_tokens", {}).items()}
    assert counted == {tenant: sum(costs) for tenant, costs in by_tenant.items()}, "waiting tokens are miscounted"
    assert int(get("waiting", 0)) == len(waiting)
    for model, levels in family("depth").items():
        at = Counter(job["priority"] for job in waiting if job["model"] == model)
        assert {level: int(count) for level, count in levels.items() if int(count)} == at, "depth is miscounted"
    hooks = sum(len(members) for members in family("hooks").values())
    assert int(get("hooks_waiting", 0)) == hooks, "webhooks are miscounted"
    listed_lanes = {lane for lanes in family("hook_lanes").values() for lane in lanes}
    assert set(family("hooks")) == listed_lanes == set(get("webhooks", {})), "lanes of webhooks are not listed"
    assert set(family("hook_lanes")) == set(get("hook_tenants", {})), "tenants with webhooks are not listed"

    listed = {(tenant, job_id): seq for tenant, ids in family("jobs").items() for job_id, seq in ids.items()}
    assert listed == {(job["tenant"], job_id): int(job["seq"]) for job_id, job in jobs.items()}, "lists are wrong"

    lanes = {(*name.split(":"), tenant): score for name, ts in family("lanes").items() for tenant, score in ts.items()}
    assert set(lanes) == {tuple(name.split(":")) for name in family("queue")}, "lanes and queues disagree"
    for (model, _, tenant), score in lanes.items():
        assert float(family("vtime")[model][tenant]) == score, "a lane has another virtual time than its tenant"

    owed: dict[str, dict[str, int]] = {}
    for job in jobs.values():
        if job["state"] not in ENDED and int(job.get("charged", 0)):
            tenants = owed.setdefault(job["model"], {})
            tenants[job["tenant"]] = tenants.get(job["tenant"], 0) + int(job["charged"])
    stored = {model: {tenant: int(n) for tenant, n in tenants.items()} for model, tenants in family("owed").items()}
    assert stored == owed, "what tenants owe is not what their jobs were charged"

    used: dict[str, int] = {}
    for account in family("usage").values():
        for name, value in account.items():
            used[name] = used.get(name, 0) + int(value)
    assert {name.split(":")[0] for name in family("usage")} == set().union(*family("used").values())
    totals = {name: int(value) for name, value in get("totals", {}).items()}
    over = sum(totals.get(state, 0) for state in ENDED)
    inside = sum(job["state"] not in ENDED for job in jobs.values())
    assert {state: used.get(state, 0) for state in ENDED} == {state: totals.get(state, 0) for state in ENDED}
    begun = totals.get("submitted", 0) + totals.get("revived", 0)
    assert begun == over + inside, f"submitted and revived is not in flight + ended: {totals}"
    tally: Counter[str] = Counter()
    for name, value in get("tally", {}).items():
        tally[name.split(":")[0]] += int(value)
    assert {state: tally[state] for state in ENDED} == {state: totals.get(state, 0) for state in ENDED}
    assert tally["submitted"] == totals.get("submitted", 0)
    account = {"prompt": "prompt_tokens", "completion": "completion_tokens", "resumed": "resumed_tokens"}
    assert {kind: tally[kind] for kind in account} == {kind: used.get(name, 0) for kind, name in account.items()}
    for day in family("spent").values():
        assert day.pop("(all)") == sum(day.values()), "tenants' tokens do not add up"
    kept = {tenant: [int(member.split("|")[1]) for member in members] for tenant, members in family("kept").items()}
    assert get("kept_jobs", {}) == {tenant: len(weights) for tenant, weights in kept.items()}
    assert get("kept_bytes", {}) == {tenant: sum(weights) for tenant, weights in kept.items()}
    assert get("kept_oldest", {}) == {tenant: min(members.values()) for tenant, members in family("kept").items()}
    assert get("kept_newest", {}) == {tenant: max(members.values()) for tenant, members in family("kept").items()}
    sums = {name: int(value) for name, value in get("kept_all", {"jobs": 0, "bytes": 0}).items()}
    every = [weight for weights in kept.values() for weight in weights]
    assert sums == {"jobs": len(every), "bytes": sum(every)}, "kept_all is not the sum of all tenants"
    earlier = [int(member.split("|")[1]) for member in get("finished", {})]
    assert int(get("finished_bytes", 0)) == sum(earlier), "finished_bytes is not the sum of its members"
    return jobs
