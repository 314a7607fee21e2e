"""A farm in miniature for tests of the ledger: workers, keepers, messages and time, all moved by hand."""

from __future__ import annotations

import json
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
local zsets = {'running', 'dispatched', 'delayed', 'deadlines', 'finished', 'undelivered', 'dead', 'workers',
  'webhooks', 'hook_tenants', 'files_due', 'files_trash', 'batches_due'}
for i, name in ipairs(zsets) do zsets[i] = P .. name end
for _, family in ipairs({'hooks:*', 'hook_lanes:*', 'files:*', 'batches:*'}) do
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

    def lose(self) -> None:
        """The engine dies with all that is aboard."""
        self.release("lost", "engine_lost")

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
