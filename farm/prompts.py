"""Checks of a request that need to know its model, made before anything is enqueued.

What can't be counted here is left to the worker. Facts about models are kept for a few seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from farm.contracts import Request, model_name
from farm.errors import InvalidRequest, PromptTooLong
from farm.ledger.jobs import Jobs, ModelFacts

FACTS_S = 5.0
MOST_SAMPLES = 128
MAX_BYTES_PER_CHAR = 4  # UTF-8


class PromptCheck:
    """Holds requests to what their models can do. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._known: dict[str, tuple[float, ModelFacts | None]] = {}
        self._lock = threading.Lock()

    def facts(self, model: str | None) -> ModelFacts | None:
        """What is known of a model, None before any worker has served it. Raises InvalidRequest if nobody serves it."""
        name = model_name(model or self._jobs.settings.model.id)
        with self._lock:
            known = self._known.get(name)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        facts = self._jobs.check_model(name)
        with self._lock:
            if facts is None:
                self._known.pop(name, None)  # a worker may be about to tell
            else:
                self._known[name] = (time.monotonic() + FACTS_S, facts)
        return facts

    def checker(self) -> Callable[[Request], None]:
        """A check for many requests that asks the server once per model. It raises InvalidRequest, PromptTooLong."""
        seen: dict[str | None, ModelFacts | None] = {}

        def check(request: Request) -> None:
            if request.model not in seen:
                seen[request.model] = self.facts(request.model)
            check_length(request, seen[request.model])

        return check


def check_length(request: Request, facts: ModelFacts | None) -> None:
    """Raise PromptTooLong if prompt and max_tokens exceed the context, InvalidRequest for a token the model lacks.

    Exact for token ids. Text is counted if it may be too long and the model's tokenizer is on this machine.
    """
    if facts is None:
        return
    prompt, room = request.prompt, facts.context - request.max_tokens
    if isinstance(prompt, list):
        if len(prompt) > room:
            raise PromptTooLong.of(len(prompt), request.max_tokens, facts.context)
        if (largest := max(prompt)) >= facts.vocab:
            raise InvalidRequest("prompt", f"token {largest:,} is unknown; {facts.name} has {facts.vocab:,} tokens")
        return
    if room < 1:
        raise PromptTooLong.of(1, request.max_tokens, facts.context)
    # A byte-level vocabulary gives at most one token per byte.
    if len(prompt) * MAX_BYTES_PER_CHAR <= room or len(prompt.encode()) <= room:
        return
    tokens = count_tokens(prompt, facts.tokenizer)
    if tokens is not None and tokens > room:
        raise PromptTooLong.of(tokens, request.max_tokens, facts.context)


def count_tokens(text: str, tokenizer: str) -> int | None:
    """Tokens in a text by a tokenizer.json (its path, or its folder's); None if it can't be used here."""
    path = Path(tokenizer) if tokenizer else None
    if path is not None and path.is_dir():
        path = path / "tokenizer.json"
    if path is None or not path.is_file():
        return None
    encode = _encoder(str(path), path.stat().st_mtime_ns)
    return None if encode is None else encode(text)


def fan_out(request: Request, n: int) -> list[Request]:
    """One request per sample. A seed gives each its own, the first keeping it; without one, jobs' ids give them theirs.

    Raises InvalidRequest if n is not between 1 and 128.
    """
    if not 1 <= n <= MOST_SAMPLES:
        raise InvalidRequest("n", f"{n} is out of range; give 1 to {MOST_SAMPLES}")
    if request.seed is None:
        return [request] * n
    return [request.model_copy(update={"seed": derived_seed(request.seed, sample)}) for sample in range(n)]


def derived_seed(seed: int, sample: int) -> int:
    """The seed of one of several samples; sample 0 has the seed itself."""
    if sample == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@lru_cache(maxsize=8)
def _encoder(path: str, modified_ns: int) -> Callable[[str], int] | None:
    """A counter of tokens; ``modified_ns`` makes a changed file a new entry. None without the tokenizers package."""
    del modified_ns
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except ImportError:
        return None
    except Exception:  # tokenizers raises bare Exception for a malformed file; the worker will say so
        return None

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
