"""What ``import farm`` costs: seconds in a fresh interpreter, and that no heavy library comes along."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.report import finish

REPEATS = 15
LIMIT_S = 0.25
CODE = """
import time
start = time.perf_counter()
import {module}
took = time.perf_counter() - start
import sys
heavy = {{"torch", "celery", "transformers", "redis", "pydantic"}} & sys.modules.keys()
print(took, *sorted(heavy))
"""


def measure(module: str) -> tuple[float, set[str]]:
    """Median seconds of importing ``module``, and the heavy libraries that it loads."""
    times, heavy = [], set()
    for _ in range(REPEATS):
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True
        )
        seconds, *loaded = done.stdout.split()
        times.append(float(seconds))
        heavy |= set(loaded)
    return statistics.median(times), heavy


def main() -> None:
    """Measure the farm, its client, and Celery as the baseline."""
    farm_s, heavy = measure("farm")
    client_s, client_heavy = measure("farm.client")
    celery_s, _ = measure("celery.app.base")
    assert not heavy & {"torch", "celery", "transformers"}, heavy
    finish(
        "imports",
        [
            ("import farm", f"{farm_s * 1e3:.1f} ms (limit {LIMIT_S * 1e3:.0f} ms); heavy libraries: {sorted(heavy)}"),
            ("farm.client", f"{client_s * 1e3:.1f} ms; heavy libraries: {sorted(client_heavy)}"),
            ("celery, for comparison", f"{celery_s * 1e3:.1f} ms"),
        ],
        {"farm_s": farm_s, "client_s": client_s, "celery_s": celery_s, "within_limit": farm_s < LIMIT_S},
    )


if __name__ == "__main__":
    main()
