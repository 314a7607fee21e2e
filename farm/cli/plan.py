"""``farm plan``: which device would hold what of a model, and how many sequences fit, before anything is downloaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, given
from farm.cli.output import emit, note, stdout, table
from farm.cli.sizes import parse_devices, parse_size
from farm.doctor.checks import size
from farm.errors import FarmError, InvalidRequest, ModelRefused
from farm.local.environ import child_environ
from farm.settings import Settings, load_settings

ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8")
KV_DTYPES = ("auto", "int8", "fp8")
LENGTHS = (256, 1024, 2048)
NEEDED = ("workers", "torch", "transformers", "accelerate")
SHOWN = 4
ANSWER_S = 180.0  # torch and transformers load in seconds, on a cold disk in many; a hub that is away takes 30 s
EXIT_REFUSED = 78  # of workers.plan: the model is refused, and the last line says why
app = commands()


class PlanFailed(FarmError):
    """The planner is not installed, or broke."""

    code = "plan_failed"


@app.command(
    cls=Command,
    epilog=examples(
        "farm plan --model bigscience/bloom-7b1 --devices 4x16GiB",
        "farm plan --model bigscience/bloom --devices 8x80GB --dtype bf16 --json | jq .kv_tokens",
        "farm plan --model bigscience/bloom-7b1 --devices 2x10GiB --tensor-parallel 2",
        "farm plan --model ./my-bloom --devices 16GiB,24GiB --context 4096 --length 500",
        "farm plan --model bigscience/bloom-7b1 --devices 24GiB --slots 256",
        "farm plan --model bigscience/bloom-7b1 --devices 2x10GiB --quantization int8 --kv-dtype int8",
        "farm plan                              FARM_MODEL__ID on this machine",
    ),
)
def plan(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="A published Bloom, a folder with its config.json, or a hub id.",
            show_default="FARM_MODEL__ID, tiny-bloom",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Memory of each device, as 4x16GiB, 16GiB,24GiB or 80GB.",
            show_default="FARM_ENGINE__DEVICES, else this machine's GPUs, else its free memory",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="auto, float32 (fp32), bfloat16 (bf16) or float16 (fp16); auto is bfloat16 on GPUs.",
            show_default="FARM_MODEL__DTYPE, auto",
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="int8: weights in 8 bits; none: as they are.",
            show_default="FARM_ENGINE__QUANTIZATION, none",
        ),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keys and values in int8, fp8 or, with auto, the model's dtype.",
            show_default="FARM_ENGINE__KV_DTYPE, auto",
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Share every layer between N devices instead of giving each its own layers.",
            show_default="FARM_ENGINE__TENSOR_PARALLEL, 1",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of the longest sequence; one must fit.",
            show_default="FARM_ENGINE__MAX_CONTEXT, 2048",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Sequences at once; where the head is, room is kept for their logits.",
            show_default="FARM_ENGINE__MAX_SLOTS, 64",
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Count sequences of this many tokens too.", show_default=False),
    ] = None,
    reserve: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory kept free on each device, for activations and CUDA; logits come on top.",
            show_default="1GiB, at most an eighth",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how a model would lie on devices.

    From its configuration alone: stages whose reads per step are balanced, and the room for keys and values. Fails (1)
    when the model does not fit, with the missing bytes.
    """
    engine: dict[str, object] = given(
        max_context=context,
        max_slots=slots,
        tensor_parallel=tensor_parallel,
        kv_dtype=_one_of("--kv-dtype", kv_dtype, KV_DTYPES),
    )
    if quantization is not None:
        chosen = _one_of("--quantization", quantization, QUANTIZATIONS)
        engine["quantization"] = None if chosen == "none" else chosen
    settings = load_settings(model=given(id=model, dtype=_dtype(dtype)), engine=engine)
    limit = settings.engine.max_context
    if too_long := [tokens for tokens in length or [] if tokens > limit]:
        raise InvalidRequest("--length", f"{too_long[0]:,} tokens > {limit:,}, the context; raise --context")
    lengths = sorted({tokens for tokens in (*LENGTHS, *(length or []), limit) if tokens <= limit})
    args = [f"--length={tokens}" for tokens in lengths]
    if devices is not None:
        args.append(f"--devices={','.join(map(str, parse_devices(devices, '--devices')))}")
    if reserve is not None:
        args.append(f"--reserve={parse_size(reserve, '--reserve')}")
    found = _ask(settings, args)
    emit(found) if as_json else _show(found)


def _dtype(name: str | None) -> str | None:
    if name is None:
        return None
    dtype = ALIASES.get(name.lower(), name.lower())
    if dtype not in DTYPES:
        raise InvalidRequest("--dtype", f"{name!r} is none; give {', '.join((*DTYPES, *ALIASES))}, as --dtype bf16")
    return dtype


def _one_of(option: str, name: str | None, known: tuple[str, ...]) -> str | None:
    if name is not None and name not in known:
        raise InvalidRequest(option, f"{name!r} is none; give {', '.join(known)}")
    return name


