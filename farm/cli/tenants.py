"""``farm tenants`` and ``farm usage``: who shares the farm, by which weight and limits, and what each used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, LimitOption, Weight, parse_limits, reachable_settings
from farm.cli.output import emit, note, stdout, table
from farm.errors import InvalidRequest
from farm.ledger.jobs import Jobs
from farm.ledger.tenants import Tenant, Tenants
from farm.ledger.usage import UsageDay, read_usage

app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        "farm tenants",
        "farm tenants ann",
        "farm tenants ann --weight 3 --limit queued_jobs=1000 --limit requests_per_s=20",
        "farm tenants ann --limit queued_jobs=none --limit requests_per_s=default",
    ),
)
def tenants(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One tenant; all that are known without it.", show_default=False),
    ] = None,
    weight: Weight = None,
    limit: LimitOption = None,
    as_json: Json = False,
) -> None:
    """Show tenants' weights, limits and queues, or change them.

    A tenant need not be made: it is there from its first job on. Listed are those with a key, a weight, a limit or a
    queued job.
    """
    limits = parse_limits(limit or [])
    if name is None and (limits or weight is not None):
        raise InvalidRequest("NAME", "is missing; say whose weight or limits these are")
    with _ledger() as jobs:
        book = Tenants(jobs)
        if name is None:
            found = book.list()
        elif limits or weight is not None:
            found = [book.change(name, weight=weight, limits=limits)]
        else:
            found = [book.get(name)]
    if as_json:
        emit({"tenants": [_to_dict(tenant) for tenant in found]} if name is None else _to_dict(found[0]))
    elif found:
        stdout().print(_tenants(found))
    else:
        note("no tenant has a key, a weight, a limit or a queued job")


@app.command(
    cls=Command,
    epilog=examples(
        "farm usage",
        "farm usage --tenant ann --days 7",
        "farm usage --days 31 --json | jq '[.usage[].total_tokens] | add'",
    ),
)
def usage(
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="One tenant's alone.", show_default="all tenants")
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", help="So many days, today included.")] = 30,
    as_json: Json = False,
) -> None:
    """Show the jobs and tokens of each tenant and day.

    A job counts on the day that it ends, in UTC by the server's clock.
    """
    with _ledger() as jobs:
        found = read_usage(jobs, tenant, days=days)
    if as_json:
        emit({"usage": [account.to_dict() for account in found]})
    elif found:
        stdout().print(_usage(found))
    else:
        note(f"nothing ended in {'the last day' if days == 1 else f'the last {days:,} days'}")


@contextmanager
def _ledger() -> Iterator[Jobs]:
    jobs = Jobs(reachable_settings())
    try:
        yield jobs
    finally:
        jobs.client.close()


def _to_dict(tenant: Tenant) -> dict[str, Any]:
    return {**asdict(tenant), "own": list(tenant.own)}


def _tenants(found: list[Tenant]) -> object:
    numbers = ("weight", "queued", "most", "tokens", "most tokens", "req/s", "burst")
    shown = table("tenant", *numbers, right=numbers)
    for tenant in found:
        limits = tenant.limits
        shown.add_row(
            tenant.name,
            f"{tenant.weight:g}",
            f"{tenant.queued_jobs:,}",
            _limit(limits.queued_jobs),
            f"{tenant.queued_tokens:,}",
            _limit(limits.queued_tokens),
            _limit(limits.requests_per_s),
            _limit(limits.burst),
        )
    return shown


def _limit(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


def _usage(found: list[UsageDay]) -> object:
    numbers = ("jobs", "succeeded", "others", "prompt", "generated", "resumed")
    shown = table("day", "tenant", *numbers, right=numbers)

    def add(day: str, tenant: str, accounts: list[UsageDay]) -> None:
        jobs, done = (sum(getattr(account, name) for account in accounts) for name in ("jobs", "succeeded"))
        tokens = ("prompt_tokens", "completion_tokens", "resumed_tokens")
        counts = (jobs, done, jobs - done, *(sum(getattr(account, name) for account in accounts) for name in tokens))
        shown.add_row(day, tenant, *(f"{count:,}" for count in counts))

    for account in found:
        add(account.day.isoformat(), account.tenant, [account])
    if len(found) > 1:
        add("all", "", found)
    return shown
