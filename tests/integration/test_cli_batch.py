"""``farm batch`` as a process, against a real server and a worker by rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm.settings import Settings, load_settings
from tests.commands import farm
from tests.farmhand import QUICK_KEEPER, QUICK_LEASE, Farmhand, text_of


@pytest.fixture
def url(settings: Settings, client: redis.Redis) -> Iterator[str]:
    """The address of a server with a worker that answers at once, and fails what is bad."""
    del client
    quick = load_settings(redis={"url": settings.redis.url}, lease=QUICK_LEASE, keeper=QUICK_KEEPER)
    assert quick.redis.url is not None
    with Farmhand(quick, fail_prompts=frozenset({"bad"})):
        yield quick.redis.url.get_secret_value()


def _write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def _write_errors(path: Path, **passing: bool) -> Path:
    """Answers of lines that failed, with whether their errors may not come again."""
    errors = [
        {"id": f"batch_req_{name}", "custom_id": name, "response": None, "error": {"code": "x", "retryable": passes}}
        for name, passes in passing.items()
    ]
    return _write(path, *(json.dumps(error, separators=(",", ":")) for error in errors))


def _texts(path: Path) -> dict[str, str]:
    answers = map(json.loads, path.read_text().splitlines())
    return {a["custom_id"]: a["response"]["body"]["choices"][0]["text"] for a in answers if a["response"]}


def test_a_batch_and_its_repetition(url: str, tmp_path: Path) -> None:
    """Every line gets its completion, options serve lines that don't say; the same command again has nothing to do."""
    source = _write(
        tmp_path / "in.jsonl",
        {"custom_id": "a", "prompt": "A goat"},
        {"custom_id": "b", "prompt": "A mouse", "max_tokens": 2},
    )
    command = ("batch", source, "-o", tmp_path / "out.jsonl", "--max-tokens", 4)
    said = farm(*command, "--json", REDIS__URL=url)
    assert said.code == 0
    assert _texts(tmp_path / "out.jsonl") == {"a": text_of("A goat", 4), "b": text_of("A mouse", 2)}
    assert (said.json["done"], said.json["failed"], said.json["completion_tokens"]) == (2, 0, 6)
    again = farm(*command, REDIS__URL=url)
    assert again.code == 0
    assert "0 completed, 2 completed before · 0 tokens in" in again.err
    assert not again.out


def test_bad_lines_fail_the_command_and_nothing_else(url: str, tmp_path: Path) -> None:
    """Good lines are answered, bad ones have their errors in place, and each run's exit code says so."""
    lines = ["{torn", {"custom_id": "b", "prompt": "bad"}, {"custom_id": "c", "prompt": "A goat", "max_tokens": 1}]
    source = _write(tmp_path / "in.jsonl", *lines)
    said = farm("batch", source, "-o", tmp_path / "out.jsonl", REDIS__URL=url)
    assert said.code == 1
    assert "1 completed, 2 failed" in said.err
    assert "correct these lines" in said.err
    assert _texts(tmp_path / "out.jsonl") == {"c": text_of("A goat", 1)}
    again = farm("batch", source, "-o", tmp_path / "out.jsonl", REDIS__URL=url)
    assert again.code == 1
    assert "0 completed, 1 completed before, 2 failed before" in again.err
    assert "correct these lines" in again.err


def test_errors_of_an_earlier_run_are_told(url: str, tmp_path: Path) -> None:
    """Lines that failed before are left alone without --retry-errors; that is said, and the run fails as the first."""
    source = _write(tmp_path / "in.jsonl", *({"custom_id": name, "prompt": "x"} for name in "ab"))
    target = _write_errors(tmp_path / "out.jsonl", a=True, b=False)
    said = farm("batch", source, "-o", target, REDIS__URL=url)
    assert said.code == 1
    assert "0 completed, 2 failed before" in said.err
    assert "--retry-errors asks 1 of them again" in said.err
    told = farm("batch", source, "-o", target, "--json", REDIS__URL=url)
    assert told.code == 1
    assert (told.json["failed"], told.json["failed_before"], told.json["passing"]) == (0, 2, 1)


