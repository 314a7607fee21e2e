"""What keys and values in 8 bits cost: the error of tiny-bloom's logits, and its perplexity, against those of 32 bits.

    python -m benchmarks.kv_error [--stories 100]

The same model, the same texts that it was not trained on, every token's logits; only the KV cache differs.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from benchmarks.report import finish
from farm.settings import load_settings
from workers.engine.checkpoint import find_checkpoint
from workers.engine.kv.paged import PAGE
from workers.engine.layout import Layout, Span
from workers.engine.loading import load_shards, place
from workers.engine.sequence import Pages
from workers.tiny_bloom import FOLDER
from workers.tiny_bloom.train import encode, held_out_stories

MODEL = "tiny-bloom"
CONTEXT = 256
STORIES = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """Against keys and values in 32 bits. logit_error: root of the mean square, in parts of the logits' own spread.

    perplexity: how many times as large.  same_best: the share of tokens after which the likeliest next one is the same.
    """

    logit_error: float
    perplexity: float
    same_best: float


@torch.inference_mode()
def logits_of(texts: list[list[int]], kv_dtype: str) -> Tensor:
    """tiny-bloom's logits after every token but the last of each text, fp32 [tokens, vocab]."""
    settings = load_settings(
        {},
        model={"id": MODEL, "dtype": "float32"},
        engine={
            "devices": ["cpu"],
            "max_slots": 1,
            "max_context": CONTEXT,
            "kv_layout": "paged",
            "kv_dtype": kv_dtype,
        },
    )
    checkpoint = find_checkpoint(MODEL)
    placement = place(checkpoint.config, settings.model, settings.engine)
    [shard] = load_shards(checkpoint, placement, settings.engine, torch.get_num_threads())
    table = Pages(list(range(CONTEXT // PAGE)))
    found = []
    for text in texts:
        ids = text[: CONTEXT + 1][:-1]
        found.append(shard.run(Layout(ids, [Span(table, 0, len(ids))], 0, list(range(len(ids))), []), None))
    return torch.cat(found)


def compare(texts: list[list[int]], kv_dtype: str) -> Cost:
    """What keeping keys and values so costs on these texts."""
    targets = torch.tensor([token for text in texts for token in text[1 : CONTEXT + 1]])
    exact, rounded = logits_of(texts, "auto"), logits_of(texts, kv_dtype)
    losses = [functional.cross_entropy(logits, targets).item() for logits in (exact, rounded)]
    return Cost(
        logit_error=((rounded - exact).square().mean().sqrt() / exact.std()).item(),
        perplexity=math.exp(losses[1] - losses[0]),
        same_best=(exact.argmax(-1) == rounded.argmax(-1)).float().mean().item(),
    )


def held_out(count: int) -> list[list[int]]:
    """Stories that tiny-bloom was not trained on, as tokens."""
    return encode(Tokenizer.from_file(str(FOLDER / "tokenizer.json")), held_out_stories([], count))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=STORIES)
    texts = held_out(parser.parse_args().stories)
    costs = {name: compare(texts, name) for name in ("int8", "fp8")}
    rows = [
        (
            name,
            f"logits {100 * cost.logit_error:.2f}% of their spread, perplexity {100 * (cost.perplexity - 1):+.3f}%, "
            f"same likeliest token {100 * cost.same_best:.2f}%",
        )
        for name, cost in costs.items()
    ]
    finish(
        "kv_error", rows, {"model": MODEL, "tokens": sum(map(len, texts)), **{k: asdict(c) for k, c in costs.items()}}
    )


if __name__ == "__main__":
    main()
