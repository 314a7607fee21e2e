"""Which errors say that there was no memory: torch raises a RuntimeError for it, Python a MemoryError."""

from __future__ import annotations

_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "STATUS_ALLOC_FAILED")
"""What the allocators of CPUs, of CUDA (torch.OutOfMemoryError, too) and of its libraries say."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
    )
