"""Calls for many requests at once: who shares a call, who hears what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from api.batching import Batcher

pytestmark = pytest.mark.fast


class Ledger:
    """Something that is called, one call at a time, and can be held up."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.is_free = threading.Event()
        self.is_free.set()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.calls.append(items)
        assert self.is_free.wait(10)
        if 666 in items:
            raise RuntimeError("all of it")
        return [ValueError(item) if item < 0 else 10 * item for item in items]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def ask(ledger: Ledger) -> Iterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(ledger, most=5)
    yield batcher
    ledger.is_free.set()
    batcher.close()


async def test_one_goes_at_once_and_the_next_together(ledger: Ledger, ask: Batcher[int, int]) -> None:
    """While a call is out, all who come wait for the one after it, up to its size; each gets its own answer."""
    ledger.is_free.clear()
    first = asyncio.create_task(ask(1))
    while not ledger.calls:
        await asyncio.sleep(0)
    others = [asyncio.create_task(ask(number)) for number in range(2, 10)]
    await asyncio.sleep(0)
    ledger.is_free.set()
    assert await first == 10
    assert await asyncio.gather(*others) == [10 * number for number in range(2, 10)]
    assert ledger.calls == [[1], [2, 3, 4, 5, 6], [7, 8, 9]]


async def test_an_error_is_its_items_own(ledger: Ledger, ask: Batcher[int, int]) -> None:
    """A refused item spoils none of its neighbours; a call that fails fails for all of them, and the next one works."""
    answers = await asyncio.gather(ask(1), ask(-2), ask(3), return_exceptions=True)
    assert (answers[0], type(answers[1]), answers[2]) == (10, ValueError, 30)
    failed = await asyncio.gather(ask(666), ask(1), return_exceptions=True)
    assert [type(answer) for answer in failed] == [RuntimeError, RuntimeError]
    assert await ask(4) == 40
    assert len(ledger.calls) == 3


async def test_who_goes_away_is_left_out(ledger: Ledger, ask: Batcher[int, int]) -> None:
    """A request that ends while it waits is not asked for, and takes no answer from the others."""
    ledger.is_free.clear()
    first = asyncio.create_task(ask(1))
    while not ledger.calls:
        await asyncio.sleep(0)
    gone, kept = asyncio.create_task(ask(2)), asyncio.create_task(ask(3))
    await asyncio.sleep(0)
    gone.cancel()
    first.cancel()
    await asyncio.sleep(0)
    ledger.is_free.set()
    assert await kept == 30
    assert ledger.calls == [[1], [3]]
    assert await ask(4) == 40
