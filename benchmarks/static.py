"""transformers' ``generate``: the baseline that others are measured against and the reference for tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BloomForCausalLM
from transformers.utils import logging

from benchmarks.workload import Item

PAD = 3


def load(folder: Path) -> Any:
    """The model in fp32, ready to generate."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]


@torch.inference_mode()
def run_static(model: Any, items: list[Item], batch: int) -> list[list[int]]:
    """Generate in batches of so many, left-padded, each to its longest output; the surplus is cut off."""
    outputs: list[list[int]] = []
    for first in range(0, len(items), batch):
        group = items[first : first + batch]
        width = max(len(item.prompt) for item in group)
        ids = torch.tensor([[PAD] * (width - len(item.prompt)) + item.prompt for item in group], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(item.prompt)) + [1] * len(item.prompt) for item in group], device=model.device
        )
        longest = max(item.max_tokens for item in group)
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, eos_token_id=None, pad_token_id=PAD
        )
        assert made.shape[1] == width + longest
        outputs += [row[width : width + item.max_tokens].tolist() for row, item in zip(made, group, strict=True)]
    return outputs


@torch.inference_mode()
def top_gap(model: Any, tokens: list[int]) -> float:
    """How far the likeliest next token's logit lies above the second's."""
    first, second = model(torch.tensor([tokens])).logits[0, -1].topk(2).values.tolist()
    return float(first - second)
