"""Sampled generation on a real model: seeded, resumable, and the same whoever shares the batch."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.byte_bpe import FIRST_BYTE
from benchmarks.workload import save_bloom
from tests.engine.driving import bloom, drive, one
from workers.engine.bloom import Bloom
from workers.engine.checkpoint import BloomConfig
from workers.engine.engine import Engine
from workers.engine.protocol import Add, SamplingParams

SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 1},
    "top-k": {"temperature": 0.8, "seed": 2, "top_k": 20},
    "top-p": {"temperature": 1.2, "seed": 3, "top_p": 0.9},
    "penalties": {
        "temperature": 0.9,
        "seed": 4,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "min_tokens": {"temperature": 1.0, "seed": 5, "min_tokens": 10, "stop_token_ids": tuple(range(4, 60))},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bloom:
    """A random Bloom of five heads."""
    shape = BloomConfig(vocab=500, hidden=80, layers=2, heads=5)
    return bloom(save_bloom(tmp_path_factory.mktemp("bloom"), shape, scale=6.0), max_slots=8)


@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED.keys())
def test_output_is_the_same_alone_among_others_and_resumed(model: Bloom, params: dict[str, Any]) -> None:
    """Neither neighbours nor a lost attempt change a token or a character."""
    prompt = [20, 30, 40]
    alone = one(Engine(model, 32), prompt, max_tokens=30, **params)
    rng = random.Random(0)
    others = [
        Add(
            str(i),
            [rng.randrange(FIRST_BYTE, 500) for _ in range(rng.randint(1, 60))],
            SamplingParams(20, temperature=1.0, seed=i),
        )
        for i in range(10)
    ]
    mine = Add("mine", prompt, SamplingParams(max_tokens=30, **params))
    among = drive(Engine(model, 32), [*others[:5], mine, *others[5:]], arrive=[0, 0, 1, 2, 3, 4, 5, 5, 6, 9, 20])[
        "mine"
    ]
    assert (among.ids, among.text, among.reason) == (alone.ids, alone.text, alone.reason)
    assert len(alone.ids) >= 10
    for cut in (1, 7, len(alone.ids) - 1):
        rest = one(Engine(model, 32), prompt, resume=alone.ids[:cut], max_tokens=30, **params)
        assert alone.ids[:cut] + rest.ids == alone.ids
        assert "".join(token.text for token in alone.tokens[:cut]) + rest.text == alone.text
        assert rest.reason == alone.reason


def test_seeds_differ(model: Bloom) -> None:
    """Another seed gives another text."""
    texts = {tuple(one(Engine(model, 32), [20, 30], temperature=1.0, seed=seed).ids) for seed in range(8)}
    assert len(texts) == 8


def test_logprobs_come_with_each_token(model: Bloom) -> None:
    """The likeliest token of a greedy text is the chosen one."""
    for token in one(Engine(model, 32), [20, 30], logprobs=3).tokens:
        assert token.top is not None
        assert token.logprob is not None
        assert token.top[0] == (token.id, token.logprob)
        assert len(token.top) == 3


def test_text_prompts_are_tokenized_and_an_empty_one_fails(model: Bloom) -> None:
    """Text in any script is a prompt; no text is none."""
    said = drive(
        Engine(model, 32),
        [Add(text or "empty", text, SamplingParams(max_tokens=4)) for text in ("hello", "漢字", "🌾", "")],
    )
    assert [said[id].prompt_tokens for id in ("hello", "漢字", "🌾")] == [
        len(model.encode(t)) for t in ("hello", "漢字", "🌾")
    ]
    assert said["empty"].failed is not None
    assert said["empty"].failed.code == "invalid_request"


def test_the_text_of_random_tokens_is_that_of_the_tokenizer(model: Bloom) -> None:
    """Pieces of a text full of broken characters join to what decode gives."""
    from tokenizers import Tokenizer

    said = one(Engine(model, 32), [20, 30], max_tokens=100, temperature=2.0, seed=1, ignore_eos=True)
    assert said.text == Tokenizer.from_file(model.ready.tokenizer).decode(said.ids)
