"""/v1/completions and /v1/models, asked by OpenAI's own client over sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Completion

from farm import keys
from farm.contracts import JobState
from farm.ledger.jobs import Jobs
from farm.settings import Settings
from tests.api.conftest import WEB, Served, serving
from tests.conftest import wait_until
from tests.farmhand import Farmhand, text_of
from tests.workers import WorkerProcess

MODEL = "tiny-bloom"


@pytest.fixture
def served(api_settings: Settings, jobs: Jobs) -> Iterator[Served]:
    """An API without keys."""
    with serving(api_settings) as api:
        yield api


@pytest.fixture
def ai(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's client, set up as its users do."""
    with client_of(served) as client:
        yield client


def client_of(served: Served, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=30)


def read(ai: openai.OpenAI, **body: object) -> list[object]:
    """All of an answer, or of a stream."""
    return list(ai.completions.create(model=MODEL, **body))  # type: ignore[call-overload]


def texts(chunks: Iterator[Completion]) -> dict[int, str]:
    """The text of each choice of a stream."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] = found.get(choice.index, "") + choice.text
    return found


def test_chats_are_led_to_completions(ai: openai.OpenAI, jobs: Jobs) -> None:
    """A Bloom has no chat template; who asks for a chat is told so, and where completions are."""
    with pytest.raises(openai.NotFoundError, match=r"no chat template.*/v1/completions"):
        ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "A goat"}])
    assert not jobs.client.exists(keys.jobs("default"))


def test_a_prompt_is_completed(ai: openai.OpenAI, hand: Farmhand) -> None:
    """One choice, with what it took; sixteen tokens unless told otherwise, as OpenAI's clients expect."""
    with hand:
        answer = ai.completions.create(model=MODEL, prompt="A goat")
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == (text_of("A goat", 16), "length", 0)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (16, 1)
    assert (answer.object, answer.model) == ("text_completion", MODEL)


def test_choices_stand_in_the_order_of_their_prompts(ai: openai.OpenAI, hand: Farmhand) -> None:
    """Several prompts, n times each: all samples of the first prompt, then those of the next; a prompt counts once."""
    with hand:
        answer = ai.completions.create(model=MODEL, prompt=["A goat", "A big hen"], n=2, max_tokens=2, seed=1)
    expected = [text_of(prompt, 2) for prompt in ("A goat", "A goat", "A big hen", "A big hen")]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1 + 2, 8)


