"""What clients ask, and what the right answer is.

The stamping engine's answers follow a rule, so every prompt is another one. The real model's are compared with those of
the same requests before anything goes wrong, so there is a limited number of them.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from farm import Farm
from farm.contracts import keyed_job_id
from tests.chaos.clients import TENANT, Prompts, asked
from tests.chaos.engine import Rule
from tests.chaos.evidence import Expected
from tests.chaos.profiles import Profile
from tests.chaos.record import Call, Recorder
from workers.tiny_bloom import PROMPTS

WORDS = ("wheat", "barley", "oats", "rye", "maize", "millet", "clover", "hay", "straw", "chaff")
LENGTHS = 3  # lengths of texts asked of the real model
SAMPLING: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.9, "seed": 7})
ANSWER_S = 120.0


def prompts_of(profile: Profile) -> Prompts:
    """What makes a job's fields from its number and a client's dice."""
    if profile.engine == "tiny-bloom":
        known = twins(profile)
        return lambda _number, dice: dict(dice.choice(known))
    load = profile.load

    def made_up(number: int, dice: random.Random) -> dict[str, Any]:
        words = " ".join(dice.choices(WORDS, k=dice.randint(1, 12)))
        lengths = load.long_tokens if dice.random() < load.long else load.tokens
        return {"prompt": f"number {number} {words}", "max_tokens": dice.randint(*lengths)}

    return made_up


def twins(profile: Profile) -> list[dict[str, Any]]:
    """Every request that clients send to the real model: bundled prompts, greedy and sampled, of some lengths.

    They go on past the ends of their texts, so that there is something to interrupt.
    """
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()[: profile.load.requests]
    bundled = [json.loads(line)["prompt"] for line in lines]
    low, high = profile.load.tokens
    lengths = [low + (high - low) * step // (LENGTHS - 1) for step in range(LENGTHS)]
    return [
        {"prompt": prompt, "max_tokens": length, "ignore_eos": True, **sampling}
        for prompt, length, sampling in itertools.product(bundled, lengths, SAMPLING)
    ]


def undisturbed(farm: Farm, recorder: Recorder, requests: list[dict[str, Any]]) -> None:
    """Have each request answered once before anything goes wrong."""
    keyed = [{**fields, "idempotency_key": f"undisturbed-{n}"} for n, fields in enumerate(requests)]
    for fields, request in zip(requests, keyed, strict=True):
        recorder.add(asked(recorder.now, keyed_job_id(TENANT, request["idempotency_key"]), fields))
    began = recorder.now
    jobs = farm.submit_many(keyed)
    ids = tuple(job.id for job in jobs)
    recorder.add(Call(began, recorder.now - began, "undisturbed", "submit", ids))
    for job in jobs:
        job.result(ANSWER_S)


def by_rule() -> Expected:
    """The right answers of the stamping engine."""
    rule = Rule()
    return lambda request: rule(request.prompt, request.max_tokens)
