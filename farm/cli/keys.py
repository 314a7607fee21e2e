"""``farm keys``: make API keys, list and revoke them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from farm.cli.exits import FAILED
from farm.cli.help import Command, Group, commands, examples
from farm.cli.options import Json, LimitOption, NamedTenant, Weight, parse_limits, reachable_settings
from farm.cli.output import duration, emit, note, stdout, table
from farm.ledger.jobs import Jobs
from farm.ledger.keyring import ID_DIGITS, SCOPES, USUAL_SCOPES, KeyInfo, Keyring
from farm.ledger.webhooks import WebhookSecrets

app = commands()
keys = typer.Typer(
    name="keys",
    cls=Group,
    no_args_is_help=True,
    epilog=examples(
        "farm keys create --tenant ann --name laptop",
        "farm keys create --tenant ann --scope read --weight 3 --limit queued_jobs=1000",
        "farm keys list",
        "farm keys revoke 0d5bfa6e1c0e4b7a",
        "farm keys webhook-secret --tenant ann",
    ),
)
app.add_typer(keys)


@keys.callback()
def about() -> None:
    """Make API keys, list and revoke them.

    A key lets in whoever sends it as "Authorization: Bearer bf_…", for one tenant. The farm keeps its hash only.
    """


@keys.command(
    cls=Command,
    epilog=examples(
        "farm keys create --tenant ann --name laptop",
        "FARM_KEY=$(farm keys create --tenant ann)",
        "farm keys create --tenant ops --scope admin --json",
    ),
)
def create(
    tenant: NamedTenant,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help=f"What the key may do: {', '.join(SCOPES)}. Give it once for each.",
            show_default=" and ".join(USUAL_SCOPES),
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="TEXT", help="What the key is for, to know it again.", show_default=False)
    ] = "",
    weight: Weight = None,
    limit: LimitOption = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once.

    Weight and limits are its tenant's, whatever other keys that has; farm tenants shows and changes them.
    """
    with _keyring() as ring:
        made = ring.create(
            tenant, scopes=scope or USUAL_SCOPES, name=name, weight=weight, limits=parse_limits(limit or [])
        )
    if as_json:
        emit({**asdict(made), "scopes": list(made.scopes)})
        return
    sys.stdout.write(made.secret + "\n")
    sys.stdout.flush()
    note(
        f"Keep it now: it is not shown again, and the farm has only its hash. Key {made.id} may "
        f"{' and '.join(made.scopes)} for tenant {made.tenant}."
    )


@keys.command("list", cls=Command, epilog=examples("farm keys list", "farm keys list --json | jq -r '.keys[].id'"))
def list_keys(as_json: Json = False) -> None:
    """List all keys: whose they are, what they may do, when they were used."""
    with _keyring() as ring:
        found = ring.list()
    if as_json:
        emit({"keys": [{**asdict(key), "scopes": list(key.scopes)} for key in found]})
    elif found:
        stdout().print(_table(found))
    else:
        note("no keys; make one: farm keys create --tenant NAME")


@keys.command(cls=Command, epilog=examples("farm keys revoke 0d5bfa6e1c0e4b7a"))
def revoke(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of keys.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Have keys open nothing from now on.

    Jobs that were submitted with them run on. Fails if there is no such key.
    """
    all_known = True
    with _keyring() as ring:
        for key_id in ids:
            is_known = ring.revoke(key_id)
            all_known &= is_known
            if as_json:
                emit({"id": key_id, "revoked": is_known})
            elif is_known:
                sys.stdout.write(f"{key_id} revoked\n")
            else:
                note(f"no key has the id {key_id[:60]}; farm keys list shows them")
    if not all_known:
        raise typer.Exit(FAILED)


@keys.command(
    "webhook-secret",
    cls=Command,
    epilog=examples("farm keys webhook-secret --tenant ann", "farm keys webhook-secret --tenant ann --rotate"),
)
def webhook_secret(
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose webhooks.", show_default=False)],
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new secret; the old one signs beside it for a day.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the secret that a tenant's webhooks are signed with.

    Give it to whoever receives the webhooks, to check their signatures. It can be shown again, unlike an API key:
    signing needs it, so the server keeps it readable. --rotate makes a new one.
    """
    with _ledger() as jobs:
        secrets = WebhookSecrets(jobs)
        secret = secrets.rotate(tenant) if rotate else secrets.of(tenant)[0]
    if as_json:
        emit({"tenant": tenant, "secret": secret})
        return
    sys.stdout.write(secret + "\n")


@contextmanager
def _keyring() -> Iterator[Keyring]:
    with _ledger() as jobs:
        yield Keyring(jobs)


@contextmanager
def _ledger() -> Iterator[Jobs]:
    jobs = Jobs(reachable_settings())
    try:
        yield jobs
    finally:
        jobs.client.close()


def _table(found: list[KeyInfo]) -> object:
    shown = table("key", "tenant", "may", "made", "last used", "name")
    # An id must be whole to be of use; what has no room beside it goes on in the next line.
    shown.columns[0].min_width = ID_DIGITS
    for column in shown.columns:
        column.overflow = "fold"
    now = time.time()
    for key in found:
        used = "never" if key.last_used_at is None else f"{duration(max(0.0, now - key.last_used_at))} ago"
        made = time.strftime("%Y-%m-%d", time.localtime(key.created_at))
        shown.add_row(key.id, key.tenant, ", ".join(key.scopes), made, used, key.name)
    return shown
