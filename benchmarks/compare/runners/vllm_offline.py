"""vLLM's offline engine, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm import LLM, SamplingParams

from benchmarks.compare.contender import Generate, Generated, Options, Request


@contextmanager
def ready(folder: Path, options: Options) -> Iterator[Generate]:
    """``kv_gib``: memory for keys and values. ``context``: the longest sequence."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(options["kv_gib"]))
    context = int(options["context"])
    engine = LLM(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=context, max_num_seqs=64)

    def generate(requests: list[Request]) -> Generated:
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        params = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            for _, tokens in requests
        ]
        return Generated([list(one.outputs[0].token_ids) for one in engine.generate(prompts, params, use_tqdm=False)])

    generate([([5, 6, 7], 4)] * 8)
    yield generate
