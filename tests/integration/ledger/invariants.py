"""What holds of the ledger's keys at any moment."""

from __future__ import annotations

from collections import Counter
from typing import Any

from farm import keys
from tests.integration.ledger.farmhand import ENDED, Field, indices


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
    for member in get("finished", {}):
        put(member.split("|")[0], "finished")
    for job_id in get("dead", {}):
        put(job_id, "dead")

    allowed = {
        "queued": (["queue"], ["delayed"]),
        "dispatched": (["dispatched"],),
        "running": (["running", "held"],),
        "dead": (["finished", "dead"],),
    }
    for job_id, job in jobs.items():
        assert places[job_id] in allowed.get(job["state"], (["finished"],)), (
            f"{job_id} {job['state']}: {places[job_id]}"
        )
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
    weights = [int(member.split("|")[1]) for member in get("finished", {})]
    assert int(get("finished_bytes", 0)) == sum(weights), "finished_bytes is not the sum of its members"
    return jobs
