"""The engine of the farm under test: makes tokens up by rule, stamps each with the attempt that made it, counts them.

The text is a function of the prompt, so a token that is missing, doubled or misplaced shows. The stamp travels in the
token's log probability: of every token in the ledger it can be said which claim wrote it. The count survives a
SIGKILL, so that work which was done and lost can be told from work that was kept.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import struct
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from farm.settings import EngineSettings, Settings
from workers.engine import process
from workers.engine.model import Pick
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence
from workers.engine.synthetic import Synthetic

COUNTS = "CHAOS_COUNTS"
"""The folder for counts: one file for each life of an engine, named by its pid."""
_COUNT = struct.Struct("<Q")
STAMPS = 1 << 52  # a float of JSON holds whole numbers below this


class Stamping(Synthetic):
    """The synthetic model with stamps and a count."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.engine)
        path = Path(os.environ[COUNTS]) / str(os.getpid())
        path.write_bytes(_COUNT.pack(0))
        with path.open("r+b") as file:
            self._counter = mmap.mmap(file.fileno(), _COUNT.size)
        self._count = 0

    def run(self, step: Step) -> list[Pick]:
        picks = super().run(step)
        self._count += len(picks)
        _COUNT.pack_into(self._counter, 0, self._count)
        return [replace(pick, logprob=stamp(seq.id), top=[]) for seq, pick in zip(step.sampled, picks, strict=True)]


def stamp(nonce: str) -> float:
    """What a claim's tokens carry."""
    return float(int(nonce, 16) % STAMPS)


def counted(folder: Path) -> int:
    """Tokens that all engines made, those lost included."""
    return sum(_COUNT.unpack(path.read_bytes())[0] for path in folder.iterdir())


def lives(folder: Path) -> list[int]:
    """The pids of all engines that ever were."""
    return [int(path.name) for path in folder.iterdir()]


class Rule:
    """What the engine makes of a prompt, worked out without an engine."""

    def __init__(self) -> None:
        self._model = Synthetic(EngineSettings())

    def __call__(self, prompt: str, max_tokens: int) -> tuple[list[int], str]:
        """Its tokens and their text."""
        told = self._model.encode(prompt)
        sequence = Sequence("", len(told), list(told), SamplingParams(max_tokens))
        for _ in range(max_tokens):
            [pick] = self._model.run(Step([sequence], []))
            assert pick.token is not None
            sequence.append(pick.token)
        tokens = sequence.tokens[len(told) :]
        return tokens, "".join(map(self._model.pieces().push, tokens))


def main() -> None:
    """Serve the inherited socket, as ``workers.engine`` does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    process.load_model = Stamping
    process.serve(Connection(parser.parse_args().fd))


if __name__ == "__main__":
    main()
