"""``farm demo``: a whole farm from nothing, a bundled file of prompts through all of it, and what came out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from farm.batch import run_batch
from farm.batch_report import BatchReport
from farm.cli.batch import tokens_per_s
from farm.cli.exits import FAILED, INTERRUPTED
from farm.cli.foreground import run_stack, say_event, wait_ready
from farm.cli.help import Command, commands, examples
from farm.cli.options import Json
from farm.cli.output import duration, emit, note, printable, stdout
from farm.cli.progress import shown
from farm.client import Farm
from farm.errors import FarmError
from farm.ledger.overview import overview
from farm.local.discover import running_farm
from farm.local.environ import with_values
from farm.local.stack import Stack
from farm.settings import Settings, load_settings

SHOWN = 5
app = commands()


class DemoMissing(FarmError):
    """The bundled prompts are not installed, or nobody could answer them."""

    code = "demo_missing"


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what the farm made of it."""

    custom_id: str
    prompt: str
    text: str


@app.command(
    cls=Command, epilog=examples("farm demo", "farm demo --keep", "farm demo --workers 2 --json | jq .tokens_per_s")
)
def demo(
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="How many workers generate.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the farm running until Ctrl-C, to look around.")] = False,
    as_json: Json = False,
) -> None:
    """Try a whole farm on a bundled file of prompts.

    Uses the farm that runs on this machine, or starts one in a temporary folder for as long as it takes: a Redis
    server, workers with a tiny Bloom, Flower.
    """
    settings, prompts = load_settings(), prompts_file()
    try:
        with _farm(settings, workers, as_json) as (stack, its_settings):
            report, pairs = _answer(its_settings, prompts, stack is not None, as_json)
            if as_json:
                emit(_as_json(report, pairs, stack))
            else:
                _show(report, pairs)
                _show_next(stack, keep)
            if keep and stack is not None:
                with suppress(KeyboardInterrupt):  # how it is meant to end
                    stack.wait()
            if stack is not None and keep and not as_json:
                note("stopping the farm")
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if report.failed:
        raise typer.Exit(FAILED)


def prompts_file() -> Path:
    """The bundled prompts. Raises DemoMissing when the workers, which bring them, are not installed."""
    spec = importlib.util.find_spec("workers")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "tiny_bloom" / "prompts.jsonl"
        if path.is_file():
            return path
    raise DemoMissing("the bundled prompts are not installed; install the farm again")


@contextmanager
def _farm(settings: Settings, workers: int, as_json: bool) -> Iterator[tuple[Stack | None, Settings]]:
    """The farm that is there, or one for as long as the block lasts."""
    if settings.redis.url is not None or running_farm(settings) is not None:
        yield None, settings
        return
    with tempfile.TemporaryDirectory(prefix="farm-demo-") as folder:
        own = with_values(settings, local={"state_dir": Path(folder)})
        stack = Stack(own, workers=workers, on_event=(lambda _: None) if as_json else say_event)
        with run_stack(stack, interrupts=True):
            if not wait_ready(stack):
                raise KeyboardInterrupt
            yield stack, stack.farm_settings


def _answer(settings: Settings, prompts: Path, is_own: bool, as_json: bool) -> tuple[BatchReport, list[Pair]]:
    """Run the prompts as ``farm batch`` would."""
    model = settings.model.name
    with Farm(settings) as farm, tempfile.TemporaryDirectory() as folder:
        if not is_own and not overview(farm.ledger).live_slots(model):
            raise DemoMissing(f"no worker serves {model} at {farm.ledger.where}; start one: farm worker")
        if not as_json:
            note(f"{prompts.name}: {len(prompts.read_bytes().splitlines())} prompts through {model}")
        target = Path(folder) / "completions.jsonl"
        with shown(is_quiet=as_json) as show:
            # An id of its own: the demo answers anew, however often it is run on one farm.
            report = run_batch(farm, prompts, target, run_id=folder, on_progress=show.report, on_notice=show.say)
        return report, list(_pairs(prompts, target))


def _pairs(prompts: Path, answers: Path) -> Iterator[Pair]:
    """Prompts with their completions, in the order of the prompts."""
    texts = {}
    for line in answers.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        if answer["response"] is not None:
            texts[answer["custom_id"]] = answer["response"]["body"]["choices"][0]["text"]
    for line in prompts.read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        if asked["custom_id"] in texts:
            yield Pair(asked["custom_id"], asked["prompt"], texts[asked["custom_id"]])


def _show(report: BatchReport, pairs: list[Pair]) -> None:
    out = stdout()
    step = max(1, len(pairs) // SHOWN)
    for pair in pairs[::step][:SHOWN]:
        out.print()
        out.print(Text.assemble((printable(pair.prompt), "dim"), (printable(pair.text), "bold")))
    out.print()
    failed = f", {report.failed:,} failed" if report.failed else ""
    out.print(
        f"[bold green]{report.succeeded:,} prompts[/bold green] completed{failed}: {report.completion_tokens:,} tokens "
        f"in {duration(report.elapsed_s)}, [bold]{tokens_per_s(report):,.0f} tokens/s[/bold]"
    )


def _show_next(stack: Stack | None, keep: bool) -> None:
    out = stdout()
    out.print()
    if stack is not None and keep:
        folder = stack.folder.path
        out.print(f"The farm runs on until Ctrl-C. Flower: {stack.flower_url or 'not installed'}")
        out.print("In another terminal:")
        out.print(f"  export FARM_LOCAL__STATE_DIR={folder}", soft_wrap=True)
    else:
        out.print("Next:")
        activate = Path(sys.executable).with_name("activate")
        if shutil.which("farm") is None and activate.is_file():
            out.print(f"  . {activate}", soft_wrap=True)
        if stack is not None:
            out.print("  farm demo --keep                         the same, with Flower to look at")
            out.print("  farm up                                  a farm that stays; elsewhere:")
    out.print('  farm submit "Once upon a time" --stream  ask it something')
    out.print("  farm batch IN.jsonl -o OUT.jsonl         ask it a lot")
    out.print("  farm status                              see how it stands")
    sys.stdout.flush()


def _as_json(report: BatchReport, pairs: list[Pair], stack: Stack | None) -> dict[str, object]:
    return {
        "prompts": report.done,
        "succeeded": report.succeeded,
        "failed": report.failed,
        "completion_tokens": report.completion_tokens,
        "seconds": report.elapsed_s,
        "tokens_per_s": tokens_per_s(report),
        "flower_url": stack.flower_url if stack else None,
        "completions": [{"custom_id": pair.custom_id, "prompt": pair.prompt, "text": pair.text} for pair in pairs],
    }
