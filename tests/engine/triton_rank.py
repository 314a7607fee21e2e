"""A rank that attends by Triton's kernels on a CPU, for tests: ``python -m tests.engine.triton_rank --fd N``."""

from __future__ import annotations

from tests.engine.gpu import triton_attention
from workers.engine.tensor_parallel import member
from workers.engine.tensor_parallel.__main__ import main

if __name__ == "__main__":
    member.TorchAttention = type(triton_attention())  # type: ignore[misc, assignment]
    main()
