"""The environment in which a worker's engine process computes, for benchmarks that compute in their own."""

from __future__ import annotations

import os
import sys
from typing import Final

from workers.visible_gpus import BUS_ORDER

ENGINE: Final = {"GOMP_SPINCOUNT": "1000", "CUDA_DEVICE_ORDER": BUS_ORDER}
"""As ``workers.engine.__main__`` sets it before torch is loaded: how often an idle thread looks before it sleeps, and
GPUs numbered as ``nvidia-smi`` numbers them."""


def enter(module: str) -> None:
    """Start this benchmark anew with what of ``ENGINE`` is not set: torch read its environment when it was loaded."""
    missing = {name: text for name, text in ENGINE.items() if name not in os.environ}
    if missing:
        os.execve(  # noqa: S606
            sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **missing}
        )
