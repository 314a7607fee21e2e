"""What whoever waits for jobs is shown: the text alone, what it took, and how to come back to a job."""

from __future__ import annotations

import sys

from farm.cli.output import duration, note, printable, stdout
from farm.client import Farm
from farm.contracts import model_name
from farm.ledger.overview import overview
from farm.results import JobView


def print_text(view: JobView) -> None:
    """The text, and nothing beside it on stdout."""
    stdout().print(printable(view.text), markup=False, soft_wrap=True)


def sum_up(view: JobView) -> None:
    """What the text took, for a person."""
    if not sys.stderr.isatty():
        return
    tokens, total_s = view.usage.completion_tokens, view.timings.total_s
    resumed = f", {view.usage.resumed_tokens} of them resumed" if view.usage.resumed_tokens else ""
    note(f"{tokens} tokens{resumed} in {duration(total_s)} by {view.worker} ({view.finish_reason})\njob {view.id}")


def goes_on(job_id: str) -> str:
    """How to come back to a job; its id is whole on a line of 80 columns."""
    return (
        f"the job goes on:\n  farm wait {job_id}     waits for it\n  farm status {job_id}   shows it\n"
        f"  farm cancel {job_id}   ends it"
    )


def say_if_nobody_serves(farm: Farm, model: str | None) -> None:
    """A job may wait for a worker as long as it likes; the person who waits should know."""
    name = model_name(model or farm.settings.model.id)
    if overview(farm.ledger).live_slots(name) == 0:
        note(f"no worker serves {name} now; the job waits until one does (farm worker starts one)")