def test_errors_that_may_pass_are_asked_again(url: str, tmp_path: Path) -> None:
    """--retry-errors asks lines again whose error may not come again; other errors stay."""
    source = _write(tmp_path / "in.jsonl", *({"custom_id": name, "prompt": "x", "max_tokens": 1} for name in "ab"))
    target = _write_errors(tmp_path / "out.jsonl", a=True, b=False)
    said = farm("batch", source, "-o", target, "--retry-errors", REDIS__URL=url)
    assert said.code == 1, "one line still has an error"
    assert "1 completed, 1 of them asked again, 1 failed before" in said.err
    assert _texts(target) == {"a": text_of("x", 1)}


def test_a_batch_from_standard_input(url: str, tmp_path: Path) -> None:
    """- reads the lines from a pipe."""
    said = farm(
        "batch",
        "-",
        "-o",
        tmp_path / "out.jsonl",
        stdin='{"custom_id": "a", "prompt": "x", "max_tokens": 1}\n',
        REDIS__URL=url,
    )
    assert said.code == 0
    assert _texts(tmp_path / "out.jsonl") == {"a": text_of("x", 1)}


def test_an_input_without_requests_is_told(url: str, tmp_path: Path) -> None:
    """A file of blank lines is no error, and whoever gave it hears that nothing was asked."""
    source = _write(tmp_path / "in.jsonl", "", "  ")
    said = farm("batch", source, "-o", tmp_path / "out.jsonl", REDIS__URL=url)
    assert said.code == 0
    assert said.err.startswith("the input has no request; a line is one, such as {")


def test_an_output_that_is_something_else_is_left_alone(url: str, tmp_path: Path) -> None:
    """A file that holds no answers is refused in one line, before anything is submitted."""
    source = _write(tmp_path / "in.jsonl", {"prompt": "x"})
    target = _write(tmp_path / "out.jsonl", "dear diary")
    said = farm("batch", source, "-o", target, REDIS__URL=url)
    assert said.code == 1
    assert "choose another output file" in said.err
    assert target.read_text() == "dear diary\n"


def test_the_input_as_the_output_is_2(url: str, tmp_path: Path) -> None:
    """A file named twice is wrong usage, and it stays as it is."""
    source = _write(tmp_path / "in.jsonl", {"prompt": "x"})
    said = farm("batch", source, "-o", source, REDIS__URL=url)
    assert (said.code, said.err) == (2, f"farm: output: {source} is the input; choose another output file\n")
    assert source.read_text() == '{"prompt": "x"}\n'


def test_an_output_that_can_t_be_written_is_one_line(url: str, tmp_path: Path) -> None:
    """What the system refuses is named, without a traceback."""
    source = _write(tmp_path / "in.jsonl", {"prompt": "x"})
    said = farm("batch", source, "-o", "/proc/out.jsonl", REDIS__URL=url)
    assert said.code == 1
    assert said.err == "farm: No such file or directory: /proc/out.jsonl\n"


def test_an_output_in_no_folder_is_2(tmp_path: Path) -> None:
    """A folder that is missing is named before a server is asked for."""
    source = _write(tmp_path / "in.jsonl", {"prompt": "x"})
    said = farm("batch", source, "-o", tmp_path / "missing" / "out.jsonl", REDIS__URL="redis://127.0.0.1:1")
    assert said.code == 2
    assert said.err == f"farm: --output: there is no folder {tmp_path / 'missing'}; make it, or name another file\n"


def test_a_batch_without_a_server_is_3(tmp_path: Path) -> None:
    """A batch bears an outage while it runs, but does not start into one."""
    source = _write(tmp_path / "in.jsonl", {"prompt": "x"})
    assert farm("batch", source, "-o", tmp_path / "out.jsonl", REDIS__URL="redis://127.0.0.1:1").code == 3


def test_the_demo_on_a_farm_that_is_there(url: str) -> None:
    """The demo uses the farm that is named, and shows prompts with their completions."""
    said = farm("demo", REDIS__URL=url)
    assert said.code == 0
    assert "Once upon a time" in said.out
    assert "tokens/s" in said.out
    assert "farm submit" in said.out


def test_the_demo_needs_a_worker(settings: Settings, client: redis.Redis) -> None:
    """A named farm without workers is said to be one, instead of waiting for ever."""
    del client
    assert settings.redis.url is not None
    said = farm("demo", REDIS__URL=settings.redis.url.get_secret_value())
    assert said.code == 1
    assert "farm worker" in said.err
