"""CUDA graphs: a stage's decode step of one bucket, captured once and replayed. Of use on CUDA devices alone."""

from __future__ import annotations

from collections.abc import Callable

import torch


def capture(
    compute: Callable[[int], None], buckets: list[int], device: torch.device
) -> dict[int, torch.cuda.CUDAGraph]:
    """Capture ``compute`` for each bucket. It must read and write static buffers only, and wait for nothing.

    The largest goes first: the others then fit into the memory that it left in the graphs' pool. Each runs once before,
    so that kernels are compiled and libraries have their workspaces.
    """
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    pool = None
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
        for bucket in sorted(buckets, reverse=True):
            with torch.cuda.stream(stream):
                compute(bucket)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                compute(bucket)
            pool = graph.pool()
            graphs[bucket] = graph
    return graphs
