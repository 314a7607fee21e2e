"""One job's run as the checker is shown it, good as it begins, for tests to spoil."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from farm import keys
from tests.chaos.census import Census, Said
from tests.chaos.check import check
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.record import Asked, Call, Event, Gone, Heard, Recorder

WALL = 1_000_000.0
DAY = "1970-01-12"
TOKENS = list(range(100, 110))
TEXT = "".join(f" t{token}" for token in TOKENS)


class Story:
    """One job's run, good as it begins: two attempts, a stream that two clients share, a result, a status.

    Tests spoil it and see which rule says so.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.recorder = Recorder(tmp_path / "history.jsonl", "kills", 1)
        self.job = {
            "state": "succeeded", "model": "m", "tenant": "chaos", "priority": "normal", "seq": "1", "attempt": "2",
            "worker": "w2-b", "created": str(ms(0.0)), "finished": str(ms(9.0)), "bytes": "300", "strikes": "0",
        }  # fmt: skip
        self.entries: list[list[Any]] = [[t, f" t{t}", 1.0 if n < 4 else 2.0, []] for n, t in enumerate(TOKENS)]
        self.attempts = [attempt(1, "w1-a", 1.0, 5.0, "lease_ended", 4), attempt(2, "w2-b", 6.0, 9.0, "finish", 6)]
        self.totals = {"submitted": "1", "succeeded": "1"}
        self.more: dict[str, Any] = {}
        self.said = [Said("w2", "j", 2, "succeeded", "finish")]
        self.left: dict[str, Any] = {}
        self.events: list[Event] = [
            Asked(0.0, "j", "prompt", 10),
            Call(0.0, 0.1, "c1", "submit", ("j",), 2.0),
            Call(0.5, 0.1, "c2", "status", ("j",), 2.0, state="running", tokens=(100,), text=" t100"),
            Heard(2.0, 7, "j", 4, tuple(TOKENS[:4]), TEXT[: len(" t100") * 4]),
            Call(1.0, 1.2, "c1", "stream", ("j",)),
            Heard(8.0, 8, "j", 10, tuple(TOKENS[4:]), TEXT[len(" t100") * 4 :]),
            Call(3.0, 6.2, "c2", "stream", ("j",), state="succeeded"),
            Call(2.0, 3.0, "c3", "result", ("j",), 3.0, error="timeout"),
            Call(9.1, 0.1, "c3", "result", ("j",), 3.0, state="succeeded", tokens=tuple(TOKENS), text=TEXT),
            Gone(3.0, "w1", -9, "kill", True),
        ]

    def replace(self, kind: type[Event], **values: Any) -> None:
        """Change the last event of a kind."""
        at = max(n for n, event in enumerate(self.events) if isinstance(event, kind))
        self.events[at] = replace(self.events[at], **values)

    def call(self, op: str, t: float, took_s: float = 0.1, **values: Any) -> None:
        self.events.append(Call(t, took_s, "c9", op, ("j",), values.pop("limit_s", 2.0), **values))

    def judge(self) -> tuple[Evidence, list[Violation]]:
        for event in self.events:
            self.recorder.add(event)
        self.recorder.close()
        world = {
            keys.job("j"): self.job,
            keys.out("j"): [json.dumps(entry) for entry in self.entries],
            keys.history("j"): [json.dumps(attempt) for attempt in self.attempts],
            keys.FINISHED: {"j|300|chaos": 1.0},
            keys.jobs("chaos"): {"j": 1.0},
            keys.used(DAY): ["chaos"],
            keys.usage("chaos", DAY): {self.job["state"]: "1", "completion_tokens": str(len(self.entries))},
            keys.PREFIX + "finished_bytes": "300",
            keys.counts("m"): {"queued": "0", "dispatched": "0", "running": "0"},
            keys.TOTALS: self.totals,
            keys.PREFIX + "tally": {
                **{f"{name}:m": count for name, count in self.totals.items()},
                "completion:m": str(len(self.entries)),
            },
            **self.more,
        }
        census = Census({k: v for k, v in world.items() if v is not None}, self.said, **{"made": 10, **self.left})
        told = Evidence(self.recorder.history, census, lambda asked: (TOKENS[: asked.max_tokens], TEXT))
        return told, check(told)


def ms(seconds: float) -> int:
    return int((WALL + seconds) * 1000)


def attempt(number: int, worker: str, start: float, end: float, reason: str, tokens: int) -> dict[str, Any]:
    return {
        "attempt": number,
        "worker": worker,
        "started_at": WALL + start,
        "ended_at": WALL + end,
        "reason": reason,
        "tokens": tokens,
    }
