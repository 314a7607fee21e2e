"""Where the bundled tiny Bloom lives.

Owns the path of the model folder.  Importing this package must never load torch or read a file.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
"""Holds config.json, model.safetensors and the tokenizer's files; what `from_pretrained` takes."""

PROMPTS = FOLDER / "prompts.jsonl"
"""Demo prompts, one JSON object a line: custom_id, prompt, max_tokens."""
