"""A rank that finds no memory for larger steps, for tests: ``python -m tests.engine.scarce_rank --fd N``."""

from __future__ import annotations

from torch import Tensor

from workers.engine.batch import Batch
from workers.engine.layout import Layout
from workers.engine.tensor_parallel.__main__ import main
from workers.engine.tensor_parallel.member import Member

FULL = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
"""torch's own word for it."""
BEFORE, WITHIN = 34, 20
"""A step of more rows finds none before its first layer, or in its second."""

prepare = Member._prepare


def scarce(member: Member, layout: Layout) -> Batch:
    """What takes the place of ``Member._prepare``."""
    if len(layout.ids) > BEFORE:
        raise RuntimeError(FULL)
    batch = prepare(member, layout)
    attend = batch.attend

    def attends(layer: int, qkv: Tensor, out: Tensor) -> None:
        if layer == 1 and len(layout.ids) > WITHIN:
            raise RuntimeError(FULL)
        attend(layer, qkv, out)

    batch.attend = attends  # type: ignore[method-assign]
    return batch


if __name__ == "__main__":
    Member._prepare = scarce  # type: ignore[method-assign]
    main()
