"""What callers may ask for, and what they are told when they ask for something else."""

from __future__ import annotations

from typing import Any

import pytest

from farm.contracts import Request, fingerprint, keyed_job_id, model_name, parse_request
from farm.errors import InvalidRequest

pytestmark = pytest.mark.fast

SECRET = "the butler did it"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt: is missing; give some text or a list of token ids"),
    ({"prompt": None}, "prompt: is missing; give some text or a list of token ids"),
    ({"promt": SECRET}, "promt: is not a field of a request; did you mean 'prompt'?"),
    ({"prompt": ""}, "prompt: is empty; give some text or at least one token id"),
    ({"prompt": []}, "prompt: is empty; give some text or at least one token id"),
    ({"prompt": 5}, "prompt: must be text or a list of token ids, each 0 or more"),
    ({"prompt": b"bytes"}, "prompt: must be text or a list of token ids, each 0 or more"),
    ({"prompt": [3, -1]}, "prompt: must be text or a list of token ids, each 0 or more"),
    ({"prompt": [SECRET]}, "prompt: must be text or a list of token ids, each 0 or more"),
    ({"prompt": {"text": SECRET}}, "prompt: must be text or a list of token ids, each 0 or more"),
    ({"prompt": SECRET + "\ud800"}, "prompt: holds half a surrogate pair, which is no text; repair it"),
    ({"prompt": "s", "max_token": 3}, "max_token: is not a field of a request; did you mean 'max_tokens'?"),
    ({"prompt": "s", "zzz": 3}, "zzz: is not a field of a request"),
    ({"prompt": "s", 5: "x"}, "5: is not a field of a request"),
    ({"prompt": "s", "max_tokens": 0}, "max_tokens: 0 is out of range; give at least 1"),
    ({"prompt": "s", "max_tokens": "7"}, "max_tokens: '7' is of the wrong kind; give a whole number"),
    ({"prompt": "s", "max_tokens": 1.5}, "max_tokens: 1.5 is of the wrong kind; give a whole number"),
    ({"prompt": "s", "max_tokens": True}, "max_tokens: True is of the wrong kind; give a whole number"),
    ({"prompt": "s", "max_tokens": None}, "max_tokens: None is of the wrong kind; give a whole number"),
    ({"prompt": "s", "min_tokens": 65}, "min_tokens: 65 is above max_tokens, 64; lower it or raise max_tokens"),
    ({"prompt": "s", "temperature": -1}, "temperature: -1 is out of range; give at least 0"),
    ({"prompt": "s", "temperature": "hot"}, "temperature: 'hot' is of the wrong kind; give a number"),
    ({"prompt": "s", "temperature": float("nan")}, "temperature: nan is of the wrong kind; give a finite number"),
    ({"prompt": "s", "top_p": 0}, "top_p: 0 is out of range; give more than 0"),
    ({"prompt": "s", "top_p": 1.5}, "top_p: 1.5 is out of range; give at most 1"),
    ({"prompt": "s", "seed": 2**63}, "seed: 9223372036854775808 is out of range; give less than 9223372036854775808"),
    ({"prompt": "s", "deadline_s": 0}, "deadline_s: 0 is out of range; give more than 0"),
    ({"prompt": "s", "stop": list("abcde")}, "stop: 5 are too many; at most 4 are allowed"),
    ({"prompt": "s", "stop": [""]}, "stop: '' is too short; give at least 1 character"),
    ({"prompt": "s", "stop": [1]}, "stop: 1 is of the wrong kind; give a string"),
    ({"prompt": "s", "stop": {"a": 1}}, "stop: {'a': 1} is of the wrong kind; give a list"),
    (
        {"prompt": "s", "stop": "x" * 300},
        f"stop: '{'x' * 56}... has 300 characters; at most 256 are allowed",
    ),
    ({"prompt": "s", "stop_token_ids": [1] * 65}, "stop_token_ids: 65 are too many; at most 64 are allowed"),
    ({"prompt": "s", "ignore_eos": "yes"}, "ignore_eos: 'yes' is of the wrong kind; give true or false"),
    ({"prompt": "s", "logprobs": 21}, "logprobs: 21 is out of range; give at most 20"),
    ({"prompt": "s", "priority": "urgent"}, "priority: 'urgent' is unknown; choose one of high, normal or low"),
    (
        {"prompt": "s", "metadata": {str(n): "v" for n in range(17)}},
        "metadata: 17 are too many; at most 16 are allowed",
    ),
    ({"prompt": "s", "metadata": {"a": 1}}, "metadata: 1 is of the wrong kind; give a string"),
    ({"prompt": "s", "metadata": "x"}, "metadata: 'x' is of the wrong kind; give pairs of strings"),
    (
        {"prompt": "s", "metadata": {"a": "\udfff"}},
        "metadata: holds half a surrogate pair, which is no text; repair it",
    ),
    ({"prompt": "x" * 4_000_001}, "prompt: holds 4,000,001 items, more than 4,000,000; shorten it"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message[:50] for _, message in REFUSED])
