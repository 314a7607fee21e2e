"""A run of Bloom blocks computed by the native library: the same function as the torch stage, in one call per step.

Reads the weights one by one and packs each at once, so no second copy of the model is ever in memory.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.kernels.attention import alibi_slopes
from workers.engine.native.library import Library, Shape, load
from workers.engine.weights import EMBEDDING, HEAD, WeightSource

SPIN_US = 50
"""How long a helper thread looks for work before it sleeps: a step's phases follow within a few microseconds, the next
step after some hundred."""
_QKV, _DENSE, _UP, _DOWN = range(4)
_EMBEDDING_NORM, _FINAL_NORM, _BLOCK_NORMS = range(3)


class Cache(Protocol):
    """What a stage takes of a KV cache: per layer [2, tokens * heads, head_dim], keys first, contiguous fp32."""

    heads: int
    layers: list[Tensor]


class NativeStage:
    """Blocks ``layers`` of a Bloom, with the embedding if it is the first stage and the head if it is the last.

    ``threads`` counts the calling one; the others sleep between steps. One call at a time.
    """

    def __init__(
        self,
        weights: WeightSource,
        layers: range,
        *,
        first: bool,
        last: bool,
        threads: int,
        quantization: str | None = None,
        library: Library | None = None,
    ) -> None:
        """Read and pack the weights. ``quantization`` is None or int8.

        library: by default the one that ``load`` finds.
        Raises ModelRefused for damaged tensors, MemoryError, and ValueError for what only the torch stage computes: a
        dtype other than float32, int8 of a width that 4 does not divide, anything where no library loads.
        """
        library = library or load()
        config = weights.config
        known = quantization is None or (quantization == "int8" and config.hidden % 4 == 0)
        if library is None or weights.dtype is not torch.float32 or not known:
            raise ValueError(
                f"no native stage for {weights.dtype} and quantization {quantization}; use the torch stage"
            )
        self._config, self._first, self._last, self._layers = config, first, last, len(layers)
        self._library = library
        shape = Shape(
            vocab=config.vocab,
            hidden=config.hidden,
            layers=len(layers),
            heads=config.heads,
            first=first,
            last=last,
            residual_post_norm=config.residual_post_norm,
            threads=threads,
            spin_us=SPIN_US,
            norm_eps=config.norm_eps,
        )
        slopes = alibi_slopes(config.heads).contiguous()
        self._stage = library.create(ctypes.byref(shape), slopes.data_ptr(), quantization == "int8")
        if not self._stage:
            raise MemoryError("no memory or no threads for the native stage")
        self._end = weakref.finalize(self, library.destroy, self._stage)
        self._embedding = weights.take(EMBEDDING).contiguous() if first else None  # [vocab, hidden]
        self._pack(weights, layers)

    def forward(self, source: Tensor, spans: Tensor, sampled: Tensor, cache: Cache) -> Tensor:
        """Compute a step and store its keys and values.

        source: ids, int64 [rows], in the first stage, else fp32 [rows, hidden].
        spans: int64 [n, 4]: block offset, block size, start position and count; their rows follow each other in order.
        sampled: int64 [m], rows that give a token.
        Returns fp32 logits [m, vocab] in the last stage, else the hidden rows [rows, hidden].
        """
        source, spans, sampled = source.contiguous(), spans.contiguous(), sampled.contiguous()
        assert source.dtype is (torch.int64 if self._first else torch.float32)
        assert spans.dtype is sampled.dtype is torch.int64
        assert len(cache.layers) == self._layers
        assert all(layer.dtype is torch.float32 and layer.is_contiguous() for layer in cache.layers)
        rows, picked = source.shape[0], sampled.shape[0]
        size = (picked, self._config.vocab) if self._last else (rows, self._config.hidden)
        out = torch.empty(size, dtype=torch.float32)
        layers = [layer.data_ptr() for layer in cache.layers]
        failed = self._library.forward(
            self._stage,
            source.data_ptr(),
            rows,
            spans.data_ptr(),
            spans.shape[0],
            sampled.data_ptr(),
            picked,
            (ctypes.c_void_p * len(layers))(*layers),
            cache.layers[0].shape[1] // cache.heads if layers else 0,
            out.data_ptr(),
        )
        if failed == 1:
            raise MemoryError(f"no memory for a step of {rows} rows")
        assert not failed, "a span, an id or a sampled row lies outside of what there is"
        return out

    def _pack(self, weights: WeightSource, layers: range) -> None:
        if self._embedding is not None:
            self._library.set_embedding(self._stage, self._embedding.data_ptr())
            self._norm(weights, _EMBEDDING_NORM, "word_embeddings_layernorm")
        for i, layer in enumerate(layers):
            name = f"h.{layer}"
            self._norm(weights, _BLOCK_NORMS + 2 * i, f"{name}.input_layernorm")
            self._norm(weights, _BLOCK_NORMS + 2 * i + 1, f"{name}.post_attention_layernorm")
            self._linear(weights, i, _QKV, f"{name}.self_attention.query_key_value")
            self._linear(weights, i, _DENSE, f"{name}.self_attention.dense")
            self._linear(weights, i, _UP, f"{name}.mlp.dense_h_to_4h")
            self._linear(weights, i, _DOWN, f"{name}.mlp.dense_4h_to_h")
        if self._last:
            self._norm(weights, _FINAL_NORM, "ln_f")
            self._head(weights)

    def _norm(self, weights: WeightSource, which: int, name: str) -> None:
        weight, bias = weights.take(f"{name}.weight").contiguous(), weights.take(f"{name}.bias").contiguous()
        _check(self._library.set_norm(self._stage, which, weight.data_ptr(), bias.data_ptr()))

    def _linear(self, weights: WeightSource, layer: int, which: int, name: str) -> None:
        weight, bias = weights.take(f"{name}.weight"), weights.take(f"{name}.bias")
        if which == _QKV:
            weight, bias = self._by_kind(weight), self._by_kind(bias)
        weight, bias = weight.contiguous(), bias.contiguous()
        _check(self._library.set_linear(self._stage, layer, which, weight.data_ptr(), bias.data_ptr()))

    def _by_kind(self, qkv: Tensor) -> Tensor:
        """Published rows [heads, 3, head_dim] as [3, heads, head_dim], so that each of the three is one run."""
        split = qkv.view(self._config.heads, 3, self._config.head_dim, -1)
        return split.transpose(0, 1).reshape(qkv.shape)

    def _head(self, weights: WeightSource) -> None:
        if weights.has_head:
            head = weights.take(HEAD)
        else:
            head = weights.take(EMBEDDING) if self._embedding is None else self._embedding
        head = head.contiguous()
        _check(self._library.set_head(self._stage, head.data_ptr()))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the packed weights")
