"""What a worker's exit code says."""

from __future__ import annotations

EXIT_REFUSED = 78
"""EX_CONFIG: settings or model are refused, and starting again would not help."""
