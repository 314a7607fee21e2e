"""From prompts to submissions: parsed, and checked against their models before anything is enqueued.

What can't be counted here is left to the worker. Facts about models are kept for a few seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from farm.contracts import HALF_PAIR, Priority, Request, is_text, model_name, parse_request
from farm.errors import InvalidRequest, PromptTooLong
from farm.ledger.jobs import Jobs
from farm.ledger.records import ModelFacts, Submission

FACTS_S = 5.0
MOST_SAMPLES = 128
MAX_BYTES_PER_CHAR = 4  # UTF-8

Prompt = str | Sequence[int] | Mapping[str, object]
"""Text, token ids, or a mapping of a request's fields, ``idempotency_key`` among them if wanted."""


class Params(TypedDict, total=False):
    """The fields of a request beside its prompt; ``farm.contracts.Request`` says what each means."""

    model: str | None
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | list[str]
    stop_token_ids: list[int]
    logprobs: int | None
    ignore_eos: bool
    return_token_ids: bool
    priority: Priority
    deadline_s: float | None
    metadata: dict[str, str]
    webhook_url: str | None


class PromptCheck:
    """Holds requests to what their models can do. Thread-safe."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._known: dict[str, tuple[float, ModelFacts | None]] = {}
        self._lock = threading.Lock()

    def known(self, model: str | None) -> ModelFacts | None:
        """What was learnt of a model a moment ago, without asking; None when it is time to ask."""
        known = self._known.get(model_name(model or self._jobs.settings.model.id))
        return known[1] if known is not None and known[0] > time.monotonic() else None

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


class Placer:
    """Turns prompts that share some fields into checked submissions; asks the server once per model."""

    def __init__(self, jobs: Jobs, checks: PromptCheck, tenant: str, common: Mapping[str, object]) -> None:
        """common: fields of all requests. Raises InvalidRequest if ``n`` is among them."""
        if "n" in common:
            raise InvalidRequest("n", "is for submit_many, which returns one job per sample")
        self._jobs = jobs
        self._check = checks.checker()
        self._tenant = tenant
        self._common = common

    def __call__(self, prompt: Prompt) -> Submission:
        """Check a prompt and give it an id. Raises InvalidRequest, PromptTooLong, ServerUnreachable."""
        [submission] = self.samples(prompt, 1)
        return submission

    def samples(self, prompt: Prompt, n: int) -> list[Submission]:
        """``n`` submissions of one prompt, each with its own seed and key."""
        values = _values_of(prompt, self._common)
        key = values.pop("idempotency_key", None)
        if key is not None and (not isinstance(key, str) or not key):
            raise InvalidRequest("idempotency_key", f"{str(key)[:60]!r} is no key; give some text")
        if key and not is_text(key):
            raise InvalidRequest("idempotency_key", HALF_PAIR)
        request = parse_request(values)
        if n == 1:
            return [self._place(request, key)]
        return [self._place(one, f"{key}#{sample}" if key else None) for sample, one in enumerate(fan_out(request, n))]

    def attempt(self, prompts: Iterable[Prompt]) -> list[Submission | InvalidRequest]:
        """A submission for each prompt, or the error for one that breaks a rule."""
        placed: list[Submission | InvalidRequest] = []
        for prompt in prompts:
            try:
                placed.append(self(prompt))
            except InvalidRequest as error:
                placed.append(error)
        return placed

    def _place(self, request: Request, key: str | None) -> Submission:
        self._check(request)
        return self._jobs.place(request, tenant=self._tenant, idempotency_key=key)


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
        raise PromptTooLong(
            "max_tokens",
            f"{request.max_tokens:,} leaves no room for a prompt in {facts.context:,}, the model's context; "
            f"give at most {facts.context - 1:,}",
        )
    if not needs_counting(request, facts):
        return
    tokens = count_tokens(prompt, facts.tokenizer)
    if tokens is not None and tokens > room:
        raise PromptTooLong.of(tokens, request.max_tokens, facts.context)


def needs_counting(request: Request, facts: ModelFacts) -> bool:
    """Whether only a tokenizer can tell if a text fits, which takes milliseconds, and a second to load it."""
    prompt, room = request.prompt, facts.context - request.max_tokens
    if isinstance(prompt, list):
        return False
    # A byte-level vocabulary gives at most one token per byte.
    return len(prompt) * MAX_BYTES_PER_CHAR > room and len(prompt.encode()) > room


def count_tokens(text: str, tokenizer: str) -> int | None:
    """Tokens in a text by a tokenizer.json (its path, or its folder's); None if it can't be used here."""
    loaded = _loaded(tokenizer)
    return None if loaded is None else len(loaded.encode(text, add_special_tokens=False).ids)


def decode_tokens(ids: Sequence[int], tokenizer: str) -> str | None:
    """The text of token ids, special ones included; None if the tokenizer can't be used here."""
    loaded = _loaded(tokenizer)
    if loaded is None:
        return None
    text: str = loaded.decode(list(ids), skip_special_tokens=False)
    return text


def fan_out(request: Request, n: int) -> list[Request]:
    """One request per sample. A seed gives each its own, the first keeping it; without one, jobs' ids give them theirs.

    Raises InvalidRequest if n is not between 1 and 128.
    """
    check_samples(n)
    if request.seed is None:
        return [request] * n
    return [request.model_copy(update={"seed": derived_seed(request.seed, sample)}) for sample in range(n)]


def check_samples(n: int) -> None:
    """Raise InvalidRequest unless there can be ``n`` samples of a prompt."""
    if not 1 <= n <= MOST_SAMPLES:
        raise InvalidRequest("n", f"{n} is out of range; give 1 to {MOST_SAMPLES}")


def derived_seed(seed: int, sample: int) -> int:
    """The seed of one of several samples; sample 0 has the seed itself."""
    if sample == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _values_of(prompt: Prompt, common: Mapping[str, object]) -> dict[str, object]:
    """The fields of a request: what its own mapping says goes before what all share."""
    if isinstance(prompt, Mapping):
        return {**common, **prompt}
    if isinstance(prompt, str) or not isinstance(prompt, Iterable):
        return {**common, "prompt": prompt}
    return {**common, "prompt": list(prompt)}


def _loaded(tokenizer: str) -> Any:
    """A tokenizers.Tokenizer from its path or its folder's, or None."""
    path = Path(tokenizer) if tokenizer else None
    if path is not None and path.is_dir():
        path = path / "tokenizer.json"
    if path is None or not path.is_file():
        return None
    return _tokenizer(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _tokenizer(path: str, modified_ns: int) -> Any:
    """``modified_ns`` makes a changed file a new entry. None without the tokenizers package."""
    del modified_ns
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except ImportError:
        return None
    except Exception:  # tokenizers raises bare Exception for a malformed file; the worker will say so
        return None
    return tokenizer
