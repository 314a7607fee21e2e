"""OpenAI's own client, as it comes, for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import openai
from openai.types import FileObject

Client = Callable[..., openai.OpenAI]


def upload(client: openai.OpenAI, lines: list[dict[str, Any]], name: str = "prompts.jsonl") -> FileObject:
    content = "".join(json.dumps(one) + "\n" for one in lines).encode()
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch")
