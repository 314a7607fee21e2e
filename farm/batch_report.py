"""How far a batch is: what ``run_batch`` returns, and tells meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchReport:
    """How far a batch is, in lines that are not blank. ``total`` is None where counting would take too long.

    skipped: lines that an earlier run answered, failed_before of them with an error. passing: lines that failed, now or
    before, with an error that may not come again.
    found_tokens: those of completion_tokens that were generated before this run, in jobs that it took up again.
    """

    total: int | None
    read: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    failed_before: int = 0
    passing: int = 0
    in_flight: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    found_tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def done(self) -> int:
        """Lines that have their answer, from this run or an earlier one."""
        return self.succeeded + self.failed + self.skipped

    @property
    def new_tokens(self) -> int:
        """Tokens of this run's completions that were generated while it ran."""
        return self.completion_tokens - self.found_tokens
