"""How the steps of a loaded model are run and sampled, whatever computes them."""

from __future__ import annotations

from typing import Protocol

from workers.engine.model import Result
from workers.engine.scheduler import Step


class Launcher(Protocol):
    """Runs steps in the order in which they are submitted."""

    @property
    def depth(self) -> int:
        """How many steps in flight keep all stages busy."""

    def submit(self, step: Step) -> None:
        """Begin the step that was just scheduled. What goes wrong is said when it is collected."""

    def collect(self) -> Result:
        """What came of the oldest step in flight. Raises what went wrong with it."""

    def drop(self) -> None:
        """Wait until nothing is in flight; results and errors are lost."""
