"""``python -m api``, as ``farm api`` and ``farm up`` start it."""

from __future__ import annotations

from api.serve import main

if __name__ == "__main__":
    main()
