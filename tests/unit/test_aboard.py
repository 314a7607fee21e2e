"""What a worker measures of a job that is aboard."""

from __future__ import annotations

import contextlib
import threading

import pytest

from farm.contracts import JobState, Request
from farm.ledger.attempts import Claim
from workers.aboard import Aboard, Ending
from workers.engine.protocol import Failed, Finished

pytestmark = pytest.mark.fast


def aboard(received: int) -> Aboard:
    """A job that the engine gave so many tokens."""
    claim = Claim("job", "nonce", 1, 0, 0, Request(prompt="Once"), None, False, "ann", 0.0, False, [])
    return Aboard(claim, [], 0, received=received)


@pytest.mark.parametrize(
    ("received", "final", "mean_s"),
    [
        (5, Finished("job", "length", decode_s=0.4), 0.1),
        (5, Finished("job", "stop", decode_s=0.4), 0.1),
        (1, Finished("job", "length"), None),
        (0, Finished("job", "stop"), None),
        (5, Failed("job", "not_finite", "no number"), None),
    ],
)
def test_the_time_of_a_token_is_that_between_two(received: int, final: Finished | Failed, mean_s: float | None) -> None:
    """From one token to the next, so a single token has none."""
    running = aboard(received)
    running.settle(final=final)
    assert running.time_per_output_token_s == (None if mean_s is None else pytest.approx(mean_s))


class Crowded(threading.Event):
    """An event that two threads look at together, if they can."""

    def __init__(self) -> None:
        super().__init__()
        self._together = threading.Barrier(2)

    def is_set(self) -> bool:
        seen = super().is_set()
        with contextlib.suppress(threading.BrokenBarrierError):
            self._together.wait(0.2)
        return seen


def test_one_alone_decides_how_a_job_ends() -> None:
    """The engine's reader, the beat and a drain may end a job at once: the first decides, and the others hear so."""
    running = aboard(0)
    running.settled = Crowded()
    final, ending = Finished("job", "length"), Ending(JobState.QUEUED, "drain")
    won: list[bool] = []
    threads = [
        threading.Thread(target=lambda: won.append(running.settle(final=final))),
        threading.Thread(target=lambda: won.append(running.settle(ending=ending))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False, True]
    assert (running.final is None) != (running.ending is None)
