"""A Bloom checkpoint as an OpenVINO model with keys and values as state: ``python -m … SOURCE TARGET [--int8]``.

The graph is built operator by operator, as optimum-intel's exporter leaves it: that one needs an older transformers.
The bias of ALiBi takes the very form by which OpenVINO's paged attention recognises Bloom's slopes; elsewhere it is
only a mask. Knows fp32 safetensors with published names and a tied head.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset6
from openvino import opset13 as op

Weights = dict[str, Any]


def main() -> None:
    """Convert a folder with config.json and model.safetensors."""
    source, target, *flags = sys.argv[1:]
    model = Bloom(Path(source), int8="--int8" in flags).build()
    ov.save_model(model, Path(target) / "openvino_model.xml", compress_to_fp16=False)
    (Path(target) / "config.json").write_text((Path(source) / "config.json").read_text())


class Bloom:
    """Builds the graph. ``int8``: matrices in 8 bits with one scale a row; norms and biases stay fp32."""

    def __init__(self, folder: Path, *, int8: bool) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        assert self.config["tie_word_embeddings"], "only tied heads are converted"
        self.weights = read_safetensors(folder / "model.safetensors")
        self.int8 = int8
        self.heads: int = self.config["n_head"]
        self.hidden: int = self.config["hidden_size"]
        self.head_dim = self.hidden // self.heads
        self.sinks: list[Any] = []

    def build(self) -> ov.Model:
        """input_ids, attention_mask: [batch, tokens]; beam_idx: [batch]. Gives logits: [batch, tokens, vocab]."""
        ids = _parameter("input_ids", [-1, -1], np.int64)
        mask = _parameter("attention_mask", [-1, -1], np.int64)
        beam = _parameter("beam_idx", [-1], np.int32)
        embedding = self._matrix(self.weights["word_embeddings.weight"])
        x = self._norm(op.gather(embedding, ids, _ints(0)), "word_embeddings_layernorm")
        bias = self._alibi(ids, mask)
        batch = op.gather(op.shape_of(ids), _list(0), _ints(0))
        empty = op.broadcast(_float(0.0), op.concat([batch, _list(self.heads, 0, self.head_dim)], 0))
        for layer in range(self.config["n_layer"]):
            x = self._block(layer, x, bias, empty, beam)
        logits = op.matmul(self._norm(x, "ln_f"), embedding, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([op.result(logits)], self.sinks, [ids, mask, beam], "bloom")

    def _block(self, layer: int, x: Any, bias: Any, empty: Any, beam: Any) -> Any:
        name = f"h.{layer}."
        mixed = self._linear(
            self._norm(x, name + "input_layernorm"), name + "self_attention.query_key_value", by_part=True
        )
        q, k, v = (self._split_heads(part) for part in op.split(mixed, _ints(2), 3).outputs())
        k = self._remember(f"past.{layer}.key", k, empty, beam)
        v = self._remember(f"past.{layer}.value", v, empty, beam)
        seen = op.transpose(op.scaled_dot_product_attention(q, k, v, bias, causal=False), _list(0, 2, 1, 3))
        merged = op.reshape(seen, _list(0, 0, self.hidden), True)
        x = op.add(x, self._linear(merged, name + "self_attention.dense"))
        wide = self._linear(self._norm(x, name + "post_attention_layernorm"), name + "mlp.dense_h_to_4h")
        return op.add(x, self._linear(op.gelu(wide, "tanh"), name + "mlp.dense_4h_to_h"))

    def _alibi(self, ids: Any, mask: Any) -> Any:
        """slope · position of the key; the least number where the key comes after the query. [1, heads, new, all]."""
        new = op.squeeze(op.gather(op.shape_of(ids), _list(1), _ints(0)), _list(0))
        all_of_them = op.gather(op.shape_of(mask), _list(1), _ints(0))
        total = op.squeeze(all_of_them, _list(0))
        keys = op.range(_ints(0), total, _ints(1), "i64")
        queries = op.add(op.range(_ints(0), new, _ints(1), "i64"), op.subtract(total, new))
        # Slopes first, and two reshapes: the form that is recognised.
        slopes = op.constant(alibi_slopes(self.heads).reshape(self.heads, 1))
        bias = op.multiply(slopes, op.unsqueeze(op.convert(keys, "f32"), _list(0)))
        bias = op.reshape(bias, op.concat([_list(self.heads, 1), all_of_them], 0), False)
        bias = op.reshape(bias, op.concat([_list(1, self.heads, 1), all_of_them], 0), False)
        later = op.greater(op.unsqueeze(keys, _list(0)), op.unsqueeze(queries, _list(1)))
        return op.select(op.unsqueeze(later, _list(0, 1)), _float(float(np.finfo(np.float32).min)), bias)

    def _remember(self, name: str, new: Any, empty: Any, beam: Any) -> Any:
        """Append keys or values to those of earlier calls."""
        shape = ov.PartialShape([-1, self.heads, -1, self.head_dim])
        past = op.gather(opset6.read_value(empty, name, np.float32, shape), beam, _ints(0))
        everything = op.concat([past, new], 2)
        self.sinks.append(opset6.assign(everything, name))
        return everything

    def _split_heads(self, x: Any) -> Any:
        """[batch, tokens, hidden] to [batch, heads, tokens, head_dim]."""
        return op.transpose(op.reshape(x, _list(0, 0, self.heads, self.head_dim), True), _list(0, 2, 1, 3))

    def _linear(self, x: Any, name: str, *, by_part: bool = False) -> Any:
        """``by_part``: rows that come head by head, [heads, 3, head_dim], are put in order of query, key, value."""
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        if by_part:
            rows = np.arange(3 * self.hidden).reshape(self.heads, 3, self.head_dim).transpose(1, 0, 2).reshape(-1)
            weight, bias = weight[rows], bias[rows]
        return op.add(op.matmul(x, self._matrix(weight), False, True), op.constant(np.ascontiguousarray(bias)))

    def _matrix(self, weight: Any) -> Any:
        if not self.int8:
            return op.constant(np.ascontiguousarray(weight))
        scale = np.abs(weight).max(axis=1, keepdims=True) / 127
        rounded = np.rint(weight / scale).astype(np.int8)
        return op.multiply(op.convert(op.constant(rounded), "f32"), op.constant(scale.astype(np.float32)))

    def _norm(self, x: Any, name: str) -> Any:
        scaled = op.mvn(x, _list(-1), True, self.config["layer_norm_epsilon"], "inside_sqrt")
        weight, bias = (op.constant(np.array(self.weights[f"{name}.{part}"])) for part in ("weight", "bias"))
        return op.add(op.multiply(scaled, weight), bias)


def alibi_slopes(heads: int) -> Any:
    """One slope a head. Source: ALiBi, Press et al. 2022, section 3, for any number of heads."""

    def powers(of: int) -> list[float]:
        first = 2.0 ** (-8.0 / of)
        return [first ** (i + 1) for i in range(of)]

    whole = 1 << int(math.log2(heads))
    return np.array([*powers(whole), *powers(2 * whole)[0::2][: heads - whole]], dtype=np.float32)


def read_safetensors(path: Path) -> Weights:
    """Name to array, fp32, mapped from the file."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    (size,) = struct.unpack("<Q", raw[:8].tobytes())
    header = json.loads(raw[8 : 8 + size].tobytes())
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}; only F32 is converted"
            first, end = entry["data_offsets"]
            weights[name] = raw[8 + size + first : 8 + size + end].view(np.float32).reshape(entry["shape"])
    return weights


def _parameter(name: str, shape: list[int], dtype: Any) -> Any:
    # Both names are looked for: that of the node and that of its tensor.
    parameter = op.parameter(shape, dtype)
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _ints(value: int) -> Any:
    return op.constant(np.array(value, np.int64))


def _list(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _float(value: float) -> Any:
    return op.constant(np.float32(value))


if __name__ == "__main__":
    main()