def test_a_stream_says_what_the_whole_answer_says(ai: openai.OpenAI, hand: Farmhand) -> None:
    """The choices come mingled, each complete and with its reason; the last chunk says what they took, if asked."""
    hand.tokens_per_beat = 1
    with hand:
        stream = ai.completions.create(
            model=MODEL, prompt=["A goat", "A hen"], max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert texts(iter(chunks)) == {0: text_of("A goat", 9), 1: text_of("A hen", 9)}
    assert len(chunks) > 6
    assert sorted(c.index for chunk in chunks for c in chunk.choices if c.finish_reason == "length") == [0, 1]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 18
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_prompt_stands_before_its_text(ai: openai.OpenAI, hand: Farmhand, is_streamed: bool) -> None:
    """echo puts the prompt first, once."""
    with hand:
        answer = ai.completions.create(model=MODEL, prompt="A goat", echo=True, max_tokens=3, stream=is_streamed)
        text = texts(answer)[0] if isinstance(answer, openai.Stream) else answer.choices[0].text
    assert text == "A goat" + text_of("A goat", 3)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_jobs_end_when_the_client_leaves(served: Served, api_settings: Settings, jobs: Jobs, is_streamed: bool) -> None:
    """A client that goes away, with a stream or without, leaves no job behind: they are cancelled."""
    with Farmhand(api_settings, tokens_per_beat=0):
        body = {"prompt": ["A goat", "A hen"], "stream": is_streamed, "max_tokens": 500}
        with pytest.raises(openai.APITimeoutError), client_of(served).with_options(timeout=0.5) as impatient:
            read(impatient, **body)
        wait_until(lambda: cancelled(jobs) == 2, why="both jobs to be cancelled")
        wait_until(lambda: served.listeners() == 0, why="nobody to listen")


def cancelled(jobs: Jobs) -> int:
    return int(jobs.client.hget(keys.TOTALS, "cancelled") or 0)  # type: ignore[arg-type]


def test_a_client_with_a_key_may_leave_and_ask_again(served: Served, jobs: Jobs, hand: Farmhand) -> None:
    """With an idempotency key the jobs run on, and the same request again gets the same completion."""
    again = {"Idempotency-Key": "order-7"}
    with pytest.raises(openai.APITimeoutError), client_of(served).with_options(timeout=0.3) as impatient:
        impatient.completions.create(model=MODEL, prompt=["A goat", "A hen"], extra_headers=again)
    wait_until(lambda: served.listeners() == 0, why="the client to be gone")
    with hand, client_of(served) as patient:
        first = patient.completions.create(model=MODEL, prompt=["A goat", "A hen"], extra_headers=again)
        second = patient.completions.create(model=MODEL, prompt=["A goat", "A hen"], extra_headers=again)
        with pytest.raises(openai.UnprocessableEntityError):
            patient.completions.create(model=MODEL, prompt=["A goat", "A dog"], extra_headers=again)
    assert (first.id, [c.text for c in first.choices]) == (second.id, [c.text for c in second.choices])
    assert cancelled(jobs) == 0
    assert int(jobs.client.hget(keys.TOTALS, "submitted") or 0) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_job_that_fails_is_an_error(served: Served, api_settings: Settings, is_streamed: bool) -> None:
    """The client raises what went wrong, also in the middle of a stream, and never returns half a text as whole."""
    failing = Farmhand(api_settings, fail_prompts=frozenset({"A goat"}))
    with failing, client_of(served) as ai, pytest.raises(openai.APIError) as raised:
        read(ai, prompt="A goat", stream=is_streamed)
    assert "the model said no" in str(raised.value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["A goat", ""]}, "prompt[1]"),
        ({"prompt": ["A goat", 5]}, "prompt[1]"),
        ({"prompt": [[1, 2], [5_000]]}, "prompt[1]"),
        ({"prompt": "A goat", "n": 0}, "n"),
        ({"prompt": "A goat", "n": "two"}, "n"),
        ({"prompt": ["A goat"] * 11, "n": 100}, "n"),
        ({"prompt": "A goat", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "A goat", "suffix": "end"}, "suffix"),
        ({"prompt": "A goat", "logit_bias": {"50256": -100}}, "logit_bias"),
        ({"prompt": "A goat", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "A goat", "echo": "yes"}, "echo"),
        ({"prompt": "A goat", "stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"prompt": "A goat", "stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"prompt": "A goat", "temperature": 3e9}, "temperature"),
        ({"prompt": "A goat", "max_tokens": 5_000}, "max_tokens"),
        ({"prompt": "A goat", "tempreture": 1}, "tempreture"),
        ({"prompt": "A goat", "model": "gpt-5"}, "model"),
        ([], "body"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(
    served: Served, api_settings: Settings, jobs: Jobs, body: object, field: str
) -> None:
    """A 400 that names the field, before anything is enqueued."""
    with Farmhand(api_settings):
        answer = WEB.post(f"{served.url}/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert jobs.client.hget(keys.TOTALS, "submitted") is None


def test_habits_of_clients_and_fields_of_ours_are_taken(ai: openai.OpenAI, hand: Farmhand, jobs: Jobs) -> None:
    """user is accepted; priority, metadata and the rest of a request's fields go along as extra fields."""
    with hand:
        answer = ai.completions.create(
            model=MODEL, prompt="A goat", user="ann", extra_body={"priority": "high", "metadata": {"order": "7"}}
        )
    job = jobs.view(answer.id.removeprefix("cmpl-"))
    assert (job.priority, job.metadata, job.state) == ("high", {"order": "7"}, JobState.SUCCEEDED)


def test_a_deadline_that_passes_is_an_error_that_nobody_repeats(served: Served) -> None:
    """408, and the client, which would ask twice more by itself, is told not to."""
    body = {"prompt": "A goat", "deadline_s": 0.01}
    with Farmhand(served.service.settings, tokens_per_beat=0):
        answer = WEB.post(f"{served.url}/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "job_expired")
    assert answer.headers["x-should-retry"] == "false"


def test_models_are_listed(ai: openai.OpenAI, api_settings: Settings, hand: Farmhand) -> None:
    """Each with whether a worker serves it now; one that nobody knows is a 404."""
    [model] = ai.models.list().data
    assert (model.id, model.to_dict()["status"]) == (MODEL, "waiting")
    with hand:
        assert ai.models.retrieve(MODEL).to_dict()["status"] == "serving"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-5")


def test_a_key_of_ours_that_was_revoked_opens_nothing(served: Served) -> None:
    """Where no key is needed any key will do, but not one of this farm's that it does not know."""
    with client_of(served, "bf_" + 43 * "x") as ai, pytest.raises(openai.AuthenticationError):
        ai.models.list()


def test_the_real_model_answers_whole_and_in_parts_alike(served: Served, jobs: Jobs, tmp_path: Path) -> None:
    """tiny-bloom's text, token ids, logprobs and offsets are the same with a stream and without; stops never show."""
    asked = {"prompt": ["Once upon a time", "A goat"], "max_tokens": 24, "logprobs": 2, "seed": 5, "temperature": 0.7}
    with (
        WorkerProcess(jobs, tmp_path, "real", ENGINE__KIND="bloom") as worker,
        client_of(served) as ai,
    ):
        worker.wait_ready()
        whole = ai.completions.create(model=MODEL, n=2, stop=[" who"], **asked)  # type: ignore[call-overload]
        parts = list(ai.completions.create(model=MODEL, n=2, stop=[" who"], stream=True, **asked))  # type: ignore[call-overload]
        ids = ai.completions.create(model=MODEL, prompt=[[5, 6, 7]], echo=True, max_tokens=4)
    for choice in whole.choices:
        pieces = [c for chunk in parts for c in chunk.choices if c.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert " who" not in choice.text
        scored = [piece.logprobs for piece in pieces if piece.logprobs]
        assert [one for logprobs in scored for one in logprobs.token_logprobs] == choice.logprobs.token_logprobs
        assert [one for logprobs in scored for one in logprobs.text_offset] == choice.logprobs.text_offset
    assert whole.choices[0].text != whole.choices[1].text
    assert ids.choices[0].text.startswith('"#$')
