"""What a worker measures of a job that is aboard."""

from __future__ import annotations

from typing import Any

import pytest

from farm.contracts import Request
from farm.ledger.attempts import Claim
from workers.aboard import Aboard
from workers.engine.protocol import Failed, Finished

pytestmark = pytest.mark.fast


def aboard(received: int, **request: Any) -> Aboard:
    """A job that the engine gave so many tokens."""
    asked = Request(prompt="Once", **request)
    claim = Claim("job", "nonce", 1, 0, 0, asked, None, False, "ann", 0.0, False, [])
    return Aboard(claim, [], 0, received=received)


@pytest.mark.parametrize(
    ("received", "final", "request_", "mean_s"),
    [
        (5, Finished("job", "length", decode_s=0.4), {}, 0.1),
        (4, Finished("job", "stop", decode_s=0.4), {}, 0.1),
        (5, Finished("job", "stop", decode_s=0.4), {"stop": ["."]}, 0.1),
        (1, Finished("job", "stop", decode_s=0.1), {}, 0.1),
        (1, Finished("job", "length"), {}, None),
        (0, Finished("job", "stop"), {}, None),
        (5, Failed("job", "not_finite", "no number"), {}, None),
    ],
)
def test_the_time_of_a_token_is_told_from_the_steps_that_were_taken(
    received: int, final: Finished | Failed, request_: dict[str, Any], mean_s: float | None
) -> None:
    """From one token to the next, the one that ends a text among them; a single token has no time between."""
    running = aboard(received, **request_)
    running.settle(final=final)
    assert running.time_per_output_token_s == (None if mean_s is None else pytest.approx(mean_s))
