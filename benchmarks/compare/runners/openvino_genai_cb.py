"""OpenVINO GenAI's continuous batching, paged attention and all; its interpreter needs nothing of ours.

The checkpoint is written as OpenVINO's own format first, in another process, so that it counts neither in time nor in
memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.compare.contender import Generate, Generated, Options, Request


@contextmanager
def ready(folder: Path, options: Options) -> Iterator[Generate]:
    """``int8``: weights of 8 bits, computed as the library sees fit. ``kv_gib``: memory for keys and values."""
    int8 = bool(options.get("int8"))
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = int(options["kv_gib"])
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 512
    scheduler.enable_prefix_caching = False  # every run would find its prompts there
    # Left to itself it computes in bf16 where the processor can, and keeps keys and values in 8 bits.
    properties = {"INFERENCE_PRECISION_HINT": "f32"} | ({} if int8 else {"KV_CACHE_PRECISION": "f32"})
    with tempfile.TemporaryDirectory() as target:
        convert = ["-m", "benchmarks.compare.openvino_ir", str(folder), target, *(["--int8"] if int8 else [])]
        subprocess.run([sys.executable, *convert], check=True, stdin=subprocess.DEVNULL)
        pipeline = genai.ContinuousBatchingPipeline(target, scheduler, "CPU", properties)

        def generate(requests: list[Request]) -> Generated:
            prompts = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt, _ in requests]
            results = pipeline.generate(prompts, [_config(tokens) for _, tokens in requests])
            return Generated([list(result.m_generation_ids[0]) for result in results])

        generate([([5, 6, 7], 4)] * 8)
        yield generate


def _config(tokens: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    return config
