"""The KV cache: who holds which part of it (managers, which know no tensors), and the buffers (which know no jobs).

Two layouts behind one interface: ``contiguous`` blocks for CPUs, ``paged`` blocks for GPUs.
"""
