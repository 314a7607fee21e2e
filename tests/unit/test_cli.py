"""The command line without a farm: what it lists, what it loads, how it refuses."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_group

from farm.cli.exits import FAILED, UNREACHABLE, USAGE, code_of
from farm.cli.main import COMMANDS
from farm.cli.output import duration
from farm.errors import InvalidRequest, JobFailed, ServerUnreachable, SettingsError
from tests.commands import FARM, environ, farm

pytestmark = pytest.mark.fast


def test_help_loads_no_driver() -> None:
    """The list of commands is there at once: neither Redis' driver nor pydantic nor Celery is loaded for it."""
    code = (
        "import sys; from farm.cli.main import app; app(['--help'], standalone_mode=False);"
        "sys.exit(bool({'redis', 'pydantic', 'celery', 'kombu', 'rich.console'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_ctrl_c_while_it_loads_ends_it_quietly(tmp_path: Path) -> None:
    """Ctrl-C before the command line is loaded ends the program with 130 and no traceback."""
    interrupted = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "typer.py").write_text(interrupted)  # what the command line loads, with Ctrl-C at that moment
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from farm.cli.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_program_is_the_command_line() -> None:
    """What is installed as ``farm`` runs the commands, and its exit codes are theirs."""
    code = "from farm.cli.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "submt"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == USAGE
    assert "Did you mean 'submit'?" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_what_the_list_says(name: str) -> None:
    """Each command exists, explains itself in the words of the list, has examples, and speaks JSON if it speaks."""
    command = get_group(import_module(COMMANDS[name].module).app).commands[name]
    assert (inspect.getdoc(command.callback) or "").splitlines()[0] == COMMANDS[name].help
    for leaf in getattr(command, "commands", {name: command}).values():
        assert leaf.epilog
        assert inspect.getdoc(leaf.callback)
        assert "--json" in [option for param in leaf.params for option in param.opts]


def test_a_group_lists_its_commands() -> None:
    """A command with commands of its own says what they are, with examples, when it is given none."""
    for said in (farm("dead", "--help"), farm("dead")):
        text = said.out + said.err
        assert all(f"\n  {name} " in text for name in ("list", "show", "retry", "purge"))
        assert text.index("Examples:") > text.index("--help")
        assert max(map(len, text.splitlines())) <= 80


def test_help_of_a_command_fits_80_columns() -> None:
    """Help is readable in the narrowest usual terminal, with groups, defaults and examples."""
    said = farm("submit", "--help")
    assert said.code == 0
    assert "How to generate:" in said.out
    assert "  PROMPT  The prompt;" in said.out
    assert "default: 64" in " ".join(said.out.split())
    assert said.out.index("Examples:") > said.out.index("--json")
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("submit", "farm submit [OPTIONS] PROMPT"),
        ("wait", "farm wait [OPTIONS] JOB..."),
        ("status", "farm status [OPTIONS] [JOB]"),
        ("batch", "farm batch [OPTIONS] IN.jsonl"),
    ],
)
def test_usage_reads_as_in_manuals(command: str, usage: str) -> None:
    """What may be left out is in brackets, what may be repeated has dots, and nothing is marked twice."""
    assert farm(command, "--help").out.splitlines()[0] == f"Usage: {usage}"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["stauts"], "Did you mean 'status'"),
        (["submit"], "PROMPT"),
        (["submit", "x", "--max-tokens", "many"], "--max-tokens"),
        (["batch", "missing.jsonl", "-o", "out.jsonl"], "missing.jsonl"),
        (["api", "--port", "99999"], "--port"),
        (["flower", "--port", "-1"], "--port"),
    ],
)
def test_wrong_usage_is_2(args: list[str], hint: str) -> None:
    """A command line that can't be understood ends with 2, and says what is wrong with it."""
    said = farm(*args)
    assert said.code == 2
    assert hint in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["submit", "a\udcff"], "PROMPT"),
        (["submit", "x", "--idempotency-key", "\udcff"], "--idempotency-key"),
        (["submit", "x", "--stop", "y", "--stop", "\udcff"], "--stop"),
        (["status", "\udcff"], "JOB"),
        (["wait", "x", "\udcff"], "JOB"),
        (["cancel", "\udcff"], "JOB"),
        (["dead", "retry", "\udcff"], "JOB"),
        (["batch", "\udcff", "-o", "out.jsonl"], "IN.jsonl"),
    ],
)
def test_a_word_that_is_no_text_is_2(args: list[str], name: str) -> None:
    """A byte on the command line that is not UTF-8 is refused by the name of what it was given for."""
    said = farm(*args, REDIS__URL="redis://127.0.0.1:1")
    assert (said.code, said.err) == (2, f"farm: {name}: is not UTF-8 text; convert it\n")


@pytest.mark.parametrize(
    ("module", "command"), [("workers", "farm worker"), ("api", "farm api"), ("farm.flower", "farm flower")]
)
def test_programs_that_settings_set_up_give_help(module: str, command: str) -> None:
    """python -m workers --help starts no worker; any argument is refused with the command that takes options."""
    program = [sys.executable, "-m", module]
    told = subprocess.run([*program, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0
    assert f"{command} --help" in told.stdout
    wrong = subprocess.run([*program, "--name", "w"], capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == 2
    assert f"{command} --help" in wrong.stderr


def test_a_closed_stream_is_no_traceback() -> None:
    """Standard input that a caller closed holds nothing, and what goes to a closed output is dropped."""
    for closed in ("<&-", ">&-"):
        command = f'"$@" {closed}'
        done = subprocess.run(
            ["sh", "-c", command, "sh", *FARM, "wait", "-"],
            env=environ(REDIS__URL="redis://127.0.0.1:1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr[:10]) == (2, "farm: JOB:")
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *FARM, "plan", "--json"],
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_lacks_a_character_is_no_traceback() -> None:
    """Where only ASCII can be written, other characters are escapes."""
    code = "from farm.cli import main; main.app = lambda **_: print('\\u2581'); main.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u2581\n", b"")


def test_misspelt_setting_is_2() -> None:
    """A misspelt setting is named together with the nearest one, in one line."""
    said = farm("status", REDSI__URL="redis://x")
    assert said.code == 2
    assert said.err == "farm: FARM_REDSI__URL is not a setting; did you mean 'FARM_REDIS__URL'?\n"


def test_a_state_folder_whose_name_is_no_text_is_2() -> None:
    """The state folder's name is written into notes and passed on, so it has to be text."""
    said = farm("status", LOCAL__STATE_DIR="\udcff")
    assert said.code == 2
    assert said.err.endswith("give a folder whose name is UTF-8 text\n")


def test_codes_follow_errors() -> None:
    """3 is for a server that does not answer, 2 for what can be asked otherwise, 1 for the rest."""
    assert code_of(ServerUnreachable("gone")) == UNREACHABLE
    assert code_of(SettingsError("no")) == code_of(InvalidRequest("top_p", "is 3")) == USAGE
    assert code_of(JobFailed("no")) == FAILED


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7_260, "2 h 1 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_read_well(seconds: float | None, words: str) -> None:
    """Durations have the units that people use for them."""
    assert duration(seconds) == words
