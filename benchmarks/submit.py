"""Jobs accepted per second: ``farm.submit_many`` against Celery's ``send_task`` loop and kombu's ``producer.batch``.

All three put the same 200-character prompts on the same kind of server, each on an empty one. Submitting to the farm
also makes each job durable, readable and cancellable; a Celery message is only a message.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from benchmarks.report import finish
from farm import Farm
from farm.local.server import EmbeddedServer
from farm.settings import load_settings

REPEATS = 5
PROMPTS = [f"{i:06d} " + "a prompt of some length " * 8 for i in range(5_000)]


@contextmanager
def _server() -> Iterator[EmbeddedServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _rate(server: EmbeddedServer, send: Callable[[list[str]], object], prompts: list[str]) -> float:
    """Median prompts per second over some runs, each on an emptied server."""
    rates = []
    with redis.Redis.from_url(server.url) as client:
        for _ in range(REPEATS):
            client.flushall()
            send(prompts[:50])
            start = time.perf_counter()
            send(prompts)
            rates.append(len(prompts) / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    """Measure all three in one run."""
    with _server() as server:
        app = Celery("bench", broker=server.url, backend=server.url, set_as_current=False)
        app.conf.task_ignore_result = True

        def send_task_loop(prompts: list[str]) -> None:
            for prompt in prompts:
                app.send_task("farm.generate", kwargs={"prompt": prompt, "max_tokens": 8}, queue="bench")

        def kombu_batch(prompts: list[str]) -> None:
            pool: Any = app.producer_pool  # its stubs lack batch
            with pool.acquire(block=True) as producer, producer.batch(max_size=256):
                for prompt in prompts:
                    app.send_task(
                        "farm.generate", kwargs={"prompt": prompt, "max_tokens": 8}, queue="bench", producer=producer
                    )

        with Farm(load_settings(redis={"url": server.url})) as farm:
            ours = _rate(server, lambda prompts: farm.submit_many(prompts, max_tokens=8), PROMPTS)
        loop = _rate(server, send_task_loop, PROMPTS[:1000])
        batch = _rate(server, kombu_batch, PROMPTS[:2000])
        app.close()
    finish(
        "submit",
        [
            ("farm.submit_many", f"{ours:10,.0f} jobs/s"),
            ("celery send_task loop", f"{loop:10,.0f} messages/s  (farm is {ours / loop:.1f}x; goal 5x)"),
            ("kombu producer.batch", f"{batch:10,.0f} messages/s  (farm is {ours / batch:.1f}x; goal 1.5x)"),
        ],
        {
            "prompt_chars": len(PROMPTS[0]),
            "farm_jobs_s": ours,
            "send_task_s": loop,
            "kombu_batch_s": batch,
            "times_send_task": ours / loop,
            "times_kombu_batch": ours / batch,
        },
    )


if __name__ == "__main__":
    main()
