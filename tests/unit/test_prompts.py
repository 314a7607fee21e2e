"""Seeds of samples, and the shapes a prompt may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.contracts import parse_request
from farm.errors import InvalidRequest, PromptTooLong
from farm.ledger.records import ModelFacts
from farm.prompts import MOST_SAMPLES, check_length, derived_seed, fan_out

FACTS = ModelFacts("tiny-bloom", 64, 100, "", "")


@given(st.integers(0, 2**63 - 1))
def test_samples_of_a_seed_differ_and_repeat(seed: int) -> None:
    """Each sample of a seed has a valid seed of its own, always the same; the first has the seed itself."""
    request = parse_request({"prompt": "x", "seed": seed})
    seeds = [sample.seed for sample in fan_out(request, 16)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 16
    assert seeds == [derived_seed(seed, sample) for sample in range(16)]
    for value in seeds:
        parse_request({"prompt": "x", "seed": value})


def test_samples_without_a_seed_leave_it_to_the_jobs() -> None:
    """Without a seed, samples are the same request: their jobs' ids make them differ."""
    request = parse_request({"prompt": "x"})
    assert fan_out(request, 3) == [request] * 3
    for n in (0, -1, MOST_SAMPLES + 1):
        with pytest.raises(InvalidRequest, match=r"n: .* out of range"):
            fan_out(request, n)


@given(st.integers(1, 80), st.integers(1, 80))
def test_token_ids_are_counted_exactly(prompt_tokens: int, max_tokens: int) -> None:
    """Token ids are refused exactly when they and max_tokens exceed the context."""
    request = parse_request({"prompt": [1] * prompt_tokens, "max_tokens": max_tokens})
    if prompt_tokens + max_tokens > 64:
        with pytest.raises(PromptTooLong):
            check_length(request, FACTS)
    else:
        check_length(request, FACTS)


def test_what_can_not_be_known_is_let_pass() -> None:
    """Without facts, or for long text without a tokenizer, the worker decides."""
    check_length(parse_request({"prompt": [10**6] * 1_000}), None)
    check_length(parse_request({"prompt": "x" * 1_000, "max_tokens": 63}), FACTS)
    with pytest.raises(PromptTooLong):
        check_length(parse_request({"prompt": "x", "max_tokens": 64}), FACTS)
    with pytest.raises(InvalidRequest, match="token 100 is unknown; tiny-bloom has 100 tokens"):
        check_length(parse_request({"prompt": [99, 100], "max_tokens": 1}), FACTS)
