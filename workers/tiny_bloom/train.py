"""Train the tiny Bloom from nothing: corpus, tokenizer, model, files.

Owns the recipe.  Run `python -m workers.tiny_bloom.train --out DIR`; on one machine the same options always give the
same text and tokenizer, and the same weights up to the last bits of the CPU's arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM

from workers.tiny_bloom.corpus import stories
from workers.tiny_bloom.scoring import Bigram, nats_per_token, pad

TRAINING_SEED = 20
TRAINING_STORIES = 60_000
HELD_OUT_SEED = 1_789
HELD_OUT_STORIES = 1_000
"""Drawn; the stories that training also saw, word for word, are then left out."""

VOCAB_SIZE = 1_024
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
"""Bloom's own special tokens, with Bloom's own ids."""

CONTEXT_TOKENS = 2_048
"""What config.json promises, as Bloom does; ALiBi reaches further than the rows seen in training."""

CONFIG_KEYS = (
    *("model_type", "vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon"),
    *("initializer_range", "hidden_dropout", "attention_dropout", "apply_residual_connection_post_layernorm"),
    *("pretraining_tp", "slow_but_exact", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""The settings of a published Bloom's config.json; the library's own bookkeeping stays out."""

ROW_TOKENS = 160
BATCH_ROWS = 16
PEAK_RATE = 4e-3
WARM_UP_STEPS = 100

SAMPLES = ("Once upon a time", "Ben the miller", "Question: What does a goat eat?", "On Monday, Clara", "The old axe")


def training_stories(count: int = TRAINING_STORIES) -> list[str]:
    """Return the text that training sees; the bigram model is fitted on it too."""
    return list(stories(TRAINING_SEED, count))


def held_out_stories(seen: Sequence[str], count: int = HELD_OUT_STORIES) -> list[str]:
    """Return stories from a seed that training never used, without those that `seen` holds word for word."""
    known = set(seen)
    return [story for story in stories(HELD_OUT_SEED, count) if story not in known]


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids, closed by the end token."""
    return [[*encoding.ids, EOS_ID] for encoding in tokenizer.encode_batch_fast(list(texts))]


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer with all 256 bytes, so that any UTF-8 text goes in and comes back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_model(tokenizer: Tokenizer) -> BloomForCausalLM:
    """Return an untrained Bloom: 4 layers, 4 heads, hidden size 128, head tied to the embedding."""
    config = BloomConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        n_layer=4,
        n_head=4,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        use_cache=False,
    )
    return BloomForCausalLM(config)


def batches(rows: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens, labels) for ever, both [BATCH_ROWS, ROW_TOKENS or less].

    A row holds whole stories and starts with one, as a prompt does: Bloom's tokenizer puts no <s> in front.
    """
    rng = random.Random(TRAINING_SEED)
    order = list(rows)
    batch: list[list[int]] = [[]]
    while True:
        rng.shuffle(order)
        for story in order:
            if batch[-1] and len(batch[-1]) + len(story) > ROW_TOKENS:
                if len(batch) == BATCH_ROWS:
                    yield pad(batch, PAD_ID)
                    batch = []
                batch.append([])
            batch[-1].extend(story)


def fit(model: BloomForCausalLM, rows: Sequence[Sequence[int]], steps: int) -> None:
    """Train the model in place with AdamW: a linear warm-up, then a cosine down to nothing."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))
    warm_up = min(WARM_UP_STEPS, max(1, steps // 10))
    started = time.perf_counter()
    model.train()
    for step, (tokens, labels) in zip(range(steps), batches(rows), strict=False):
        done = max(0, step - warm_up) / max(1, steps - warm_up)
        rate = PEAK_RATE * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - started:4.0f} s", flush=True)
    model.train(mode=False)


def save(model: BloomForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder that `from_pretrained` takes, laid out as published Bloom folders are."""
    out.mkdir(parents=True, exist_ok=True)
    # Bloom's files name the tensors of the bare model and leave out the tied head.
    weights = {name: weight.to(torch.float16).contiguous() for name, weight in model.transformer.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    config = {name: getattr(model.config, name) for name in CONFIG_KEYS}
    config |= {"architectures": ["BloomForCausalLM"], "dtype": "float16", "seq_length": CONTEXT_TOKENS}
    tokenizer_config = SPECIAL_TOKENS | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    tokenizer.save(str(out / "tokenizer.json"))
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("special_tokens_map.json", SPECIAL_TOKENS),
    ):
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def complete(model: BloomForCausalLM, tokenizer: Tokenizer, prompt: str, max_tokens: int = 64) -> str:
    """Return the greedy completion of a prompt, up to the end token."""
    tokens = tokenizer.encode(prompt).ids
    prompt_tokens = len(tokens)
    while len(tokens) < prompt_tokens + max_tokens and tokens[-1] != EOS_ID:
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits  # [1, tokens, vocab]
        tokens.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(tokens[prompt_tokens:]))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the files, and print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m workers.tiny_bloom.train", description=__doc__)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder to write; files in it are replaced"
    )
    parser.add_argument("--steps", type=int, default=1_200, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--stories", type=int, default=TRAINING_STORIES, help="training stories (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=HELD_OUT_STORIES, help="stories drawn for scoring (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first weights (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="CPU threads; 1 is faster where others share the cores (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    for name in ("steps", "stories", "held_out", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")

    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    texts = training_stories(options.stories)
    tokenizer = train_tokenizer(texts)
    rows = encode(tokenizer, texts)
    print(f"{len(rows):,} stories, {sum(map(len, rows)):,} tokens, {tokenizer.get_vocab_size():,} token types")
    fit(model := build_model(tokenizer), rows, options.steps)
    save(model, tokenizer, options.out)
    train_s = time.perf_counter() - started

    # Score what was written, not what was trained: the files hold rounded weights.
    model = BloomForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    held_out = encode(tokenizer, held_out_stories(texts, options.held_out))
    figures = {
        "parameters": model.num_parameters(),
        "model_bytes": (options.out / "model.safetensors").stat().st_size,
        "training_tokens": sum(map(len, rows)),
        "held_out_tokens": sum(map(len, held_out)),
        "held_out_nats_per_token": round(nats_per_token(model, held_out), 4),
        "bigram_nats_per_token": round(Bigram.fit(rows, VOCAB_SIZE).nats_per_token(held_out), 4),
        "steps": options.steps,
        "train_s": round(train_s),
    }
    for prompt in SAMPLES:
        print(f"{prompt}|{complete(model, tokenizer, prompt)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
