"""Our farm end to end: Python client, server, keeper, Celery, engine process; one worker."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare.contender import Generate, Generated, Options, Request
from farm import Farm
from farm.local.stack import Stack
from farm.settings import load_settings

START_S = 300.0
WARM_UP = 64
"""Jobs before the first that counts: every thread of the worker has had one then."""


@contextmanager
def ready(folder: Path, _: Options) -> Iterator[Generate]:
    """Default settings, but for those that the environment brings."""
    with tempfile.TemporaryDirectory() as state:
        settings = load_settings(
            model={"id": str(folder), "dtype": "float32"}, local={"state_dir": state}, logs={"level": "WARNING"}
        )
        with Stack(settings, workers=1, flower=False) as stack:
            assert stack.wait_ready(START_S), "the farm was asked to stop"
            with Farm(stack.farm_settings) as farm:

                def generate(requests: list[Request]) -> Generated:
                    prompts = [
                        {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "return_token_ids": True}
                        for prompt, tokens in requests
                    ]
                    answers = farm.map(prompts, window=len(prompts))
                    return Generated([list(answer.token_ids or []) for answer in answers])

                generate([([5, 6, 7], 4)] * WARM_UP)
                yield generate
