"""OpenAI's completions bodies, in and out."""

from __future__ import annotations

from typing import Any

import pytest

from farm.contracts import JobState, parse_request
from farm.errors import InvalidRequest
from farm.openai_shapes import completion_body, values_of_body
from farm.results import JobView, Timings, TokenLogprobs, Usage

NOTHING_ASKED: dict[str, Any] = {
    "model": None, "suffix": None, "max_tokens": None, "temperature": None, "top_p": None, "n": 1, "stream": False,
    "stream_options": None, "logprobs": None, "echo": False, "stop": None, "presence_penalty": None,
    "frequency_penalty": None, "best_of": 1, "logit_bias": {}, "user": "someone", "seed": None,
}  # fmt: skip


def test_a_body_of_defaults_is_openai_s_request() -> None:
    """All of OpenAI's fields are known; what is left out or null takes OpenAI's defaults, not the farm's."""
    request = parse_request(values_of_body({"prompt": "x", **NOTHING_ASKED}))
    assert request == parse_request({"prompt": "x", "max_tokens": 16, "temperature": 1.0})
    assert parse_request(values_of_body({"prompt": ["x"]}, {"max_tokens": 3})).max_tokens == 3
    assert parse_request(values_of_body({"prompt": [[1, 2]], "max_tokens": 2})).prompt == [1, 2]
    assert parse_request(values_of_body({"prompt": [1, 2]})).prompt == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("best_of", 3),
        ("echo", True),
        ("stream", True),
        ("suffix", "end"),
        ("logit_bias", {"50256": -100}),
        ("stream_options", {"include_usage": True}),
        ("prompt", ["a", "b"]),
        ("messages", []),
    ],
)
def test_what_can_not_be_done_is_refused(field: str, value: object) -> None:
    """A field that the farm would have to ignore is an error that names it."""
    with pytest.raises(InvalidRequest) as refused:
        parse_request(values_of_body({"prompt": "x", field: value}))
    assert refused.value.field == field


def test_a_completion_has_one_choice_per_job() -> None:
    """Samples are choices of one body, whose usage counts the prompt once and all completions."""

    def job(number: int, tokens: int) -> JobView:
        return JobView(
            id=f"job-{number}", state=JobState.SUCCEEDED, model="tiny-bloom", priority="normal", tenant="default",
            created_at=1000.9, started_at=None, finished_at=None, attempt=1, strikes=0, text=f"text{number}",
            token_ids=list(range(tokens)), finish_reason="stop", usage=Usage(5, tokens, 1), timings=Timings(),
            worker=None, model_fingerprint=None, error=None, history=[], metadata={}, wants_token_ids=number == 0,
            logprobs=[TokenLogprobs(7, "ab", -0.5, [(7, -0.5), (8, -1.5)]), TokenLogprobs(9, "c", -0.1, [])],
        )  # fmt: skip

    body = completion_body([job(0, 2), job(1, 3)], model="Tiny")
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10, "resumed_tokens": 2}
    assert (body["id"], body["created"], body["model"]) == ("cmpl-job-0", 1000, "Tiny")
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert ["token_ids" in choice for choice in body["choices"]] == [True, False]
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [{"token_id:7": -0.5, "token_id:8": -1.5}, {}],
        "text_offset": [0, 2],
    }
