"""The Triton kernels compute attention with ALiBi over pages, and read and write nothing else."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.gpu import DEVICE, triton_attention
from workers.engine.gpu.attention import Attention, Chunks, TorchAttention
from workers.engine.gpu.selftest import best_attention, mismatch
from workers.engine.kernels.attention import alibi_slopes
from workers.engine.kv.eight_bits import quantize
from workers.engine.kv.paged import PAGE
from workers.engine.kv.pages import PageLayer

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
POISON = (math.nan, math.inf)
INT8, FP8 = torch.int8, torch.float8_e4m3fn


def _exact(query: Tensor, keys: Tensor, values: Tensor, slopes: Tensor, position: int) -> Tensor:
    """One row in fp64, written out. query: [heads, D]; keys, values: [position + 1, heads, D]. [heads, D]."""
    bias = slopes.double()[:, None] * (torch.arange(position + 1) - position)
    scores = torch.einsum("hd,khd->hk", query.double(), keys.double()) / math.sqrt(query.shape[1]) + bias
    return torch.einsum("hk,khd->hd", scores.softmax(-1), values.double())


class Texts:
    """Keys and values of some texts, and pages that hold them in any order amid poison."""

    def __init__(
        self,
        lengths: list[int],
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        poison: float,
        kept: torch.dtype | None = None,
    ) -> None:
        self.generator = torch.Generator().manual_seed(heads + head_dim + sum(lengths))
        self.lengths, self.slopes, self.kept = lengths, alibi_slopes(heads), kept
        self.kv = [self.normal(length, 2, heads, head_dim).to(dtype) for length in lengths]
        width = -(-max(lengths) // PAGE) + 2
        order = torch.randperm(len(lengths) * width, generator=self.generator)
        self.tables = order.int().view(len(lengths), width).clone()
        self.pages = PageLayer.of(len(order) + 1, heads, head_dim, dtype, torch.device("cpu"), kept)
        self.pages.tensors()[-1].fill_(poison)  # scales where there are some: no byte of int8 is poison
        for table, length in zip(self.tables, lengths, strict=True):
            table[-(-length // PAGE) :] = len(order)  # behind a text's end lies what must not be read

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def put(self, text: int, upto: int) -> None:
        """Write a text's first tokens into its pages."""
        at = torch.arange(upto)
        self.pages.write(self.tables[text, at // PAGE].long(), at % PAGE, self.kv[text][:upto].transpose(1, 2))

    def attend(self, query: Tensor, text: int, position: int) -> Tensor:
        kv = self.kv[text][: position + 1].double()
        if self.kept is not None:
            small, scale = quantize(kv, self.kept)
            kv = small.float().double() * scale.double()
        return _exact(query, *kv.unbind(1), self.slopes, position)


def on_device(pages: PageLayer) -> PageLayer:
    """A copy of a layer, where kernels run."""
    numbers, *scales = [tensor.to(DEVICE, copy=True) for tensor in pages.tensors()]
    return PageLayer(numbers, scales[0] if scales else None, pages.kept)


def same(one: PageLayer, other: PageLayer) -> bool:
    """Whether two layers hold the same, poison included."""
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a.cpu().nan_to_num(7.0), b.cpu().nan_to_num(7.0)) for a, b in pairs)


