"""What the engine promises about every job, shown on the synthetic model, which needs no torch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import PromptTooLong
from farm.settings import EngineSettings
from tests.engine.driving import Said, add, drive, gather, one
from workers.engine.engine import Engine
from workers.engine.model import Pick
from workers.engine.protocol import Add, Admitted, Emitted, Finished, SamplingParams
from workers.engine.scheduler import Step
from workers.engine.synthetic import Synthetic

pytestmark = pytest.mark.fast


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def synthetic(clock: Clock | None = None, **settings: int) -> Engine:
    """An engine over the synthetic model, with few slots."""
    settings = {"max_slots": 2, "max_context": 128, **settings}
    return Engine(Synthetic(EngineSettings(**settings)), prefill_budget=16, clock=clock or Clock())


def test_a_job_is_admitted_then_emits_its_tokens_then_finishes() -> None:
    """Admitted once, one token a step, Finished last."""
    engine = synthetic()
    engine.add(add("a", max_tokens=3))
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    first, second, last = steps
    assert first[0] == Admitted("a", 2)
    assert [type(event) for step in (first[1:], second, last) for event in step] == [
        Emitted,
        Emitted,
        Emitted,
        Finished,
    ]
    assert last[-1] == Finished("a", "length")


def test_a_job_does_not_depend_on_its_neighbours() -> None:
    """The same request gives the same tokens alone and among others."""
    alone = one(synthetic(), "some words", max_tokens=20)
    among = drive(synthetic(), [add(str(i), f"prompt {i}", max_tokens=9) for i in range(5)] + [add("a", max_tokens=20)])
    assert among["a"].ids == alone.ids
    assert len({tuple(said.ids[:9]) for said in among.values()}) == 6


def test_slots_bound_how_many_run_at_once() -> None:
    """Requests beyond the slots wait their turn, and all finish."""
    engine = synthetic(max_slots=2)
    for i in range(5):
        engine.add(add(str(i)))
    said: dict[str, Said] = {}
    while engine.has_work:
        gather(engine.step(), said)
        assert engine.running <= 2
    assert [one.reason for one in said.values()] == ["length"] * 5
    assert (engine.running, engine.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "params", "code", "words"),
    [
        ([5, 512], {}, "invalid_request", "512"),
        ([-1], {}, "invalid_request", "-1"),
        ([], {}, "invalid_request", "no tokens"),
        ("half \ud83d", {}, "invalid_request", "surrogate"),
        ([1], {"stop_token_ids": (600,)}, "invalid_request", "stop_token_ids"),
        ([1] * 100, {"max_tokens": 29}, "prompt_too_long", "128"),
    ],
)
def test_a_request_that_cannot_be_served_fails_for_good_and_hurts_nobody(
    prompt: str | list[int], params: dict[str, int], code: str, words: str
) -> None:
    """Bad input is answered with its code and a reason; neighbours run on."""
    said = drive(synthetic(), [add("good"), add("bad", prompt, **params), add("also good")])
    failed = said["bad"].failed
    assert failed is not None
    assert (failed.code, failed.retryable) == (code, False)
    assert words in failed.message
    assert {said["good"].reason, said["also good"].reason} == {"length"}
    if code == "prompt_too_long":
        assert failed.message == str(PromptTooLong.of(100, 29, 128))


def test_prompt_and_output_may_fill_the_context_exactly() -> None:
    """The context is the sum that still fits."""
    assert len(one(synthetic(), [1] * 100, max_tokens=28).ids) == 28


@given(cut=st.integers(0, 24), stop=st.sampled_from([(), (" over hills",), (" the", " of"), (" a field of",)]))
def test_a_resumed_job_says_what_the_first_attempt_left_unsaid(cut: int, stop: tuple[str, ...]) -> None:
    """Wherever an attempt is lost, its tokens and texts and those of the next one make up the uninterrupted output."""
    whole = one(synthetic(), "some words", max_tokens=24, stop=stop)
    cut = min(cut, len(whole.ids))
    rest = one(synthetic(), "some words", resume=whole.ids[:cut], max_tokens=24, stop=stop)
    assert whole.ids[:cut] + rest.ids == whole.ids
    assert "".join(token.text for token in whole.tokens[:cut]) + rest.text == whole.text
    assert (rest.reason, rest.prompt_tokens) == (whole.reason, 2)


def test_a_stop_string_across_the_checkpoint_ends_the_text() -> None:
    """A stop string that begins in one attempt and ends in the next is found."""
    words = one(synthetic(), "some words", max_tokens=24).text.split()
    stop = f" {words[9]} {words[10]}"
    whole = one(synthetic(), "some words", max_tokens=24, stop=(stop,))
    assert whole.reason == "stop"
    assert whole.text == "".join(f" {word}" for word in words[:9])
    rest = one(synthetic(), "some words", resume=whole.ids[:10], max_tokens=24, stop=(stop,))
    assert (rest.reason, len(rest.ids), rest.text) == ("stop", 1, "")


def test_a_resume_that_is_complete_finishes_at_once() -> None:
    """Nothing is computed for a job whose last attempt died between its last token and its last word."""
    ids = one(synthetic(), "some words", max_tokens=8).ids
    engine = synthetic()
    engine.add(Add("a", "some words", SamplingParams(max_tokens=8), resume=ids))
    assert engine.step() == [Admitted("a", 2), Finished("a", "length")]
    stop = one(synthetic(), "some words", max_tokens=8).tokens[3].text
    engine.add(Add("b", "some words", SamplingParams(max_tokens=8, stop=(stop,)), resume=ids[:4]))
    assert engine.step() == [Admitted("b", 2), Finished("b", "stop")]
    assert not engine.has_work


def test_a_stop_token_ends_the_text_and_is_no_part_of_it() -> None:
    """The stopping token is neither emitted nor counted."""
    ids = one(synthetic(), "some words", max_tokens=8).ids
    stopped = one(synthetic(), "some words", max_tokens=8, stop_token_ids=(ids[5],))
    assert (stopped.reason, stopped.ids) == ("stop", ids[: ids.index(ids[5])])


def test_the_time_of_decoding_ends_with_the_last_token() -> None:
    """The step of a token that ends a text, and is none of it, is not counted."""
    text = one(synthetic(), "some words", max_tokens=4).ids
    clock = Clock()
    engine = synthetic(clock)
    engine.add(Add("a", "some words", SamplingParams(max_tokens=8, stop_token_ids=(text[3],))))
    ended: list[Finished] = []
    while engine.has_work:
        ended += [event for event in engine.step() if isinstance(event, Finished)]
        clock.now += 1.0
    assert [event.decode_s for event in ended] == [2.0]


def test_no_stop_counts_before_min_tokens() -> None:
    """Stop strings and stop tokens are passed over until min_tokens are there."""
    words = one(synthetic(), "some words", max_tokens=24).tokens
    early = words[2].text
    said = one(synthetic(), "some words", max_tokens=24, min_tokens=6, stop=(early,))
    assert len(said.ids) >= 6
    assert early in said.text
    said = one(synthetic(), "some words", max_tokens=24, min_tokens=6, stop_token_ids=(words[2].id,))
    assert len(said.ids) >= 6


def test_a_deadline_ends_a_running_and_a_waiting_job_at_the_next_step() -> None:
    """What was generated stays, and the reason is expired."""
    clock = Clock()
    engine = synthetic(clock, max_slots=1)
    engine.add(add("runs", deadline_s=5.0, max_tokens=50, stop=("of the never",)))
    engine.add(add("waits", deadline_s=5.0))
    engine.add(add("later", max_tokens=2))
    said = gather(engine.step() + engine.step())
    clock.now += 5.0
    gather(engine.step(), said)
    assert [said["runs"].reason, said["waits"].reason] == ["expired", "expired"]
    assert (len(said["runs"].ids), said["waits"].ids) == (2, [])
    assert said["runs"].text == one(synthetic(), "some words", max_tokens=2).text
    while engine.has_work:
        gather(engine.step(), said)
    assert said["later"].reason == "length"


def test_nothing_more_is_said_about_a_cancelled_job() -> None:
    """Cancelling frees the slot, whether the job runs, waits, or has events that are not out yet."""
    engine = synthetic(max_slots=1)
    for id in ("runs", "waits", "stays"):
        engine.add(add(id))
    said = gather(engine.step())
    before = {*said}
    engine.cancel("runs")
    engine.cancel("waits")
    engine.cancel("unknown")
    engine.add(add("new"))
    engine.cancel("new")
    after: list[str] = []
    while engine.has_work:
        events = engine.step()
        after += [event.id for event in events]
        gather(events, said)
    assert before == {"runs", "waits", "stays"}
    assert set(after) == {"stays"}


def test_an_id_that_is_added_again_starts_anew() -> None:
    """The second Add of a live id replaces the first."""
    engine = synthetic()
    engine.add(add("a", max_tokens=50))
    engine.step()
    engine.add(add("a", max_tokens=3))
    events = [event for _ in range(3) for event in engine.step()]
    assert events[0] == Admitted("a", 2)
    assert events[-1] == Finished("a", "length")
    assert not engine.has_work


def test_logits_that_are_not_finite_fail_their_own_job_only() -> None:
    """A sequence that overflows is answered with a reason; its neighbour goes on."""

    class Overflows(Synthetic):
        def run(self, step: Step) -> list[Pick]:
            picks = super().run(step)
            return [Pick(None) if s.id == "bad" else pick for s, pick in zip(step.sampled, picks, strict=True)]

    engine = Engine(Overflows(EngineSettings(max_slots=2, max_context=128)), prefill_budget=16)
    said = drive(engine, [add("bad"), add("good")])
    assert said["bad"].failed is not None
    assert said["bad"].failed.code == "not_finite"
    assert said["good"].reason == "length"
