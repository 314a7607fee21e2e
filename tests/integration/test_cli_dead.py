"""``farm dead`` against a real server."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from farm import keys
from farm.cli.exits import code_of
from farm.cli.main import app
from farm.errors import FarmError
from farm.ledger.dead import dead_ids
from farm.ledger.jobs import Jobs
from tests.commands import FARM, Said, environ, farm
from tests.integration.ledger.farmhand import Field
from tests.integration.ledger.test_dead import die

Ask = Callable[..., Said]


@pytest.fixture
def field(jobs: Jobs) -> Field:
    return Field(jobs)


@pytest.fixture
def url(jobs: Jobs) -> str:
    assert jobs.settings.redis.url is not None
    return jobs.settings.redis.url.get_secret_value()


@pytest.fixture
def ask(url: str) -> Ask:
    """Run ``farm dead …``, or with ``of`` another command, in this process."""

    def run(*args: object, of: str = "dead") -> Said:
        result = CliRunner().invoke(app, [of, *map(str, args)], env={"FARM_REDIS__URL": url}, prog_name="farm")
        if isinstance(result.exception, FarmError):
            return Said(code_of(result.exception), result.stdout, str(result.exception))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


def test_a_farm_without_dead_jobs_is_told_so(ask: Ask, field: Field) -> None:
    """Nothing dead is good news and no error: a kind line for people, nothing for programs."""
    said = ask("list")
    assert (said.code, said.out) == (0, "No dead jobs: nothing had to be given up.\n")
    assert ask("list", "--json").out == ""
    assert (ask("retry", "--all").code, ask("purge", "--all").code) == (0, 0)


def test_dead_jobs_are_listed(ask: Ask, field: Field) -> None:
    """What they are, how they died, and nothing of what they were asked or answered."""
    old = die(field, tenant="ann", tokens=2, prompt="a secret")
    field.later(60_000)
    new = die(field, tenant="ben")
    shown = ask("list").out
    assert shown.index(new) < shown.index(old)
    assert "attempts 3, strikes 3, losses 3, tokens 0: engine lost" in shown
    assert "secret" not in shown
    assert "2 dead jobs, the latest 1 shown" in ask("list", "--limit", 1).out
    first, second = ask("list", "--json").lines
    assert (first["id"], first["tenant"], first["model"]) == (new, "ben", "tiny-bloom")
    assert (second["attempt"], second["strikes"], second["losses"], second["tokens"]) == (5, 3, 5, 2)
    assert second["reason"] == "engine lost"
    assert second["error"]["code"] == "job_dead"
    assert {"text", "prompt"}.isdisjoint(second)
    assert [job["id"] for job in ask("list", "--tenant", "ann", "--json").lines] == [old]
    assert ask("list", "--model", "another").out == "No dead jobs of model another: nothing had to be given up.\n"


def test_a_dead_job_is_shown_with_every_attempt(ask: Ask, field: Field) -> None:
    """show is farm status for the dead, and says so of a job that lives."""
    job = die(field, tokens=2)
    said = ask("show", job)
    assert said.code == 0
    assert said.out.count("engine lost") == 5
    assert [past["tokens"] for past in ask("show", job, "--json").json["history"]] == [1, 1, 0, 0, 0]
    [alive] = field.submit()
    said = ask("show", alive)
    assert said.code == 1
    assert f"job {alive} is queued, not dead" in said.err


def test_named_jobs_are_queued_again(ask: Ask, field: Field) -> None:
    """Each is told of by itself; what is not dead stays, is named with its state, and fails the command."""
    first, second = die(field, tokens=2), die(field)
    assert ask("retry", first, second).out == f"{first} queued again\n{second} queued again\n"
    said = ask("retry", first, "nobody", "--json")
    assert said.code == 1
    assert [(line["id"], line["done"], line["state"]) for line in said.lines] == [
        (first, False, "queued"),
        ("nobody", False, None),
    ]
    assert "is queued, not dead" in said.lines[0]["error"]
    assert "unknown" in said.lines[1]["error"]
    assert "retried by hand" in ask(first, of="status").out
    assert "retried   2 dead, by hand" in ask(of="status").out
    assert len(field.view(first).token_ids) == 2


def test_all_are_queued_again_or_deleted(ask: Ask, field: Field) -> None:
    """--all means those that the other options leave, asks nobody where nobody can answer, and tells how many."""
    mine, other = die(field, tenant="ann", tokens=2), die(field, tenant="ben")
    assert ask("retry", "--all", "--tenant", "ann", "--fresh").out == "1 dead job queued again\n"
    assert field.view(mine).token_ids == []
    assert dead_ids(field.jobs) == [other]
    field.later(3_600_000)
    young = die(field)
    assert ask("purge", "--all", "--older-than", "30m").out == "1 dead job deleted\n"
    assert dead_ids(field.jobs) == [young]
    assert not field.client.exists(keys.job(other))
    assert ask("purge", young).out == f"{young} deleted\n"
    [ended] = field.submit()
    field.jobs.cancel([ended])
    assert "deleted after FARM_LIMITS__RETENTION_S" in ask("purge", ended).err
    assert "submit it anew" in ask("retry", ended).err
    assert "farm status shows it" in ask("show", ended).err
    assert field.client.zcard(keys.DEAD) == 0


@pytest.mark.parametrize(("answer", "code"), [(b"n", 1), (b"y", 0)])
def test_a_person_is_asked_whether_all_are_meant(field: Field, url: str, answer: bytes, code: int) -> None:
    """At a terminal --all waits for a yes, with the number of jobs that it means."""
    job = die(field)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*FARM, "dead", "purge", "--all"], env=environ(REDIS__URL=url), stdin=theirs, stderr=subprocess.PIPE
    )
    os.write(ours, answer + b"\n")
    _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert b"1 dead job. Delete?" in err
    assert (process.returncode, bool(field.client.exists(keys.job(job)))) == (code, code == 1)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["retry"], "farm dead list shows them), or give --all"),
        (["retry", "x", "--all"], "not both"),
        (["purge", "x", "--older-than", "1d"], "narrows --all"),
        (["retry", "x", "--tenant", "ann"], "narrow --all"),
        (["purge", "--all", "--older-than", "soon"], "is no age"),
        (["list", "--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_is_2(ask: Ask, field: Field, args: list[str], hint: str) -> None:
    """What can't be meant is refused before anything is done."""
    said = ask(*args)
    assert said.code == 2
    assert hint in said.err


def test_no_server_is_3() -> None:
    """A server that is not there is 3, as everywhere."""
    assert farm("dead", "list", REDIS__URL="redis://127.0.0.1:1/0").code == 3
