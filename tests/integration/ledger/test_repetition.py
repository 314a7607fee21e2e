"""Every script may be sent twice: a lost answer is followed by the same call again, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from farm import keys
from farm.ledger import dead
from farm.ledger.attempts import Advance, Attempts
from farm.ledger.files import Files
from farm.ledger.gauges import read_gauges
from farm.ledger.scripts import NAMES
from farm.ledger.webhooks import Outbox, WebhookSecrets
from tests.integration.ledger.farmhand import FACTS, MODEL, Field, Hand, failed, succeeded, token

Deed = Callable[[Field, Hand, str], Any]

# What may differ after a repetition: times of beats and renewals, notifications, and how long a lead lasts.
MOVING = ("events", "beat", "workers", "running", "leader", "wake", "batches_due")


def advance(hand: Hand, job: str, tokens: int) -> Advance:
    run = hand.runs[job]
    return Advance(job, run.nonce, 0, [token(index, run.nonce) for index in range(tokens)], prompt_tokens=3)


DEEDS: dict[str, Deed] = {
    "submit": lambda field, _, __: field.jobs.submit([field.place("again", job_id="twice", deadline_s=9)]),
    "claim": lambda field, hand, _: hand.attempts.claim(_waiting(field).id, _waiting(field).number, "nonce"),
    "progress": lambda _, hand, job: hand.attempts.progress([advance(hand, job, 5)], 2, draining=True),
    "finish": lambda _, hand, job: hand.attempts.finish(advance(hand, job, 5), succeeded()),
    "finish as failed": lambda _, hand, job: hand.attempts.finish(advance(hand, job, 5), failed()),
    "release drain": lambda _, hand, job: _release(hand, job, "drain", draining=True),
    "release retry": lambda _, hand, job: _release(hand, job, "retry", wait_s=5),
    "release lost": lambda _, hand, job: _release(hand, job, "lost"),
    "cancel": lambda field, _, job: field.jobs.cancel([job, _waiting(field).id, "nobody"]),
    "register": lambda _, hand, __: hand.attempts.register("barn", MODEL, 2, "model", FACTS),
    "register anew": lambda field, _, __: _successor(field).register("barn", MODEL, 2, "model", FACTS),
    "leave": lambda _, hand, __: hand.attempts.leave(),
    "upkeep": lambda field, _, __: field.keep(),
    "upkeep after a lease": lambda field, _, job: _end_lease(field, job),
    "forget": lambda field, _, __: field.jobs.forget("default", ["done", "nobody"]),
    "webhook_note": lambda field, _, __: _note_webhook(field, "retry"),
    "webhook_note of a success": lambda field, _, __: _note_webhook(field, "delivered"),
    "webhook_rotate": lambda field, _, __: WebhookSecrets(field.jobs).rotate("ann", "whsec_new"),
    "file_add": lambda field, _, __: _file(field),
    "file_drop": lambda field, _, __: field.jobs.scripts.call("file_drop", "file-1", "default", ""),
    "batch_add": lambda field, _, __: _batch(field),
    "batch_keep": lambda field, _, __: _driven(field, "batch_keep", 10_000, 1, "in_progress", 1, "part", "total", 3),
    "batch_cancel": lambda field, _, __: field.jobs.scripts.call("batch_cancel", "batch_1", "default"),
    "batch_end": lambda field, _, __: _driven(
        field, "batch_end", "completed", 1000, "batches/batch_1/", 0, "output_file", "file-2", "p", "name", 9, 9, 1000
    ),
    "revive": lambda field, _, __: field.jobs.scripts.call("revive", "token", 0, "dead", "nobody"),
    "revive anew": lambda field, _, __: field.jobs.scripts.call("revive", "token", 1, "dead"),
    "purge": lambda field, _, __: dead.purge(field.jobs, ["dead", "nobody"]),
    "tidy": lambda field, _, __: field.keeper.tidy(),
    "gauges": lambda field, _, __: read_gauges(field.jobs),
    "mark": lambda field, _, __: field.jobs.scripts.call("mark"),
    "pieces": lambda field, _, job: field.jobs.pieces([(job, 0), (job, 1), ("nobody", 0)]),
    "position": lambda field, _, __: field.jobs.view(_waiting(field).id, with_position=True),
}


def _note_webhook(field: Field, outcome: Any) -> None:
    """The same call of a webhook, noted once more."""
    Outbox(field.jobs).note(field.calls[0], outcome)


def _file(field: Field) -> None:
    Files(field.jobs).add("file-1", "default", "files/1", filename="a", purpose="batch", size=9)


def _batch(field: Field) -> None:
    field.jobs.scripts.call("batch_add", "batch_1", "default", "file-1", "f", 9, 60_000, "endpoint", "/v1/completions")


def _driven(field: Field, script: str, *args: str | int) -> None:
    """The same word of whoever drives a batch, said once more."""
    field.jobs.scripts.call(script, "batch_1", "nonce", *args)


def _waiting(field: Field) -> Any:
    return list(field.mail.values())[-1]


def _release(hand: Hand, job: str, kind: Any, **more: Any) -> Any:
    return hand.attempts.release([(job, hand.runs[job].nonce)], kind, kind, **more)


def _end_lease(field: Field, job: str) -> None:
    if field.state(job) == "running":
        field.client.zadd(f"{keys.PREFIX}running", {job: 0})
    field.keep()


def _successor(field: Field) -> Attempts:
    return Attempts(field.jobs, "barn-successor")


def prepare(field: Field, name: str) -> None:
    """What a deed needs to have something to do."""
    if name == "upkeep":
        field.later(2500)
        field.worker("mill")
    if name.split()[0] in ("revive", "purge"):
        field.jobs.submit([field.place(job_id="dead", deadline_s=60)])
        hand = field.worker("mill", 2)
        for _ in range(3):
            field.run(hand, "dead")
            hand.release("lost", "engine_lost", ["dead"])
    if name == "forget":
        field.jobs.submit([field.place(job_id="done")])
        field.jobs.cancel(["done"])
    if name.split()[0] == "webhook_note":
        field.jobs.submit([field.place("again", job_id="hooked", webhook_url="https://example.com/")])
        field.jobs.cancel(["hooked"])
        field.calls = Outbox(field.jobs).take(1, {})
    if name == "file_drop" or name.startswith("batch"):
        _file(field)
    if name.startswith("batch") and name != "batch_add":
        _batch(field)
    if name in ("batch_keep", "batch_end"):
        field.jobs.scripts.call("batch_take", "nonce", "barn", 10_000)


def steady(field: Field) -> dict[str, Any]:
    """All that the server holds, but for what moves with the clock."""
    world = field.dump(but=MOVING)
    for key in world:
        if key.startswith(f"{keys.PREFIX}rate:"):
            world[key] = {"per_s": world[key]["per_s"]}
    return world


def test_every_script_is_repeated_here() -> None:
    """No script is left out but those that take something new each time, as they should: dispatch within the room that
    there is, take a request, webhook_take and batch_take what is due (see the tests of each)."""
    assert {name.split()[0] for name in DEEDS} | {"dispatch", "take", "webhook_take", "batch_take"} == set(NAMES)


@pytest.mark.parametrize("name", DEEDS)
def test_a_script_sent_twice_leaves_the_same_state(field: Field, name: str) -> None:
    """All keys hold after the second call what they held after the first."""
    jobs = field.submit(4, deadline_s=60)
    hand = field.worker("barn", 2)
    field.run(hand, jobs[0])
    hand.write(jobs[0], 2)
    field.keep()
    prepare(field, name)
    DEEDS[name](field, hand, jobs[0])
    once = steady(field)
    for _ in range(2):
        DEEDS[name](field, hand, jobs[0])
        assert steady(field) == once


def test_a_dispatch_whose_answer_is_lost_loses_no_job(field: Field) -> None:
    """Jobs chosen in an answer that nobody got are published again after the time that a claim may take."""
    jobs = field.submit(3)
    hand = field.worker("barn", 1)
    field.dispatch()
    field.mail.clear()
    field.later(2001)
    hand.beat()
    assert {message.id for message in field.keep().messages} == set(jobs)