def test_a_wrong_request_is_told_what_is_wrong(values: dict[str, Any], message: str) -> None:
    """Each refusal names the field, the value, the limit and what to do, and never the prompt."""
    with pytest.raises(InvalidRequest) as error:
        parse_request(values)
    assert str(error.value) == message
    assert error.value.field == message.partition(":")[0]
    assert SECRET not in repr(error.value)


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"stop": [1]}, {"nonsense": 1}, {"priority": "x"}])
def test_no_message_shows_the_prompt(wrong: dict[str, Any]) -> None:
    """Whatever else is wrong with a request, its prompt does not end up in a log."""
    with pytest.raises(InvalidRequest) as error:
        parse_request({"prompt": SECRET, **wrong})
    assert SECRET not in str(error.value)


def test_what_is_left_out_has_a_default() -> None:
    """A prompt alone is a request: 64 tokens, greedy, normal priority."""
    request = parse_request({"prompt": "Once"})
    assert (request.max_tokens, request.temperature, request.top_p, request.priority) == (64, 0, 1, "normal")


def test_small_liberties_are_taken_well() -> None:
    """One stop string may come without a list, and whole numbers do where fractions are meant."""
    assert parse_request({"prompt": "Once", "stop": "."}).stop == ["."]
    assert parse_request({"prompt": "Once", "stop": None}).stop == []
    assert parse_request({"prompt": [1, 2], "temperature": 1, "top_p": 1}).temperature == 1


def test_equal_requests_have_equal_fingerprints() -> None:
    """What a default would have said is no difference; anything else is."""
    plain = Request(prompt="Once")
    assert plain.to_json() == parse_request({"max_tokens": 64, "prompt": "Once"}).to_json()
    assert plain.to_json() != Request(prompt="Once", max_tokens=65).to_json()
    assert fingerprint(plain.to_json()) != fingerprint(Request(prompt="Twice").to_json())


def test_a_request_survives_its_way_through_the_ledger() -> None:
    """A request written as JSON and read again is the same."""
    request = Request(prompt="Ünïcode \u2028 \x00", stop=["\n"], seed=2**63 - 1, metadata={"k": "v"}, deadline_s=0.5)
    assert Request.model_validate_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("bigscience/bloom-7b1", "bloom-7b1"), ("/models/My Bloom/", "my-bloom"), ("tiny-bloom", "tiny-bloom")],
)
def test_a_models_name_fits_in_a_key(model_id: str, name: str) -> None:
    """Hub ids and folders give short names for queues."""
    assert model_name(model_id) == name


@pytest.mark.parametrize("model_id", ["", "/", "   ", "..", "x" * 200])
def test_a_model_without_a_usable_name_is_refused(model_id: str) -> None:
    """A name that can't be part of a key is refused before it becomes one."""
    with pytest.raises(InvalidRequest):
        model_name(model_id)


def test_an_idempotency_key_gives_one_id_per_tenant() -> None:
    """The same tenant and key give the same id for ever; another tenant's key is its own."""
    assert keyed_job_id("ann", "7") == keyed_job_id("ann", "7")
    assert len({keyed_job_id("ann", "7"), keyed_job_id("ben", "7"), keyed_job_id("ann", "8")}) == 3
