"""What a worker's engines computed, and what became of it: useful or wasted, every token once.

Tokens that were prefilled are booked as an engine reports them. A token that was sampled is booked when its fate is
known: the ledger took it (generated), its job was gone by then (cancelled), or nobody could write it down (lost). So
once nothing is under way, the kinds add up to what the engines computed, over all lives of the engine. What an engine
computed and died before reporting, a fraction of a second's work, is in neither.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from workers.aboard import Aboard
from workers.engine.distribution import Distribution
from workers.engine.protocol import Emitted, Report, Stats
from workers.engine.tally import BATCH_BOUNDS, STEP_BOUNDS

KINDS = ("prompt", "generated", "resumed", "recomputed", "cancelled", "lost")
Fate = Literal["cancelled", "lost"]

TTFT_BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""An idle farm's tens of milliseconds, the second or so that people wait for a stream, and the time in a long queue."""
TPOT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0)
"""From a tiny model's to a large one's on a CPU, finest around 20 to 50 ms, where people read along."""
QUEUE_BOUNDS = (0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""The few milliseconds of a dispatch with room, then the minutes and hours of a batch."""
E2E_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0)
"""A short answer on an idle farm up to a batch's hours in the queue."""


@dataclass(slots=True)
class Latencies:
    """What jobs had to wait, in seconds."""

    ttft: Distribution
    time_per_output_token: Distribution
    queue: Distribution
    e2e: Distribution


@dataclass(frozen=True, slots=True)
class Books:
    """The account at one moment. ``tokens`` by kind, ``computed`` by phase; of engines since the worker began."""

    tokens: dict[str, int]
    computed: dict[str, int]
    steps: int
    preemptions: int
    out_of_memory: int
    cached_prompt_tokens: int
    batch_sizes: tuple[list[int], float]
    step_seconds: tuple[list[int], float]
    ttft: tuple[list[int], float]
    time_per_output_token: tuple[list[int], float]
    queue: tuple[list[int], float]
    e2e: tuple[list[int], float]


class Account:
    """Counts of one worker. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._batch_sizes = Distribution(BATCH_BOUNDS)
        self._step_seconds = Distribution(STEP_BOUNDS)
        self._waits = Latencies(*map(Distribution, (TTFT_BOUNDS, TPOT_BOUNDS, QUEUE_BOUNDS, E2E_BOUNDS)))
        self._last = Report(0, 0, 0, [])

    def begin_life(self) -> None:
        """The next report is of a new engine, which counts from 0."""
        with self._lock:
            self._last = Report(0, 0, 0, [])

    def absorb(self, report: Report) -> None:
        """Book what an engine has done since its last report, all but the tokens that it gave."""
        with self._lock:
            last, now, before = self._last, report.stats, self._last.stats
            self._last = report
            self._counts["steps"] += report.steps - last.steps
            for name in ("preemptions", "out_of_memory", "cached_prompt_tokens"):
                self._counts[name] += getattr(now, name) - getattr(before, name)
            prefilled = {kind: _grown(f"{kind}_tokens", now, before) for kind in ("prompt", "resumed", "recomputed")}
            sampled, endings = _grown("generated_tokens", now, before), _grown("ending_tokens", now, before)
            given = sum(len(event.tokens) for event in report.events if isinstance(event, Emitted))
            self._tokens.update(prefilled)
            # The token that ends a text is no text, but nothing was wasted.
            self._tokens["generated"] += endings
            # What the engine kept to itself: its job was cancelled, or the token was no number.
            self._tokens["cancelled"] += sampled - endings - given
            self._computed.update(prefill=sum(prefilled.values()), decode=sampled)
            _add(self._batch_sizes, now.batch_sizes, before.batch_sizes, now.decoded_rows - before.decoded_rows)
            _add(self._step_seconds, now.step_seconds, before.step_seconds, now.computing_s - before.computing_s)

    def receive(self, running: Aboard | None, tokens: int) -> None:
        """The engine gave a job tokens; None for a job that is not aboard any more."""
        with self._lock:
            if running is None or running.is_closed:
                self._tokens["cancelled"] += tokens
            else:
                running.received += tokens

    def accept(self, running: Aboard, tokens: int) -> None:
        """The ledger holds so many tokens of a job, those of earlier attempts among them."""
        with self._lock:
            new = min(running.received, tokens - len(running.claim.kept)) - running.accepted
            if new <= 0 or running.is_closed:
                return
            if not running.accepted and not running.claim.kept:
                running.ttft_s = running.total_s
                self._waits.ttft.observe(running.ttft_s)
            running.accepted += new
            self._tokens["generated"] += new

    def close(self, running: Aboard, fate: Fate) -> None:
        """A job leaves; what the ledger did not take comes to nothing."""
        with self._lock:
            if not running.is_closed:
                running.is_closed = True
                self._tokens[fate] += running.received - running.accepted

    def waited(
        self,
        *,
        time_per_output_token_s: float | None = None,
        queue_s: float | None = None,
        e2e_s: float | None = None,
    ) -> None:
        """Note what a job had to wait."""
        waits = self._waits
        pairs = ((waits.time_per_output_token, time_per_output_token_s), (waits.queue, queue_s), (waits.e2e, e2e_s))
        with self._lock:
            for distribution, seconds in pairs:
                if seconds is not None:
                    distribution.observe(max(0.0, seconds))

    def read(self) -> Books:
        """All of it, as of one moment."""
        with self._lock:
            waits = self._waits
            return Books(
                tokens={kind: self._tokens[kind] for kind in KINDS},
                computed={phase: self._computed[phase] for phase in ("prefill", "decode")},
                steps=self._counts["steps"],
                preemptions=self._counts["preemptions"],
                out_of_memory=self._counts["out_of_memory"],
                cached_prompt_tokens=self._counts["cached_prompt_tokens"],
                batch_sizes=_state(self._batch_sizes),
                step_seconds=_state(self._step_seconds),
                ttft=_state(waits.ttft),
                time_per_output_token=_state(waits.time_per_output_token),
                queue=_state(waits.queue),
                e2e=_state(waits.e2e),
            )


def _grown(name: str, now: Stats, before: Stats) -> int:
    grown: int = getattr(now, name) - getattr(before, name)
    return grown


def _add(to: Distribution, now: tuple[int, ...], before: tuple[int, ...], total: float) -> None:
    if now:
        to.add([count - old for count, old in zip(now, before or (0,) * len(now), strict=True)], total)


def _state(distribution: Distribution) -> tuple[list[int], float]:
    return list(distribution.counts), distribution.total