def _ask(settings: Settings, args: list[str]) -> dict[str, Any]:
    """The plan, of a process that may load torch. Raises ModelRefused with its reason."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise PlanFailed(f"farm plan needs {', '.join(missing)}; install them: pip install 'bloomfarm[worker]'")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.plan", *args],
            env=child_environ(settings),
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PlanFailed(f"the planner said nothing for {ANSWER_S:.0f} s; is the model hub slow?") from None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == EXIT_REFUSED:
        raise ModelRefused(last)
    if done.returncode != 0:
        raise PlanFailed(f"the planner broke: {last}; python -m workers.plan shows more")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show(found: dict[str, Any]) -> None:
    out, stages, ranks = stdout(), found["stages"], found["tensor_parallel"]
    on = "1 device" if len(stages) == 1 else f"{len(stages)} devices"
    on += f", {ranks} ranks that share every layer" if ranks > 1 else ""
    kept = f", {found['quantization']} weights" if found["quantization"] else ""
    kept += f", {found['kv_dtype']} keys and values" if found["kv_dtype"] != "auto" else ""
    out.print(Text.assemble((found["model"], "bold"), f" in {found['dtype']}{kept} on {on}"))
    out.print()
    out.print(_table(stages, ranks))
    out.print()
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(found):
        facts.add_row(Text(name, style="dim"), Text(value))
    out.print(facts)
    if found["idle"]:
        more = f" and {len(found['idle']) - SHOWN:,} more" if len(found["idle"]) > SHOWN else ""
        note(f"\n{', '.join(found['idle'][:SHOWN])}{more} would hold nothing.")
    if stages[0]["device"] == "cpu":
        note("\nOn a CPU the engine packs its weights, and the packed copies need up to their size again.")


def _table(stages: list[dict[str, Any]], ranks: int) -> object:
    numbers = ("memory", "weights", "read", "KV room", "KV tokens")
    shown = table("", "device", "memory", "layers", *numbers[1:], right=numbers)
    for index, stage in enumerate(stages):
        shown.add_row(
            str(index),
            stage["device"],
            size(stage["device_bytes"]),
            _holds(stage) if ranks == 1 else f"1/{ranks} of all",
            size(stage["weight_bytes"]),
            size(stage["step_bytes"]),
            size(stage["kv_bytes"]),
            "-" if stage["kv_tokens"] is None else f"{stage['kv_tokens']:,}",
        )
    return shown


def _holds(stage: dict[str, Any]) -> str:
    first, count = stage["first_layer"], stage["layers"]
    layers = "" if not count else f"{first}" if count == 1 else f"{first}-{first + count - 1}"
    ends = ("embedding" if stage["has_embedding"] else "", "head" if stage["has_head"] else "")
    return ", ".join(filter(None, (layers, *ends)))


def _logits(found: dict[str, Any]) -> str:
    """What is kept free beside that, for the slots' logits."""
    most = max(found["stages"], key=lambda stage: stage["logits_bytes"])
    of = f" of {most['device']}" if len(found["stages"]) > 1 else ""
    slots = "1 sequence" if found["slots"] == 1 else f"{found['slots']:,} sequences"
    # Other ranks keep some as well, for their own parts.
    kept = f"up to {size(most['logits_bytes'])}" if found["tensor_parallel"] > 1 else size(most["logits_bytes"]) + of
    return f"and {kept} for the logits of {slots}"


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    several = len(found["stages"]) > 1
    ranks = found["tensor_parallel"]
    reserves = sorted({stage["reserve_bytes"] for stage in found["stages"]})
    kept = " to ".join(dict.fromkeys(map(size, (reserves[0], reserves[-1]))))
    copied = found["weight_bytes"] - found["model_bytes"]
    copies = "copies of norms and biases" if ranks > 1 else "the head's copy"
    over = ", over all ranks" if ranks > 1 else ", over all stages"
    first, *more = found["sequences"]
    counts = [
        f"{first['count']:,} of {first['tokens']:,} tokens",
        *(f"{n['count']:,} of {n['tokens']:,}" for n in more),
    ]
    facts = [
        ("parameters", f"{found['parameters']:,}"),
        ("weights", size(found["weight_bytes"]) + (f", {size(copied)} of it {copies}" if copied else "")),
        ("kept free", kept + (" on each device" if several else "")),
        *([("", _logits(found))] if any(stage["logits_bytes"] for stage in found["stages"]) else []),
        (
            "KV cache",
            f"{found['kv_blocks']:,} blocks of {found['kv_block_tokens']} = {found['kv_tokens']:,} tokens, "
            f"{size(found['kv_token_bytes'])} each",
        ),
        ("sequences", " or ".join(filter(None, (", ".join(counts[:-1]), counts[-1])))),
        ("a step reads", f"{size(found['step_bytes'])} of weights" + (over if several else "")),
    ]
    if several and ranks == 1:
        slowest = size(found["largest_step_bytes"])
        facts.append(("balance", f"the slowest stage reads {slowest}, {found['imbalance']:.2f} times the average"))
    if several and found["filled_step_bytes"] is not None:
        facts.append(("", f"({size(found['filled_step_bytes'])} if devices were filled one after the other)"))
    return facts
