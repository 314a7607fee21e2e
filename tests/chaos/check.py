"""The promises, checked against the history of a run and what was left at its end. Pure.

Each rule looks for what breaks one promise and says of which job, why, and what was recorded of it.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from farm import keys
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.record import Call, Gone
from tests.integration.ledger.farmhand import ENDED
from tests.integration.ledger.invariants import check_dump

KEPT_ATTEMPTS = 20  # the ledger's history of a job goes back so far
GRACE_S = 2.0  # what a call may take beyond its own timeout
TELLING = ("result", "status", "map")  # calls that return the whole text
LOSSES = frozenset({"lease_ended", "worker_restarted", "engine_died", "engine_hung", "engine_broken"})
EXPECTED = frozenset({"server_unreachable", "server_full", "timeout"})  # errors that a client bears

Found = Iterator[Violation]


def lost(told: Evidence) -> Found:
    """Every acknowledged job ends, and nobody is told that it is unknown."""
    for job_id in sorted(told.history.acknowledged):
        job = told.jobs.get(job_id)
        if job is None:
            yield told.found("lost", job_id, "it was acknowledged, and the ledger does not know it")
        elif job.state not in ENDED:
            yield told.found("lost", job_id, f"it never ended: {job.state}")
        acknowledged_at = min(call.ended for call in told.calls[job_id] if call.accepts)
        for call in told.calls[job_id]:
            if call.error in ("job_not_found", "job_gone") and call.t > acknowledged_at:
                yield told.found("lost", job_id, f"a client was told {call.error} at {call.ended:.2f} s")


def made_up(told: Evidence) -> Found:
    """The ledger holds no job that nobody asked for."""
    for job_id in sorted(set(told.jobs) - set(told.asked)):
        yield told.found("made up", job_id, "nobody submitted it")


def two_ends(told: Evidence) -> Found:
    """A job has one end: all clients see the same one, and nobody sees it run after somebody saw it end."""
    for job_id, calls in told.calls.items():
        job = told.jobs.get(job_id)
        if job is None:
            continue
        end_seen_at = float("inf")
        for call in calls:
            if call.state in ENDED:
                end_seen_at = min(end_seen_at, call.ended)
                if call.state != job.state:
                    yield told.found("two ends", job_id, f"{call.client} was told {call.state}; it is {job.state}")
                elif call.op in TELLING and (list(call.tokens), call.text) != (job.tokens, job.text):
                    yield told.found("two ends", job_id, f"{call.client} was told another text than the ledger has")
            elif call.state and call.t > end_seen_at:
                yield told.found("two ends", job_id, f"{call.client} saw it {call.state} after it had ended")


def unearned_end(told: Evidence) -> Found:
    """A job is cancelled, expired, failed or dead only for a cause."""
    for job in told.jobs.values():
        asked = told.asked.get(job.id)
        # A map that gives up cancels what it has in flight.
        cancels = [
            call for call in told.calls.get(job.id, ()) if call.op == "cancel" or (call.op == "map" and call.error)
        ]
        if job.state == "cancelled" and not cancels:
            yield told.found("unearned end", job.id, "it is cancelled, and nobody cancelled it")
        if job.state == "failed":
            yield told.found("unearned end", job.id, f"it failed: {job.fields.get('error')}")
        if job.state == "expired":
            lived_s = (int(job.fields["finished"]) - int(job.fields["created"])) / 1000
            if asked is None or asked.deadline_s is None or lived_s < asked.deadline_s - 0.01:
                yield told.found("unearned end", job.id, f"it expired after {lived_s:g} s, before its deadline")
        if job.state == "dead":
            losses = [attempt for attempt in job.attempts if attempt.reason in LOSSES]
            if len(losses) < 3 or (any(a.tokens for a in losses[-3:]) and len(losses) < 10):
                yield told.found("unearned end", job.id, "it is dead after too few losses")


def wrong_tokens(told: Evidence) -> Found:
    """A text is what its prompt gives: all of it if the job succeeded, else its beginning."""
    for job in told.jobs.values():
        known = told.expected(told.asked[job.id]) if job.id in told.asked else None
        if known is None:
            continue
        tokens, text = known
        if job.state == "succeeded" and (job.tokens != tokens or job.text != text):
            at = next((n for n, (a, b) in enumerate(zip(job.tokens, tokens, strict=False)) if a != b), len(job.tokens))
            yield told.found(
                "wrong tokens", job.id, f"differs at token {at}; it has {len(job.tokens)} of {len(tokens)}"
            )
        elif job.tokens != tokens[: len(job.tokens)]:
            yield told.found("wrong tokens", job.id, f"what was made before it was {job.state} is wrong")


def broken_stream(told: Evidence) -> Found:
    """A stream misses and repeats nothing, and says what the result says."""
    for job_id, heard in told.heard.items():
        job = told.jobs.get(job_id)
        if job is None:
            continue
        for _, own in itertools.groupby(sorted(heard, key=lambda h: h.reader), key=lambda h: h.reader):
            deltas = list(own)
            index = deltas[0].index - len(deltas[0].tokens)
            for delta in deltas:
                if delta.index - len(delta.tokens) != index:
                    yield told.found(
                        "broken stream",
                        job_id,
                        f"went from token {index} to {delta.index} by {len(delta.tokens)} tokens at {delta.t:.2f} s",
                    )
                if list(delta.tokens) != job.tokens[delta.index - len(delta.tokens) : delta.index]:
                    yield told.found("broken stream", job_id, f"tokens before {delta.index} are not the result's")
                index = delta.index
        for call in told.calls.get(job_id, ()):
            if call.op == "stream" and call.state == "succeeded":
                whole = "".join(h.text for h in sorted(heard, key=lambda h: (h.t, h.index)))
                if whole != job.text:
                    yield told.found("broken stream", job_id, "its pieces do not make the result's text")


def stale_write(told: Evidence) -> Found:
    """Each attempt wrote its tokens in one piece after the one before it: nobody wrote once another had claimed."""
    for job in told.jobs.values():
        attempts = job.attempts
        numbers = [attempt.attempt for attempt in attempts]
        if numbers != list(range(1, int(job.fields.get("attempt", 0)) + 1))[-KEPT_ATTEMPTS:]:
            yield told.found("stale write", job.id, f"attempts {numbers} are not one after the other")
        for one, other in itertools.pairwise(attempts):
            if other.started_at < one.ended_at:
                yield told.found("stale write", job.id, f"attempt {other.attempt} began before {one.attempt} ended")
        if job.stamps is None or len(attempts) == KEPT_ATTEMPTS:
            continue
        runs = [len(list(run)) for _, run in itertools.groupby(job.stamps)]
        claimed = [attempt.tokens for attempt in attempts if attempt.tokens]
        # The last one may add tokens and finish after its lease ended, as long as nobody else has claimed.
        surplus = sum(runs) - sum(claimed)
        if surplus > 0 and attempts and attempts[-1].reason != "finish":
            claimed = [*claimed[:-1], claimed[-1] + surplus] if attempts[-1].tokens else [*claimed, surplus]
        if runs != claimed:
            yield told.found("stale write", job.id, f"tokens lie in runs of {runs}, attempts wrote {claimed}")


def counted_twice(told: Evidence) -> Found:
    """Every job is counted once, and one attempt at most is told that its outcome stands."""
    totals = told.census.world.get(keys.TOTALS, {})
    states = Counter(job.state for job in told.jobs.values())
    for state, count in [("submitted", len(told.jobs)), *((state, states[state]) for state in ENDED)]:
        if int(totals.get(state, 0)) != count:
            yield Violation("counted twice", "", f"totals has {totals.get(state, 0)} {state}, jobs are {count}")
    finished: dict[str, set[int]] = defaultdict(set)
    for line in told.census.said:
        if line.reason == "finish" and line.state in ENDED:
            finished[line.job].add(line.attempt)
    for job_id, attempts in finished.items():
        job = told.jobs.get(job_id)
        if job is not None and attempts != {int(job.fields["attempt"])}:
            reason = f"attempts {sorted(attempts)} were told that they ended it; the latest is {job.fields['attempt']}"
            yield told.found("counted twice", job_id, reason)


def unheard(told: Evidence) -> Found:
    """Whoever waits for a job that ends hears of it, and gets no error but those that pass."""
    for call in told.history.of(Call):
        job = told.jobs.get(call.jobs[0])
        if call.error == "farm_error" and job is not None:
            yield told.found("unheard", job.id, f"{call.client} still waited in {call.op} when all was over")
        elif call.error == "deadline_unmeetable" and any(told.asked[job_id].deadline_s for job_id in call.jobs):
            continue
        elif call.error and call.error not in EXPECTED | {"farm_error", "job_not_found", "job_gone"}:
            yield told.found("unheard", call.jobs[0], f"{call.op} of {call.client} raised {call.error}")


def slow_call(told: Evidence) -> Found:
    """No call takes more than two seconds beyond its own timeout."""
    for call in told.history.of(Call):
        if call.limit_s is not None and call.took_s > call.limit_s + GRACE_S:
            reason = f"{call.op} took {call.took_s:.2f} s with a timeout of {call.limit_s:g} s"
            yield told.found("slow call", call.jobs[0], reason)


def broken_cancel(told: Evidence) -> Found:
    """A job that a cancel reported as cancelled stays cancelled."""
    for job_id, calls in told.calls.items():
        job = told.jobs.get(job_id)
        for call in calls:
            if call.op == "cancel" and call.state == "cancelled" and job is not None and job.state != "cancelled":
                yield told.found("broken cancel", job_id, f"{call.client} cancelled it; it is {job.state}")


def ledger_disagrees(told: Evidence) -> Found:
    """Queues, sets, counters and jobs agree."""
    try:
        check_dump(told.census.world)
    except AssertionError as error:
        yield Violation("ledger disagrees", "", str(error) or "see tests/integration/ledger/farmhand.py")


def leaked_keys(told: Evidence) -> Found:
    """When all workers have left and every retention has passed, nothing of jobs and workers is left."""
    if told.census.leaked:
        some = ", ".join(told.census.leaked[:10])
        yield Violation("leaked keys", "", f"{len(told.census.leaked)} keys stayed: {some}")


def broken_worker(told: Evidence) -> Found:
    """A worker ends only when it is asked to, drains in time, and leaves no engine behind."""
    for gone in told.history.of(Gone):
        if not gone.wanted:
            yield Violation("broken worker", "", f"{gone.name} ended by itself at {gone.t:.1f} s, code {gone.code}")
        if gone.wanted == "terminate" and gone.was_up and gone.code != 0:
            yield Violation("broken worker", "", f"{gone.name} was terminated and ended with code {gone.code}")
    for name in told.census.late:
        yield Violation("broken worker", "", f"{name} did not end within its time after SIGTERM")
    for pid in told.census.orphans:
        yield Violation("broken worker", "", f"engine {pid} outlived its worker")


RULES: tuple[Callable[[Evidence], Found], ...] = (
    lost,
    made_up,
    two_ends,
    unearned_end,
    wrong_tokens,
    broken_stream,
    stale_write,
    counted_twice,
    unheard,
    slow_call,
    broken_cancel,
    ledger_disagrees,
    leaked_keys,
    broken_worker,
)
DUPLICATES = frozenset({"two ends", "wrong tokens", "broken stream", "stale write", "counted twice"})


def check(told: Evidence, rules: Iterable[Callable[[Evidence], Found]] = RULES) -> list[Violation]:
    """All broken promises."""
    return [violation for rule in rules for violation in rule(told)]