def _decode(attention: Attention, texts: Texts, poison: float) -> None:
    """Each text's last token is new: attended, stored, and nothing else is touched."""
    _, _, heads, head_dim = texts.kv[0].shape
    dtype = texts.kv[0].dtype
    for text, length in enumerate(texts.lengths):
        texts.put(text, length - 1)
    query = texts.normal(len(texts.lengths), heads, head_dim).to(dtype)
    newest = torch.stack([kv[-1] for kv in texts.kv])  # [rows, 2, heads, head_dim]
    qkv = torch.stack([query, newest[:, 0], newest[:, 1]], 2).to(DEVICE)  # [rows, heads, 3, head_dim]
    pages, out = on_device(texts.pages), torch.full_like(query, poison, device=DEVICE)
    lengths = torch.tensor(texts.lengths, dtype=torch.int32, device=DEVICE)
    attention.decode(qkv, pages, texts.tables.to(DEVICE), lengths, texts.slopes.to(DEVICE), out)
    wanted = torch.stack([texts.attend(query[i], i, length - 1) for i, length in enumerate(texts.lengths)])
    assert (out.cpu().double() - wanted).abs().max() < TOLERANCE[dtype]
    for text, length in enumerate(texts.lengths):
        texts.put(text, length)
    assert same(pages, texts.pages)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim", "dtype", "kept"),
    [
        ([1], 1, 64, torch.float32, None),
        ([1, 2, PAGE - 1, PAGE, PAGE + 1], 3, 16, torch.float32, None),
        ([255, 256, 257, 258, 511], 2, 64, torch.float32, None),
        ([600, 37], 1, 128, torch.float32, None),
        ([33, 300], 2, 80, torch.float32, None),
        ([1, 40, 300], 2, 128, torch.bfloat16, None),
        ([17, 290], 2, 64, torch.float16, None),
        ([1, 2, PAGE - 1, PAGE, PAGE + 1], 3, 16, torch.float32, INT8),
        ([33, 256, 257, 300], 2, 80, torch.float32, FP8),
        ([1, 40, 300], 2, 128, torch.bfloat16, INT8),
        ([17, 290], 2, 64, torch.float16, FP8),
    ],
)
def test_decode_is_exact_and_touches_its_own_pages_alone(
    lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype, kept: torch.dtype | None, poison: float
) -> None:
    """At the borders of pages and of programs, for heads of any size, amid pages of NaN or infinity.

    Of keys and values in 8 bits: those that they were rounded to, the newest too.
    """
    _decode(triton_attention(), Texts(lengths, heads, head_dim, dtype, poison, kept), poison)


@pytest.mark.parametrize("kept", [None, INT8, FP8])
def test_a_row_does_not_depend_on_its_batch(kept: torch.dtype | None) -> None:
    """The same text gives the same bits alone, among others, and with a wider table."""
    attention = triton_attention()
    texts = Texts([300, 5, 90, 41], 2, 64, torch.float32, math.nan, kept)
    for text, length in enumerate(texts.lengths):
        texts.put(text, length - 1)
    qkv = texts.normal(4, 2, 3, 64)
    got = []
    for rows, width in ((slice(0, 4), texts.tables.shape[1]), (slice(0, 1), texts.tables.shape[1] + 40)):
        tables = torch.full((4, width), int(texts.tables.max()), dtype=torch.int32)
        tables[:, : texts.tables.shape[1]] = texts.tables
        out = torch.empty(4, 2, 64, device=DEVICE)
        lengths = torch.tensor(texts.lengths, dtype=torch.int32)
        here = [x.to(DEVICE) for x in (qkv[rows], tables[rows], lengths[rows], texts.slopes)]
        attention.decode(here[0], on_device(texts.pages), here[1], here[2], here[3], out[rows])
        got.append(out[0].cpu())
    assert torch.equal(*got)


