"""transformers' own Bloom without memory, for accelerate: the bytes of its modules and a first placement.

The only module of the engine that loads transformers and accelerate, which takes seconds: import it where it is used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes

from workers.engine.checkpoint import BloomConfig
from workers.engine.module_bytes import ModuleBytes

_DISK = "disk"


class EmptyModel:
    """A Bloom of a shape on torch's meta device, its head tied."""

    def __init__(self, config: BloomConfig, dtype: str) -> None:
        self._config = config
        self._dtype = getattr(torch, dtype)
        shape = transformers.BloomConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            n_layer=config.layers,
            n_head=config.heads,
            tie_word_embeddings=config.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        with init_empty_weights():
            self.model: Any = transformers.BloomForCausalLM(shape)
        self.model.tie_weights()

    def module_bytes(self) -> ModuleBytes:
        """What accelerate counts for each module in the dtype that it will be loaded in."""
        sizes = compute_module_sizes(self.model, dtype=self._dtype)
        embedding = sizes["transformer.word_embeddings"]
        return ModuleBytes(
            embedding=embedding,
            embedding_norm=sizes["transformer.word_embeddings_layernorm"],
            block=sizes["transformer.h.0"],
            final_norm=sizes["transformer.ln_f"],
            # A tied head is counted once, with the embedding.
            head=embedding if self._config.tied else sizes["lm_head"],
            is_tied=self._config.tied,
        )

    def filled_step_bytes(self, budgets: Sequence[int], kv_bytes: int, logits_bytes: int) -> int | None:
        """What the slowest stage reads in a step when accelerate places the model, None unless all of it fits.

        budgets: bytes of each device for all of these.  kv_bytes: room for keys and values in each layer.
        logits_bytes: beside the head.  It fills one device after the other, puts a tied head beside the embedding and
        leaves room for one more module on the first device.
        """
        parts = self.module_bytes()
        # Keys and values weigh as a buffer of the block, so that its device has room for them, and logits of the head.
        for module, count in [
            *((block, kv_bytes) for block in self.model.transformer.h),
            (self.model.lm_head, logits_bytes),
        ]:
            kept = torch.empty(count, dtype=torch.int8, device="meta")
            module.register_buffer("kept", kept, persistent=False)
        with _quiet("accelerate.utils.modeling"):  # it warns of each planned device that is not in this machine
            placed: dict[str, int | str] = infer_auto_device_map(
                self.model,
                max_memory=dict(enumerate(budgets)),
                no_split_module_classes=["BloomBlock"],
                dtype=self._dtype,
                offload_buffers=True,
            )
        if _DISK in placed.values():
            return None
        reads = {f"transformer.h.{layer}": parts.block for layer in range(self._config.layers)}
        reads |= {"transformer.ln_f": parts.final_norm, "lm_head": parts.head}
        stages: Counter[int | str] = Counter()
        for name, read in reads.items():
            stages[_device_of(name, placed)] += read
        return max(stages.values())


def _device_of(name: str, placed: dict[str, int | str]) -> int | str:
    """Where a module is; a map may name a module that it is in, down to "", the whole model."""
    while name not in placed:
        name = name.rpartition(".")[0]
    return placed[name]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
