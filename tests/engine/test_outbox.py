"""What waits to be reported, and for how long."""

from __future__ import annotations

import pytest

from workers.engine.outbox import Outbox
from workers.engine.protocol import BEAT_S, GATHER_S, Admitted, Emitted, Finished, Token

pytestmark = pytest.mark.fast


def emitted(id: str, *ids: int) -> Emitted:
    return Emitted(id, [Token(token, str(token)) for token in ids])


def test_tokens_of_a_job_are_gathered_in_order() -> None:
    """Steps' tokens come as one event per job, and a job's other events keep their place."""
    box = Outbox()
    box.add([Admitted("a", 3), emitted("a", 1), emitted("b", 7)])
    box.add([emitted("b", 8), emitted("a", 2), Finished("a", "length")])
    box.add([Admitted("a", 3), emitted("a", 9), emitted("b", 10)])
    assert box.take() == [
        Admitted("a", 3),
        emitted("a", 1, 2),
        emitted("b", 7, 8, 10),
        Finished("a", "length"),
        Admitted("a", 3),
        emitted("a", 9),
    ]
    assert box.take() == []


def test_tokens_wait_a_moment_and_answers_do_not() -> None:
    """With tokens alone it is due after GATHER_S, with any other event at once, with nothing after a beat."""
    box = Outbox()
    assert not box.is_due(BEAT_S / 2)
    assert box.is_due(BEAT_S)
    box.add([emitted("a", 1)])
    assert not box.is_due(GATHER_S / 2)
    assert box.is_due(GATHER_S)
    box.add([Finished("a", "stop")])
    assert box.is_due(0.0)
    box.take()
    assert not box.is_due(GATHER_S)


def test_nothing_is_said_of_a_job_that_was_forgotten() -> None:
    """Also when tokens of it come after others'; the others' stay."""
    box = Outbox()
    box.add([emitted("a", 1), emitted("b", 2)])
    box.forget("a")
    box.add([emitted("b", 3)])
    assert box.take() == [emitted("b", 2, 3)]
