"""``python -m grafana``: write everything that is generated. tests/monitoring see that it is current."""

from __future__ import annotations

from grafana.writing import files

for path, text in files().items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
