"""Sampling follows each request's parameters and seed, whoever shares its batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.engine.draw import Cut, draw, top
from workers.engine.protocol import SamplingParams
from workers.engine.sampler import begin, sample, uniform
from workers.engine.sequence import Sequence

VOCAB = 600


def sequence(
    prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), stop_ids: tuple[int, ...] = (), **params: Any
) -> Sequence:
    params.setdefault("max_tokens", 1000)
    return Sequence("a", len(prompt), [*prompt, *output], SamplingParams(**params), frozenset(stop_ids))


def logits(seed: int = 0, rows: int = 1, spread: float = 3.0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def drawn(row: torch.Tensor, draws: int = 400, **params: Any) -> Counter[int]:
    """The tokens that so many seeds draw from one row, [vocab]."""
    sequences = [
        sequence(
            temperature=params.get("temperature", 1.0),
            seed=seed,
            **{k: v for k, v in params.items() if k != "temperature"},
        )
        for seed in range(draws)
    ]
    return Counter(pick.token for pick in sample(row.expand(draws, -1).clone(), sequences) if pick.token is not None)


def nucleus(row: torch.Tensor, top_p: float) -> set[int]:
    """The fewest likeliest tokens that reach top_p, by sorting them all."""
    values, ids = row.double().softmax(-1).sort(descending=True)
    needed = int((values.cumsum(-1) < top_p).sum()) + 1
    return set(ids[:needed].tolist())


def test_temperature_0_takes_the_likeliest() -> None:
    """Greedy is the default."""
    rows = logits(rows=3)
    expected = rows.argmax(-1).tolist()
    assert [pick.token for pick in sample(rows, [sequence() for _ in range(3)])] == expected


@settings(deadline=None)
@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**6))
def test_the_draw_is_a_number_between_0_and_1(seed: int, index: int) -> None:
    """Never the ends, so that an impossible token is never drawn."""
    assert 0 < uniform(seed, index) < 1


@pytest.mark.parametrize("point", [2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("cut", [Cut(1.0), Cut(1.0, top_k=5), Cut(1.0, top_p=0.99)])
def test_no_point_draws_a_token_that_is_ruled_out(point: float, cut: Cut) -> None:
    """Also at the very ends of the distribution, where tokens of probability 0 lie."""
    row = torch.full((1, 200), -math.inf)
    row[0, 70:80] = 1.0
    assert 70 <= int(draw(row, [cut], [point])[0]) < 80


def test_draws_of_neighbouring_seeds_and_tokens_are_spread_evenly() -> None:
    """Seeds 0, 1, 2… and tokens 0, 1, 2… fill ten bins alike."""
    for points in ([uniform(seed, 0) for seed in range(5000)], [uniform(0, index) for index in range(5000)]):
        bins = Counter(int(point * 10) for point in points)
        assert all(400 < bins[i] < 600 for i in range(10))
        assert abs(sum(points) / 5000 - 0.5) < 0.02


def test_a_draw_does_not_depend_on_the_batch() -> None:
    """The same row and seed give the same token alone, and among rows with other parameters."""
    mixed = [
        sequence(temperature=0.8, seed=3, top_k=20),
        sequence(),
        sequence(temperature=1.3, seed=4, top_p=0.9),
        sequence(temperature=1.0, seed=5, repetition_penalty=1.4, output=(7, 7, 9)),
        sequence(temperature=2.0, seed=6, presence_penalty=1.0, top_k=3, top_p=0.5),
    ]
    rows = logits(rows=len(mixed))
    together = sample(rows.clone(), mixed)
    assert together == [sample(rows[i : i + 1].clone(), [mixed[i]])[0] for i in range(len(mixed))]


def test_draws_follow_the_distribution() -> None:
    """Over many seeds a token comes up as often as its probability says."""
    row = torch.tensor([1.0, 0.0, 2.0, -30.0])
    counts = drawn(row, draws=4000, temperature=1.0)
    for token, probability in enumerate(row.softmax(-1).tolist()):
        assert abs(counts[token] / 4000 - probability) < 0.03
    assert counts[3] == 0


@pytest.mark.parametrize("top_k", [1, 2, 17, VOCAB, VOCAB + 5])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    """No other token is ever drawn; 1 is greedy."""
    row = logits(seed=top_k, spread=1.0)[0]
    counts = drawn(row, top_k=top_k)
    assert set(counts) <= set(row.topk(min(top_k, VOCAB)).indices.tolist())
    assert len(counts) == 1 if top_k == 1 else len(counts) > 1


@pytest.mark.parametrize("spread", [0.001, 0.5, 3.0], ids=["flat", "wide", "peaked"])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_nucleus(top_p: float, spread: float) -> None:
    """Only the fewest likeliest tokens that reach top_p are drawn, also from flat distributions."""
    row = logits(seed=1, spread=spread)[0]
    kept = nucleus(row, top_p)
    counts = drawn(row, draws=1000, top_p=top_p)
    assert set(counts) <= kept
    assert len(counts) > len(kept) / 4


@pytest.mark.parametrize("temperature", [1e-45, 1e-9, 1e-3])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    """However small the number, the draw is the likeliest token and never NaN."""
    row = logits(seed=3)[0]
    assert set(drawn(row, draws=20, temperature=temperature)) == {int(row.argmax())}


@pytest.mark.parametrize("vocab", [60, 5000, 70_001])
def test_the_highest_logits_are_found_without_sorting(vocab: int) -> None:
    """The short list is that of topk over the whole row, whatever the size of the vocabulary."""
    rows = logits(seed=5, rows=3, vocab=vocab)
    values, ids = top(rows, 50)
    assert values.tolist() == rows.topk(50).values.tolist()
    assert rows.gather(1, ids).tolist() == values.tolist()


@pytest.mark.parametrize(
    "params", [{}, {"top_p": 0.97}, {"top_k": 3000}, {"top_k": 3000, "top_p": 0.9}, {"top_k": 900}]
)
def test_a_large_vocabulary_is_cut_and_drawn_alike(params: dict[str, Any]) -> None:
    """Draws from 40,000 tokens stay within what a sort would keep, and spread over it."""
    row = logits(seed=6, spread=2.0, vocab=40_001)[0]
    kept = set(row.topk(params.get("top_k", 40_001)).indices.tolist())
    masked = torch.full_like(row, -math.inf)
    masked[list(kept)] = row[list(kept)]
    kept &= nucleus(masked, params.get("top_p", 1.0))
    counts = drawn(row, draws=600, **params)
    assert set(counts) <= kept
    expected = float(masked.softmax(-1)[:20_000].sum())
    if "top_p" not in params:
        assert abs(sum(n for token, n in counts.items() if token < 20_000) / 600 - expected) < 0.08
    assert len(counts) > 250


def test_temperature_flattens_before_top_p_cuts() -> None:
    """The nucleus is that of the tempered distribution, as in transformers."""
    row = logits(seed=2)[0]
    counts = drawn(row, temperature=2.5, top_p=0.7)
    assert set(counts) <= nucleus(row / 2.5, 0.7)
    assert not set(counts) <= nucleus(row, 0.7)


def test_penalties_equal_those_of_transformers_and_openai() -> None:
    """Repetition divides or multiplies what is in prompt or output; presence and frequency count the output only."""
    row = torch.tensor([[2.0, -1.0, 3.0, 0.5, 1.0]])
    params = {"repetition_penalty": 2.0, "presence_penalty": 0.25, "frequency_penalty": 0.5}
    expected = row.clone()
    expected[0, [0, 2]] /= 2.0
    expected[0, 1] *= 2.0
    expected[0, 2] -= 0.25 + 2 * 0.5
    expected[0, 1] -= 0.25 + 1 * 0.5
    sample(row, [sequence(prompt=(0, 2), output=(2, 1, 2), **params)])
    assert torch.allclose(row, expected)


def test_counts_for_penalties_follow_the_tokens_that_are_added() -> None:
    """A token that was just generated weighs from the next step on."""
    one = sequence(frequency_penalty=1.0)
    picks = []
    for _ in range(4):
        row = torch.tensor([[0.0, 1.5, 1.0, 0.9]])
        (pick,) = sample(row, [one])
        assert pick.token is not None
        one.append(pick.token)
        picks.append(pick.token)
    assert picks == [1, 2, 3, 1]


def test_stops_are_ruled_out_before_min_tokens_and_allowed_after() -> None:
    """The likeliest token, if it would end the text too early, gives way to the next."""
    row = torch.tensor([[0.0, 5.0, 4.0]])
    picks = [
        sample(row.clone(), [sequence(output=output, stop_ids=(1,), min_tokens=2)])[0] for output in ((), (0,), (0, 0))
    ]
    assert [pick.token for pick in picks] == [2, 2, 1]


def test_logprobs_are_of_the_raw_distribution() -> None:
    """Penalties and temperature change what is drawn, not what is reported."""
    row = logits(seed=4)
    raw = row[0].log_softmax(-1)
    (pick,) = sample(
        row, [sequence(logprobs=3, temperature=0.7, seed=1, presence_penalty=2.0, output=(int(row.argmax()),))]
    )
    assert pick.token is not None
    assert pick.logprob == pytest.approx(float(raw[pick.token]))
    assert pick.top is not None
    assert [token for token, _ in pick.top] == raw.topk(3).indices.tolist()
    assert sample(logits(), [sequence(logprobs=0)])[0].top == []
    assert len(sample(logits(vocab=4), [sequence(logprobs=20)])[0].top or []) == 4


def test_the_host_never_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number that a device computes decides what is launched: tensors without numbers can be sampled from."""

    def there(values: list[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device)

    for module in ("draw", "sampler"):
        monkeypatch.setattr(f"workers.engine.{module}.on_device", there)
    mixed = [
        sequence(),
        sequence(temperature=1.0, logprobs=2),
        sequence(temperature=1.0, top_p=0.9),
        sequence(temperature=1.0, top_p=0.9, top_k=40),
        sequence(temperature=1.0, top_p=0.9, top_k=3000),
        sequence(temperature=1.0, top_k=3000, repetition_penalty=1.2, frequency_penalty=0.4, output=(3, 4)),
        sequence(stop_ids=(1,), min_tokens=5),
    ]
    drawn = begin(torch.empty(len(mixed), 40_001, device="meta"), mixed, [0] * len(mixed))
    assert drawn.tokens.shape == drawn.finite.shape == (len(mixed),)


@pytest.mark.parametrize("spread", [0.5, 3.0, 9.0])
def test_a_device_that_is_not_asked_draws_the_same(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the whole vocabulary what comes of a short list that holds the nucleus; more rows than are cut at once."""
    rows = logits(seed=7, rows=70, spread=spread, vocab=9001)
    cuts = [Cut(1.0, top_k, top_p) for top_k in (0, 3000) for top_p in (0.2, 0.6, 0.9, 0.97, 0.999)] * 7
    points = [(i + 0.5) / 70 for i in range(70)]
    expected = draw(rows, cuts, points)
    monkeypatch.setattr("workers.engine.draw._may_ask", lambda _: False)
    assert torch.equal(draw(rows, cuts, points), expected)


def test_a_row_that_is_not_finite_gives_no_token_and_leaves_the_others() -> None:
    """NaN and infinity are reported row by row, greedy or drawn."""
    rows = logits(rows=4)
    rows[0, 5] = math.nan
    rows[1, 5] = math.inf
    picks = sample(rows, [sequence(), sequence(temperature=1.0), sequence(temperature=1.0), sequence()])
    assert [pick.token is None for pick in picks] == [True, True, False, False]
