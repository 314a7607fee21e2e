"""All ranks of a model as the one shard that the pipeline runs: rank 0 is here, the others are child processes.

A rank that ends, wherever it was, ends this process at once: nobody could finish the step that it was in, and a rank
that waits for it in a sum waits for ever. The worker starts another engine. The other way round every child ends with
this process, also if it is frozen.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from dataclasses import replace
from multiprocessing.connection import Connection

import structlog
from torch import Tensor, distributed

from farm.errors import ModelRefused
from farm.local.ends import how_ended
from farm.local.tether import launcher
from workers.engine.checkpoint import Checkpoint
from workers.engine.layout import Layout
from workers.engine.tensor_parallel.member import Member, RankShortage
from workers.engine.tensor_parallel.wire import Setup, encode_layout

log = structlog.get_logger(__name__)

EXIT_RANK_LOST = 1
LAST_WORDS_S = 0.5
"""How long the end of a rank is waited for to say how it ended; for the log's sake only."""
_PROGRAM = (sys.executable, "-m", "workers.engine.tensor_parallel")


class Ranks:
    """Implements ``pipeline.Shard``. Its processes end with it."""

    def __init__(self, checkpoint: Checkpoint, setups: list[Setup]) -> None:
        """Load all ranks at once, and have them meet. Raises ModelRefused, as the first rank that refuses does.

        setups: of every rank; ``meeting`` is chosen here.
        """
        # A file in memory that these processes alone have: it is gone when they are, however they end. It stays open,
        # since the group may open it again by its number, which must not be another file's by then.
        meeting = os.memfd_create("farm-ranks")
        setups = [replace(setup, meeting=f"/proc/self/fd/{meeting}") for setup in setups]
        self._children = [_Child(setup, meeting) for setup in setups[1:]]
        self._end = weakref.finalize(self, _end, self._children)
        try:
            self._member = Member(checkpoint, setups[0])
            for child in self._children:
                child.wait_loaded()
            self._member.join()
        except BaseException:
            self.close()
            raise

    @property
    def kernels(self) -> str:
        """What computes attention at rank 0, for people."""
        return self._member.kernels

    def run(self, layout: Layout, hidden: Tensor | None) -> Tensor:  # noqa: ARG002
        """Compute a step; see ``pipeline.Shard``. Raises RankShortage.

        Ends the process where it fails in any other way: the others are inside the step.
        """
        packet = encode_layout(layout)
        try:
            for child in self._children:
                child.send(packet)
            logits = self._member.run(layout)
        except RankShortage:
            raise
        except Exception:
            # Where a rank has died, its watcher says so and ends this process.
            time.sleep(LAST_WORDS_S)
            traceback.print_exc()
            os._exit(EXIT_RANK_LOST)
        assert logits is not None
        return logits

    def close(self) -> None:
        """End the other ranks and leave their group."""
        self._end()


class _Child:
    """A rank other than 0, as this process sees it."""

    def __init__(self, setup: Setup, meeting: int) -> None:
        """meeting: a file descriptor that it inherits under the same number."""
        self.rank = setup.rank
        self._is_closing = False
        ours, theirs = socket.socketpair()
        with theirs:
            # Closing our end tells it to go, and the kernel kills it with this thread: it may be frozen.
            self._process = subprocess.Popen(
                [*launcher(signal.SIGKILL), *_PROGRAM, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), meeting],
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name=f"rank-{self.rank}", daemon=True).start()
        self.send(setup.encode())

    def send(self, packet: bytes) -> None:
        """Tell it. A rank that is gone hears nothing: its watcher ends this process."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(packet)

    def wait_loaded(self) -> None:
        """Wait until it has loaded its part. Raises ModelRefused with its reason if it can't be served."""
        reason = self._answers.get().decode()
        if reason:
            raise ModelRefused(reason)

    def kill(self) -> None:
        """End it at once, quietly."""
        self._is_closing = True
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        """Pass its one answer on: the reason of a refusal, or nothing. Then wait for its end."""
        with contextlib.suppress(EOFError, OSError):
            answer = self._connection.recv_bytes()
            self._answers.put(answer)
            if answer:
                return
            self._connection.recv_bytes()
        if self._is_closing:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_WORDS_S / 2)
        status = self._process.poll()
        log.error("rank_lost", rank=self.rank, end="closed its socket" if status is None else how_ended(status))
        os._exit(EXIT_RANK_LOST)


def _end(children: list[_Child]) -> None:
    for child in children:
        child.kill()
    if distributed.is_initialized():
        distributed.destroy_process_group()
