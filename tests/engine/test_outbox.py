"""What waits to be reported, and for how long."""

from __future__ import annotations

import pytest

from workers.engine.outbox import Outbox
from workers.engine.protocol import BEAT_S, Admitted, Emitted, Failed, Finished, Token

pytestmark = pytest.mark.fast

GATHER_S = 0.08


def emitted(id: str, *ids: int) -> Emitted:
    return Emitted(id, [Token(token, str(token)) for token in ids])


def test_tokens_of_a_job_are_gathered_in_order() -> None:
    """Steps' tokens come as one event per job, and a job's other events keep their place."""
    box = Outbox(GATHER_S)
    box.add([Admitted("a", 3), emitted("a", 1), emitted("b", 7)])
    box.add([emitted("b", 8), emitted("a", 2), Finished("a", "length")])
    box.add([Admitted("a", 3), emitted("a", 9), emitted("b", 10)])
    assert box.tokens == 6
    assert box.take() == [
        Admitted("a", 3),
        emitted("a", 1, 2),
        Finished("a", "length"),
        Admitted("a", 3),
        emitted("a", 9),
        emitted("b", 7, 8, 10),
    ]
    assert box.take() == []
    assert box.tokens == 0


def test_tokens_wait_for_others() -> None:
    """With anything to tell it is due after the time to gather, with nothing after a beat."""
    box = Outbox(GATHER_S)
    assert not box.is_due(BEAT_S / 2)
    assert box.is_due(BEAT_S)
    box.add([emitted("a", 1)])
    assert not box.is_due(GATHER_S / 2)
    assert box.is_due(GATHER_S)
    box.take()
    assert not box.is_due(GATHER_S)


def test_tokens_wait_no_longer_than_a_beat() -> None:
    """However long they may wait to be written: an engine that says nothing for longer passes for one that hangs."""
    box = Outbox(10 * BEAT_S)
    box.add([emitted("a", 1)])
    assert not box.is_due(BEAT_S / 2)
    assert box.is_due(BEAT_S)


def test_what_ends_goes_at_once_and_alone() -> None:
    """A job's end takes along all that was said of it, and leaves other jobs' tokens to wait."""
    box = Outbox(GATHER_S)
    box.add([Admitted("a", 3), emitted("b", 7), emitted("a", 1)])
    assert not box.has_ends
    box.add([emitted("b", 8), Finished("a", "length"), Failed("c", "too_long", "why")])
    assert box.has_ends
    assert box.take_ends() == [
        Admitted("a", 3),
        emitted("a", 1),
        Finished("a", "length"),
        Failed("c", "too_long", "why"),
    ]
    assert not box.has_ends
    assert box.tokens == 2
    assert box.take() == [emitted("b", 7, 8)]


def test_nothing_is_said_of_a_job_that_was_forgotten() -> None:
    """Also when tokens of it come after others', and when it had ended; the others' stay."""
    box = Outbox(GATHER_S)
    box.add([emitted("a", 1), emitted("b", 2), Finished("a", "length")])
    box.forget("a")
    assert not box.has_ends
    box.add([emitted("b", 3)])
    assert box.take() == [emitted("b", 2, 3)]