@pytest.mark.parametrize(
    ("spans", "head_dim", "dtype", "kept"),
    [
        ([(0, 1)], 64, torch.float32, None),
        ([(0, 63), (16, 64), (37, 65)], 64, torch.float32, None),
        ([(250, 9), (0, 5)], 128, torch.float32, None),
        ([(3, 130)], 80, torch.float32, None),
        ([(0, 40), (100, 17)], 128, torch.float16, None),
        ([(0, 63), (16, 64), (37, 65)], 64, torch.float32, INT8),
        ([(3, 130)], 80, torch.float32, FP8),
        ([(0, 40), (100, 17)], 128, torch.float16, INT8),
    ],
)
@pytest.mark.parametrize("kind", ["triton", "torch"])
def test_prompt_chunks_are_exact(
    spans: list[tuple[int, int]],
    head_dim: int,
    dtype: torch.dtype,
    kept: torch.dtype | None,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks that start anywhere attend to what lies before them and to themselves, never to what comes after."""
    heads = 2
    monkeypatch.setattr("workers.engine.gpu.attention.SCORES", heads * 70 * 20)  # torch: some rows at a time
    attention: Attention = triton_attention() if kind == "triton" else TorchAttention()
    # torch reads what is not written yet and masks it: there zeros must lie.
    unwritten = math.nan if kind == "triton" else 0.0
    texts = Texts([start + count for start, count in spans], heads, head_dim, dtype, unwritten, kept)
    first = 2  # rows of others come before, and after
    known = []
    for start, count in spans:
        known.append((first, start, count))
        first += count
    query = texts.normal(first + 1, heads, head_dim).to(dtype)
    for text, length in enumerate(texts.lengths):
        texts.put(text, length)
    qkv = torch.stack([query, torch.full_like(query, math.nan), torch.full_like(query, math.nan)], 2)
    out = torch.full_like(query, math.nan, device=DEVICE)
    chunks = Chunks(texts.tables.to(DEVICE), torch.tensor(known, dtype=torch.int32, device=DEVICE), known)
    attention.prefill(qkv.to(DEVICE), on_device(texts.pages), chunks, texts.slopes.to(DEVICE), out)
    for text, (row, start, count) in enumerate(known):
        wanted = torch.stack([texts.attend(query[row + i], text, start + i) for i in range(count)])
        assert (out[row : row + count].cpu().double() - wanted).abs().max() < TOLERANCE[dtype]
    assert out[:2].isnan().all()
    assert out[-1:].isnan().all()


def test_attention_that_disagrees_or_does_not_run_is_not_used() -> None:
    """At load the kernels must give torch's numbers; on a device that can't run them, torch serves."""
    kernels: Any = type(triton_attention())
    dtypes = [torch.float32, torch.float16] if DEVICE.type == "cpu" else [*TOLERANCE]
    for dtype in dtypes:
        for kept in (None, INT8, FP8):
            assert mismatch(triton_attention(), DEVICE, 3, 64, dtype, kept) is None

    class Wrong(kernels):
        def decode(self, *args: Any) -> None:
            super().decode(*args)
            args[-1].mul_(1.1)

    class Forgets(kernels):
        def decode(self, qkv: Tensor, pages: PageLayer, *args: Any) -> None:
            super().decode(qkv, on_device(pages), *args)

    class WrongChunks(kernels):
        def prefill(self, *args: Any) -> None:
            super().prefill(*args)
            args[-1].mul_(1.1)

    class ForgetsChunks(kernels):
        def store(self, *args: Any) -> None: ...

    wrong = ((Wrong, "decode differs"), (Forgets, "decode does not store"), (WrongChunks, "prefill differs"))
    for kind, word in (*wrong, (ForgetsChunks, "prefill does not store")):
        for kept in (None, INT8):
            assert word in (mismatch(kind(), DEVICE, 3, 64, torch.float32, kept) or "")
    assert best_attention(torch.device("meta"), 3, 64, torch.float32).name == "torch"


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from workers.engine.gpu import eight_bit_kernels, kernels, triton_attention as sizes

numbers = dict(HEADS=32, HEAD_DIM=128, WIDTH=128, PAGE=16, SPLIT=sizes.SPLIT, BLOCK=sizes.BLOCK, QUERIES=sizes.QUERIES)
numbers |= dict(SPLITS=8, scales=None)
fp32 = dict.fromkeys(("slopes", "parts", "weights"), "*fp32")
ints = dict.fromkeys(("tables", "lengths", "spans"), "*i32") | dict.fromkeys(("page_of", "slot_of"), "*i64")
rest = dict(scale="fp32", table_stride="i32", length_stride="i32", splits="i32", values_at="i64")
plain = (kernels.decode_kernel, kernels.combine_kernel, kernels.prefill_kernel)
eight = (kernels.decode_kernel, kernels.prefill_kernel, eight_bit_kernels.store_kernel)
for capability, dtype in ((80, "*bf16"), (90, "*bf16"), (75, "*fp16")):
    for pages, chosen in ((dtype, plain), ("*i8", eight), ("*u8", eight)):
        types = {**fp32, **ints, **rest, **dict.fromkeys(("qkv", "out"), dtype), "pages": pages}
        types |= {"scales": "*fp32"} if chosen is eight else {}
        for kernel in chosen:
            signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
            constants = {**numbers, "CONVERTS_FP8": capability >= 89}
            constants = {name: constants[name] for name, kind in signature.items() if kind == "constexpr"}
            built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
            assert built.asm["cubin"] and built.metadata.shared <= 64 * 1024
            converts = "e4m3x2" in built.asm["ptx"]
            assert converts == (capability >= 89 and pages == "*u8" and kernel is not eight_bit_kernels.store_kernel)
print("compiled")
"""


def test_the_kernels_compile_for_gpus(tmp_path: Any) -> None:
    """Triton makes machine code of them for Turing, Ampere and Hopper, within the least of their shared memories."""
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=env, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
