"""From a plan over ranks to the one shard that they are."""

from __future__ import annotations

from workers.engine.checkpoint import Checkpoint
from workers.engine.shard_plan import ShardPlan
from workers.engine.tensor_parallel.group import backend_of
from workers.engine.tensor_parallel.ranks import Ranks
from workers.engine.tensor_parallel.wire import Setup


def load_ranks(
    checkpoint: Checkpoint,
    plan: ShardPlan,
    *,
    is_paged: bool,
    kv_tokens: int,
    slots: int,
    context: int,
    native: bool,
    threads: int,
    timeout_s: float,
) -> Ranks:
    """Start and load the plan's ranks. ``threads`` are shared out. Raises ModelRefused for damaged weights."""
    devices = [stage.device for stage in plan.stages]
    return Ranks(
        checkpoint,
        [
            Setup(
                folder=str(checkpoint.folder),
                rank=number,
                ranks=plan.ranks,
                device=device.name,
                dtype=plan.dtype,
                is_paged=is_paged,
                kv_tokens=kv_tokens,
                slots=slots,
                context=context,
                native=native,
                threads=max(1, threads // plan.ranks),
                backend=backend_of(devices),
                meeting="",
                timeout_s=timeout_s,
            )
            for number, device in enumerate(devices)
        ],
    )
