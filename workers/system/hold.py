"""The hold that a thread has on a batch: when to let go of it, and patience with the server for as long as it lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from farm.errors import FarmError, QueueFull, QuotaExceeded, ServerFull
from farm.ledger.driving import Drive, Ending, LeaseLost
from farm.patience import FIRST_PAUSE_S, longer

T = TypeVar("T")


class TurnOver(Exception):
    """The batch is to be left where it stands, for another turn."""


class Hold:
    """One thread's hold on one batch."""

    def __init__(self, drive: Drive, stopped: threading.Event, must_yield: Callable[[], bool]) -> None:
        """stopped: set when the worker ends. must_yield: whether another batch should have a turn."""
        self._drive = drive
        self._stopped = stopped
        self._must_yield = must_yield

    def check(self) -> None:
        """Raise LeaseLost or TurnOver when this thread is to leave the batch."""
        self.check_lease()
        if self._stopped.is_set() or self._must_yield():
            raise TurnOver

    def check_lease(self) -> None:
        """Raise LeaseLost when somebody else has the batch."""
        if self._drive.is_lost:
            raise LeaseLost

    def ending(self) -> Ending | None:
        """What ends the batch before all its lines are answered."""
        if self._drive.status == "cancelling":
            return "cancelled"
        return "expired" if self._drive.is_overdue else None

    def patiently(self, call: Callable[[], T]) -> T:
        """Make a call that may be made twice until the server answers, for as long as the batch is ours.

        Raises what waiting for the server does not mend, a full queue among it, and LeaseLost.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except FarmError as error:
                if not error.retryable or isinstance(error, QuotaExceeded | QueueFull | ServerFull):
                    raise
            if self._drive.is_lost or self._stopped.wait(pause_s):
                raise LeaseLost
            pause_s = longer(pause_s)
