"""``python -m api``, as ``farm api`` and ``farm up`` start it."""

from __future__ import annotations

from api.serve import main
from farm.no_arguments import take_none

if __name__ == "__main__":
    take_none("api", "farm api")
    main()
