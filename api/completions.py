"""``/v1/completions``' bodies: what OpenAI's clients send, taken apart into one request per choice.

Knows neither HTTP nor the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api.schemas import MAX_LIST
from farm.contracts import Request, parse_request
from farm.errors import InvalidRequest
from farm.openai_shapes import values_of_body
from farm.prompts import check_samples, fan_out

# What concerns the answer rather than a choice; ``farm.openai_shapes`` sees to the rest.
_OURS = ("prompt", "n", "best_of", "echo", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Ask:
    """A body taken apart. The choices of one prompt stand together, in the order of the prompts."""

    requests: list[Request]
    samples: int
    is_echoed: bool
    is_streamed: bool
    has_usage: bool


def ask_of(body: object) -> Ask:
    """Take a body apart. Raises InvalidRequest naming the field, also for what the farm can't do."""
    if not isinstance(body, dict):
        raise InvalidRequest("body", "must be an object with a prompt")
    given = {name: value for name, value in body.items() if value is not None}
    prompts = _prompts(given.get("prompt"))
    samples = _samples(given)
    if len(prompts) * samples > MAX_LIST:
        raise InvalidRequest(
            "n", f"{samples} for each of {len(prompts):,} prompts are more than {MAX_LIST:,} choices; ask for fewer"
        )
    is_streamed = _flag(given, "stream")
    is_echoed = _flag(given, "echo")
    values = values_of_body({name: value for name, value in given.items() if name not in _OURS})
    if is_echoed and values.get("logprobs") is not None:
        raise InvalidRequest("echo", "can't be had with logprobs: a prompt's own tokens are not scored; leave one out")
    # All but the prompts is the same for all, and so is what may be wrong with it.
    common = parse_request({**values, "prompt": prompts[0]})
    requests = [common, *(_with_prompt(values, prompt, place) for place, prompt in enumerate(prompts[1:], 1))]
    return Ask(
        [one for request in requests for one in fan_out(request, samples)],
        samples,
        is_echoed,
        is_streamed,
        _wants_usage(given),
    )


def _prompts(prompt: object) -> list[object]:
    """The prompts: text, token ids, or a list of either."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return prompt
    return [prompt]


def _with_prompt(values: Mapping[str, object], prompt: object, place: int) -> Request:
    try:
        return parse_request({**values, "prompt": prompt})
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.field}[{place}]", error.problem) from None


def _samples(given: Mapping[str, object]) -> int:
    samples = given.get("n", 1)
    if not isinstance(samples, int) or isinstance(samples, bool):
        raise InvalidRequest("n", f"{str(samples)[:60]!r} is of the wrong kind; give a whole number")
    check_samples(samples)
    if given.get("best_of", samples) != samples:
        raise InvalidRequest("best_of", "is not supported here: all choices are returned; leave it out or give n again")
    return samples


def _flag(given: Mapping[str, object], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(name, f"{str(value)[:60]!r} is of the wrong kind; give true or false")
    return value


def _wants_usage(given: Mapping[str, object]) -> bool:
    """Whether a stream is to end with what all took; a whole answer says so anyway."""
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise InvalidRequest("stream_options", "must be an object that may hold include_usage; leave out all else")
    return _flag(options, "include_usage")
