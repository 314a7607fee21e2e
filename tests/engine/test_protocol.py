"""Messages between worker and engine survive the pipe."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.protocol import (
    Add,
    Admitted,
    Cancel,
    Command,
    Emitted,
    Failed,
    Finished,
    Halt,
    Halted,
    Message,
    Ready,
    Refused,
    Report,
    SamplingParams,
    Stats,
    Token,
    decode,
    encode,
)

pytestmark = pytest.mark.fast

texts = st.text(max_size=20)
ids = st.integers(0, 2**31)
numbers = st.floats(allow_nan=False)
params = st.builds(
    SamplingParams,
    max_tokens=ids,
    min_tokens=ids,
    temperature=numbers,
    top_k=ids,
    top_p=numbers,
    repetition_penalty=numbers,
    presence_penalty=numbers,
    frequency_penalty=numbers,
    seed=st.integers(0, 2**63 - 1),
    stop=st.lists(texts, max_size=4).map(tuple),
    stop_token_ids=st.lists(ids, max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    ignore_eos=st.booleans(),
)
plain_tokens = st.builds(Token, ids, texts)
logprob_tokens = st.builds(Token, ids, texts, numbers, st.lists(st.tuples(ids, numbers), max_size=3))
events = st.one_of(
    st.builds(Admitted, texts, ids),
    st.builds(Emitted, texts, st.lists(plain_tokens | logprob_tokens, max_size=3)),
    st.builds(Finished, texts, st.sampled_from(["stop", "length", "expired"]), texts),
    st.builds(Failed, texts, texts, texts, st.booleans()),
)
messages = st.one_of(
    st.builds(Add, texts, texts | st.lists(ids, max_size=5), params, st.lists(ids, max_size=5), st.none() | numbers),
    st.builds(Cancel, texts),
    st.builds(Ready, ids, ids, ids, ids, texts, numbers, texts),
    st.builds(Refused, texts, texts),
    st.builds(Report, ids, ids, ids, st.lists(events, max_size=4), st.builds(Stats, ids, ids, ids, ids, ids, ids)),
    st.just(Halt()),
    st.just(Halted()),
)


@settings(max_examples=40)
@given(messages)
def test_a_message_is_the_same_after_the_pipe(message: Command | Message) -> None:
    """Whatever is said arrives as it was said."""
    assert decode(encode(message)) == message


def test_half_a_surrogate_pair_passes_the_pipe() -> None:
    """A prompt that is no valid Unicode reaches the engine, which can then refuse it, instead of ending the worker."""
    message = Add("a", "half \ud83d", SamplingParams(max_tokens=1))
    assert decode(encode(message)) == message
