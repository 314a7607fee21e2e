"""transformers' own greedy generation, one prompt at a time: what the engine's tokens are compared with."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from transformers import BloomForCausalLM

GAP = 1e-4
"""Two likeliest logits nearer than this are a tie: rounding may pick either."""


@functools.lru_cache(maxsize=4)
def load(folder: Path) -> BloomForCausalLM:
    """The reference model in fp32, cached."""
    return BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generate(folder: Path, prompt: list[int], tokens: int, *, ignore_eos: bool = True) -> list[int]:
    """Greedy continuation of one prompt."""
    with torch.inference_mode():
        out = load(folder).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None if ignore_eos else load(folder).generation_config.eos_token_id,
            pad_token_id=3,
        )
    return out[0, len(prompt) :].tolist()


def assert_same(folder: Path, prompt: list[int], expected: list[int], got: list[int]) -> None:
    """Fail unless both are equal, or part where the reference's two likeliest tokens tie."""
    if got == expected:
        return
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    with torch.inference_mode():
        logits = load(folder)(torch.tensor([prompt + expected[:at]])).logits[0, -1]
    best = logits.topk(2).values
    assert best[0] - best[1] < GAP, (
        f"parts at token {at}: {expected[at : at + 4]} expected, {got[at : at + 4]} generated"
    )
