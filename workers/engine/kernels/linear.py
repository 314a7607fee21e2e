"""Linear layers with weights packed once, when loaded.

torch's own GEMM packs the weight on every call and reaches a fraction of the machine at decode's few rows. oneDNN and
MKL take a packed weight through private operators, so each is tried at load: it must agree with ``F.linear`` and be
faster. On GPUs so is the operator that fuses GELU with the product. int8 is asked for, never chosen: it changes the
numbers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.kernels.int8 import AddTo, Apply, gelu, int8_linear

PROBE_ROWS = 16
"""Rows of the probe: a typical number of running sequences."""
_PROBE_OUT = 4096
_PROBE_CALLS = 5


class Linear:
    """``x @ weight.T + bias`` with a packed weight, and the same with GELU or a residual fused in.

    weight: [out, in]; bias: [out] or None.  Inputs are [rows, in], outputs [rows, out], of the weight's dtype.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, backend: str | None = None, quantization: str | None = None
    ) -> None:
        """Pack the weight for ``backend``, by default the fastest that gives the right numbers here.

        quantization: None or int8: weights per output and inputs per row in 127ths of the largest, products exact, so
        that a row's result depends on no other row.
        """
        self.backend = quantization or backend or fastest_backend(weight)
        self.apply, self.apply_gelu, self.apply_add = _BACKENDS[self.backend](weight, bias)


def fastest_backend(weight: Tensor) -> str:
    """The quickest of the backends that agree with ``F.linear`` for weights of this shape; probed once per shape."""
    return _probe(min(weight.shape[0], _PROBE_OUT), weight.shape[1], weight.dtype, weight.device)


@functools.cache
def _probe(outs: int, ins: int, dtype: torch.dtype, device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)
    shapes = ((outs, ins), (outs,), (PROBE_ROWS, ins))
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in shapes)
    # Outputs of about 1, where one GELU differs from another.
    weight, bias, x = (tensor.to(device, dtype) for tensor in (weight / ins**0.5, bias, x))
    if device.type != "cpu":
        # Not timed: it is the same product, and one pass over its rows less.
        return "epilogue" if agrees("epilogue", weight, bias, x) else "torch"
    best, best_s = "torch", _time(lambda: functional.linear(x, weight, bias))
    for name in ("onednn", "mkl"):
        if not agrees(name, weight, bias, x):
            continue
        if (took_s := _time(functools.partial(Linear(weight, bias, name).apply, x))) < best_s:
            best, best_s = name, took_s
    return best


def agrees(backend: str, weight: Tensor, bias: Tensor, x: Tensor) -> bool:
    """Whether a backend gives the numbers of ``F.linear`` and of Bloom's GELU here; shapes as in ``Linear``.

    Outputs should be about 1. In 16 bits one GELU can't be told from the other, and need not be.
    """
    wanted = functional.linear(x, weight, bias)
    bound = _tolerance(weight.dtype)
    try:
        layer = Linear(weight, bias, backend)
        return all(
            torch.allclose(got, want, rtol=bound, atol=bound)
            for got, want in (
                (layer.apply(x), wanted),
                (layer.apply_gelu(x), gelu(wanted)),
                (layer.apply_add(x, wanted), wanted + wanted),
            )
        )
    except (RuntimeError, AttributeError, NotImplementedError):  # this build of torch lacks it, or for this dtype
        return False


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype is torch.float32 else 2e-2


def _time(call: Callable[[], Any]) -> float:
    """The least of some calls, in seconds: noise only adds."""
    took_s = []
    for _ in range(_PROBE_CALLS + 1):
        started = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - started)
    return min(took_s[1:])


def _torch(weight: Tensor, bias: Tensor | None) -> tuple[Apply, Apply, AddTo]:
    weight = weight.contiguous()
    return (
        lambda x: functional.linear(x, weight, bias),
        lambda x: gelu(functional.linear(x, weight, bias)),
        lambda x, residual: functional.linear(x, weight, bias) + residual,
    )


def _epilogue(weight: Tensor, bias: Tensor | None) -> tuple[Apply, Apply, AddTo]:
    """As ``torch``, with GELU by the kernel of the product and its bias (cuBLASLt). On a CPU it is another GELU."""
    apply, plain_gelu, apply_add = _torch(weight, bias)
    if bias is None:
        return apply, plain_gelu, apply_add
    columns = weight.contiguous().t()
    return apply, lambda x: torch._addmm_activation(bias, x, columns, use_gelu=True), apply_add


def _onednn(weight: Tensor, bias: Tensor | None) -> tuple[Apply, Apply, AddTo]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PROBE_ROWS)
    pointwise = torch.ops.mkldnn._linear_pointwise.default
    binary = torch.ops.mkldnn._linear_pointwise.binary
    return (
        lambda x: pointwise(x, packed, bias, "none", [], ""),
        lambda x: pointwise(x, packed, bias, "gelu", [], "tanh"),
        lambda x, residual: binary(x, residual, packed, bias, "add"),
    )


def _mkl(weight: Tensor, bias: Tensor | None) -> tuple[Apply, Apply, AddTo]:
    weight = weight.contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, PROBE_ROWS)
    linear = torch.ops.mkl._mkl_linear.default
    # The row count makes it use the packed weight; with another one it falls back to the plain, slow path.
    return (
        lambda x: linear(x, packed, weight, bias, x.shape[0]),
        lambda x: gelu(linear(x, packed, weight, bias, x.shape[0])),
        lambda x, residual: linear(x, packed, weight, bias, x.shape[0]) + residual,
    )


_BACKENDS: dict[str, Callable[[Tensor, Tensor | None], tuple[Apply, Apply, AddTo]]] = {
    "torch": _torch,
    "epilogue": _epilogue,
    "onednn": _onednn,
    "mkl": _mkl,
    "int8": int8_linear,
}
