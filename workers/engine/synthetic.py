"""An engine without a model, to measure or test the farm around it: tokens follow from (prompt, index) alone.

Everything but the model is the real engine: slots, resume, stops, deadlines. Needs no torch.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from array import array
from collections import deque

from farm.settings import EngineSettings
from workers.engine.faults import Faults
from workers.engine.kv.arena import block_size
from workers.engine.kv.contiguous import ContiguousKV
from workers.engine.model import Pick, Result
from workers.engine.protocol import Ready
from workers.engine.scheduler import Step
from workers.engine.sequence import Sequence

_TEXT = (
    "the farm grows a field of small blue flowers and every morning someone walks along the rows to count what opened "
    "while rain clouds gather over hills far away by noon light falls on water in long bright lines then wind turns "
    "leaves over one after another until evening brings bees home with stories about clover"
)
WORDS = _TEXT.split()
VOCAB = 512
"""Token ids; token i is the word i modulo the number of words."""


class _Words:
    """A token's text: a space and its word."""

    def push(self, token: int) -> str:
        return " " + WORDS[token % len(WORDS)]

    def flush(self) -> str:
        return ""


class Synthetic:
    """Makes tokens up. Implements ``model.Model``; it never ends a text by itself."""

    eos_ids: frozenset[int] = frozenset()
    depth = 1
    lookahead = 0

    def __init__(self, engine: EngineSettings) -> None:
        kv_tokens = engine.max_slots * block_size(engine.max_context)
        self._step_s = engine.synthetic_step_s
        self._caching = engine.prefix_caching
        self._steps: deque[Step] = deque()
        self._faults = Faults(engine.synthetic_faults)
        self.ready = Ready(
            slots=engine.max_slots,
            context=engine.max_context,
            kv_tokens=kv_tokens,
            vocab=VOCAB,
            fingerprint=hashlib.sha256(" ".join(WORDS).encode()).hexdigest()[:16],
            load_s=0.0,
            tokenizer="",
        )

    def encode(self, prompt: str) -> list[int]:
        """One token per word of the prompt, or one for a prompt of blanks. Raises FaultAsked where a rule says so."""
        words = prompt.split() or [prompt]
        tokens = [zlib.crc32(word.encode("utf-8", "surrogatepass")) % VOCAB for word in words]
        self._faults.meet(prompt, tokens)
        return tokens

    def pieces(self) -> _Words:
        """A detokenizer; it has no state."""
        return _Words()

    def memory(self) -> ContiguousKV:
        """Bookkeeping as for a real cache, of which there is none."""
        return ContiguousKV(self.ready.kv_tokens, self._caching)

    def submit(self, step: Step) -> None:
        """Note the step; nothing works on it before ``collect``."""
        self._steps.append(step)

    def collect(self) -> Result:
        """Take ``synthetic_step_s`` and make up the oldest step's tokens."""
        started = time.perf_counter()
        if self._step_s:
            time.sleep(self._step_s)
        return Result(self.run(self._steps.popleft()), time.perf_counter() - started)

    def drop(self) -> None:
        """Forget the steps in flight."""
        self._steps.clear()

    def run(self, step: Step) -> list[Pick]:
        """Make up a token for each of ``step.sampled``."""
        sampled = step.sampled
        self._faults.strike(sampled)
        return [_pick(sequence) for sequence in sampled]


def _pick(sequence: Sequence) -> Pick:
    told = array("Q", [sequence.output_tokens, *sequence.tokens[: sequence.prompt_tokens]])
    token = int.from_bytes(hashlib.blake2b(told, digest_size=4).digest(), "little") % VOCAB
    params = sequence.params
    if token in sequence.stop_ids and not sequence.may_stop:
        token = next(other for other in range(VOCAB) if other not in sequence.stop_ids)
    if params.logprobs is None:
        return Pick(token)
    return Pick(token, -1.0, [((token + i) % VOCAB, -1.0 - i) for i in range(params.logprobs)])
