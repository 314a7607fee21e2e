"""What a worker measures of a job that is aboard."""

from __future__ import annotations

import pytest

from farm.contracts import Request
from farm.ledger.attempts import Claim
from workers.aboard import Aboard
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
