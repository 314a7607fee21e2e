"""Names for leading blocks of tokens, so that equal ones are found and computed once.

A name is a hash of everything up to the block's end, and of the scope: texts of different tenants never share a block,
since the time that a shared one saves would tell what the other one asked.
"""

from __future__ import annotations

import hashlib
from array import array

from workers.engine.sequence import Sequence

_NAME_BYTES = 16
"""Wide enough that no two texts ever get one name by chance."""


def block_names(sequence: Sequence, size: int, tokens: int) -> list[bytes]:
    """The names of the full blocks of ``size`` within its first ``tokens`` tokens. Computed once, kept with it."""
    names = sequence.block_names
    for start in range(len(names) * size, tokens - size + 1, size):
        before = names[-1] if names else sequence.scope.encode()
        block = array("I", sequence.tokens[start : start + size])
        names.append(hashlib.blake2b(before + block.tobytes(), digest_size=_NAME_BYTES).digest())
    return names[: tokens // size]
