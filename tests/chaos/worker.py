"""A worker of the farm under test: ``farm worker`` with the engine that stamps its tokens."""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.engine_process import EngineProcess

if __name__ == "__main__":
    EngineProcess.program = (sys.executable, "-m", "tests.chaos.engine")
    main()
