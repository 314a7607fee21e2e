"""Cut a row of units into one run per device, in order, at the least cost. Knows neither models nor bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

Cost = Callable[[int, int, int], float]
"""What device, start and stop cost: the units from start up to stop on that device. inf forbids it."""


def cheapest_cut(
    units: int, devices: int, cost: Cost, join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The least joined cost of giving every unit to a device, and where each device's run stops.

    A run may be empty, which costs what ``cost`` says. ``join`` is max or addition. Exact: dynamic programming over
    (device, stop), devices * units^2 / 2 calls of ``cost``. The cost is inf when every cut is forbidden.
    """
    best = [0.0] + [inf] * units  # cost of the first `stop` units on the devices so far
    froms: list[list[int]] = []
    for device in range(devices):
        longer, origin = [inf] * (units + 1), [0] * (units + 1)
        for start, so_far in enumerate(best):
            if so_far == inf:
                continue
            for stop in range(start, units + 1):
                joined = join(so_far, cost(device, start, stop))
                if joined <= longer[stop]:  # of equals the latest start: idle devices are the last ones
                    longer[stop], origin[stop] = joined, start
        best = longer
        froms.append(origin)
    stops = [units]
    for origin in reversed(froms[1:]):
        stops.append(origin[stops[-1]])
    return best[units], stops[::-1]
