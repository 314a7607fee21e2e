"""The engine process: commands in, reports out, over one connection. It never outlives the other end.

A thread reads commands, so the end of the connection is noticed at once, also while the model loads. The main thread
steps while there is work and sleeps otherwise.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import structlog

from farm import logs
from farm.errors import FarmError, ModelRefused
from farm.settings import Settings, load_settings
from workers.engine.engine import Engine
from workers.engine.model import Model
from workers.engine.outbox import Outbox
from workers.engine.protocol import (
    BEAT_S,
    Add,
    Cancel,
    Command,
    Event,
    Halt,
    Halted,
    Message,
    Refused,
    Report,
    decode,
    encode,
)
from workers.engine.shortage import is_shortage
from workers.engine.synthetic import Synthetic

log = structlog.get_logger(__name__)

GATHER_SHARE = 0.8
"""How much of the time that a token may wait until it is written it waits here, for others: each report takes a core
from the next step. The rest is for the step that ends then, and for the way to the ledger."""


def serve(connection: Connection) -> None:
    """Load the model named by the settings and serve the connection until its other end closes.

    Sends Ready, or Refused and returns. An exception inside a step ends the process: the worker starts another one.
    """
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, commands), name="commands", daemon=True).start()
    try:
        settings = load_settings()
        logs.setup(settings.logs)
        engine = Engine(load_model(settings), settings.engine.prefill_budget, slowdown=settings.engine.prefill_slowdown)
    except FarmError as error:
        _send(connection, Refused(error.code, str(error)))
        return
    # Whatever is there now stays: a collection that went through all of torch would stall a step by 0.1 s.
    gc.collect()
    gc.freeze()
    _send(connection, engine.ready)
    _loop(engine, connection, commands, Outbox(GATHER_SHARE * settings.lease.flush_s))


def load_model(settings: Settings) -> Model:
    """The model that the settings name. Raises ModelRefused with the reason if it can't be served."""
    if settings.engine.kind == "synthetic":
        return Synthetic(settings.engine)
    # Here because it imports torch, which the synthetic engine does without.
    from workers.engine.bloom import Bloom

    try:
        return Bloom(settings.model, settings.engine)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        found = str(error).partition("\n")[0] or "allocation failed"
        raise ModelRefused(f"no memory to load {settings.model.id}: {found}; `farm plan` says what it needs") from error


def _loop(engine: Engine, connection: Connection, commands: queue.SimpleQueue[Command], outbox: Outbox) -> None:
    emptied = time.monotonic()
    while True:
        for command in _pending(commands, wait_s=0.0 if engine.has_work else BEAT_S):
            if isinstance(command, Halt):
                outbox.add(engine.halt())
                _send(connection, _report(engine, outbox, outbox.take()))
                _send(connection, Halted())
                continue
            outbox.forget(command.id)
            if isinstance(command, Add):
                engine.add(command)
            else:
                engine.cancel(command.id)
        if engine.has_work:
            outbox.add(engine.step())
            log.debug("step", step=engine.steps, generated=engine.generated)
        now = time.monotonic()
        if outbox.is_due(now - emptied):
            emptied = now
            _send(connection, _report(engine, outbox, outbox.take()))
        elif outbox.has_ends:
            _send(connection, _report(engine, outbox, outbox.take_ends()))


def _report(engine: Engine, outbox: Outbox, events: list[Event]) -> Report:
    stats = engine.stats
    told = replace(stats, generated_tokens=stats.generated_tokens - outbox.tokens)
    return Report(engine.steps, engine.running, engine.waiting, events, told)


def _pending(commands: queue.SimpleQueue[Command], wait_s: float) -> Iterator[Command]:
    """Every command that is there, after waiting up to ``wait_s`` for the first."""
    try:
        yield commands.get(timeout=wait_s) if wait_s else commands.get_nowait()
        while True:
            yield commands.get_nowait()
    except queue.Empty:
        return


def _read(connection: Connection, commands: queue.SimpleQueue[Command]) -> None:
    """Queue commands until the other end is gone or sends nonsense, then end the process, whatever it is doing."""
    status = 0
    try:
        while True:
            message = decode(connection.recv_bytes())
            assert isinstance(message, Add | Cancel | Halt)
            commands.put(message)
    except (EOFError, OSError):
        pass
    except Exception as error:
        logs.log_defect(log, "worker_spoke_nonsense", error)
        status = 1
    os._exit(status)


def _send(connection: Connection, message: Message) -> None:
    try:
        connection.send_bytes(encode(message))
    except OSError:  # the worker is gone
        os._exit(0)
