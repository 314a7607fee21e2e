"""The number of what the farm writes, and how versions of it live side by side on one server.

A version reads whatever an earlier one wrote. What it writes, the version before it can read: a release that needs a
new schema reads it first, and the next one writes it. So one release can be rolled out, and back, under load.

The number stands in each job, in each message and, the highest that any worker wrote, in the ledger. A worker leaves a
job or a message of a newer schema than it reads to others; in a ledger of a newer one it does not start.
``scripts/shared/base.lua`` has the same numbers, since scripts compare them.
"""

from __future__ import annotations

WRITES = 2
"""The schema of what this version writes. 1: jobs had no number, nor the revision that their tokens are of."""
READS = 2
"""The newest schema that this version reads; WRITES, or one more."""
FIRST = 1
"""What has no number is of this one."""
