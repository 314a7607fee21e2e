"""Triton's kernels for tests: on a GPU where there is one, else by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from workers.engine.gpu.triton_attention import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if DEVICE.type == "cpu":
    # Triton asks when it is imported, which no module does before a test runs; conftest imports this one.
    os.environ["TRITON_INTERPRET"] = "1"


def triton_attention(**made: bool) -> TritonAttention:
    """The kernels. Skips without Triton, which is made for Linux alone."""
    pytest.importorskip("triton")
    from workers.engine.gpu.triton_attention import TritonAttention

    return TritonAttention(**made)
