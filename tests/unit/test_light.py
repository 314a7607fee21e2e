"""What importing the client costs."""

from __future__ import annotations

import subprocess
import sys


def test_the_client_loads_neither_celery_nor_a_model_library() -> None:
    """Producers and scripts start fast: the queue's and the models' libraries stay unloaded until needed."""
    heavy = {"celery", "kombu", "torch", "transformers", "tokenizers", "numpy", "typer", "sqlite3", "farm.local.stack"}
    code = (
        f"import sys, farm.client, farm.aio; found = {heavy!r} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bare = "import sys, farm; sys.exit('redis' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", bare], check=False).returncode == 0


def test_the_api_loads_neither_celery_nor_a_model_library() -> None:
    """A process that answers HTTP is small: it talks to the ledger, and to nothing behind it."""
    heavy = {"celery", "kombu", "torch", "transformers", "tokenizers", "numpy", "workers"}
    code = f"import sys, api.serve; found = {heavy!r} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
