"""Take all pictures of README and docs, of a farm that runs.

    python -m benchmarks.pictures [--jobs 600] [--out docs/pictures]

A farm of two tiny-bloom workers is started in a temporary folder and given the bundled prompts over and over. While it
works, ``farm top`` is drawn; one worker is killed with SIGKILL; throughput and queue of the whole run become a chart.
Then Flower and the playground are looked at in headless Chromium. The last line is JSON: what the run was and gave.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.pictures.chart import write_chart
from benchmarks.pictures.pages import write_pages
from benchmarks.pictures.run import run
from benchmarks.report import commit, machine
from tests.commands import running

WORKERS = 2
MOST_BYTES = 150_000


def main() -> None:
    """Run the farm, take the pictures, say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--jobs", type=int, default=600, help="jobs of the run that is charted")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="where the pictures go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"ENGINE__KIND": "bloom", "API__PORT": 0, "FLOWER__PORT": 0}
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "farm", "--workers", WORKERS, **settings) as up,
    ):
        seen = run(up, options.jobs, options.out / "top.svg")
        write_chart(seen, options.out / "kill.svg")
        write_pages(up, options.out, Path(folder))
    too_large = {path.name: path.stat().st_size for path in options.out.iterdir() if path.stat().st_size > MOST_BYTES}
    assert not too_large, f"larger than {MOST_BYTES:,} bytes: {too_large}"
    print(json.dumps({"commit": commit(), "machine": machine(), "workers": WORKERS, **seen.figures}))


if __name__ == "__main__":
    main()
