"""``farm submit`` and ``farm cancel``: one prompt at a time, from a terminal or a script."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from farm.cli.exits import FAILED, INTERRUPTED
from farm.cli.help import Command, commands, examples
from farm.cli.options import QUEUEING, Json, Tenant, reachable_settings
from farm.cli.output import duration, emit, note, printable, stdout
from farm.cli.request_options import request_options, warn_of_webhook
from farm.client import Farm
from farm.contracts import JobState, model_name
from farm.errors import InvalidRequest, JobNotFound, JobNotSucceeded
from farm.job import Job
from farm.ledger.overview import overview
from farm.results import JobView

OUTPUT = "What to print"
app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        'farm submit "Once upon a time"',
        'farm submit "Once upon a time" --stream --temperature 0.8 --seed 7',
        "cat prompt.txt | farm submit - --max-tokens 200 > story.txt",
        'id=$(farm submit "A goat" --no-wait) && farm status $id',
    ),
)
@request_options
def submit(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input, less its last newline."),
    ],
    params: dict[str, Any],
    tenant: Tenant = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The same key and prompt again give the same job, not another.",
            rich_help_panel=QUEUEING,
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the text as it is generated.", rich_help_panel=OUTPUT)
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Print the job's id and end; farm status ID has the answer.", rich_help_panel=OUTPUT
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Wait no longer than this; the job runs on.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask for the completion of a prompt.

    Waits for it and prints it. If you stop waiting (Ctrl-C), the job goes on.
    """
    if stream and no_wait:
        raise InvalidRequest("--stream", "waits for the text, so it does not go with --no-wait; leave one out")
    if prompt == "-":
        prompt = _standard_input()
    settings = reachable_settings()
    warn_of_webhook(settings, params)
    with Farm(settings, tenant=tenant) as farm:
        job = farm.submit(prompt, idempotency_key=idempotency_key, **params)
        if no_wait:
            emit(job.status().to_dict()) if as_json else sys.stdout.write(job.id + "\n")
            return
        try:
            _say_if_nobody_serves(farm, params.get("model"))
            if stream:
                _stream(job, prompt, as_json)
            else:
                _wait(job, prompt, timeout, as_json)
        except KeyboardInterrupt:
            note(f"\nstopped waiting; {_goes_on(job)}")
            raise typer.Exit(INTERRUPTED) from None
        except TimeoutError:
            trouble = f" ({farm.reader.trouble})" if farm.reader.trouble else ""
            within = "" if timeout is None else f" within {timeout:g} s"
            note(f"no answer{within}{trouble}; {_goes_on(job)}")
            if as_json:
                emit(job.status().to_dict())
            raise typer.Exit(FAILED) from None
        except JobNotSucceeded as error:
            if as_json and error.job is not None:
                emit(error.job.to_dict())
            elif error.job is not None and error.job.text and not stream:
                stdout().print(printable(error.job.text), markup=False, soft_wrap=True)
            raise


@app.command(
    cls=Command,
    epilog=examples("farm cancel 0192f0c1-…", "farm submit … --no-wait | xargs farm cancel"),
)
def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.", show_default=False)],
    as_json: Json = False,
) -> None:
    """End jobs that have not ended.

    A running one stops at its next token; what it generated is kept. Fails if a job is unknown or had ended otherwise.
    """
    with Farm(reachable_settings()) as farm:
        states = farm.ledger.cancel(jobs)
        all_cancelled = True
        for job_id, state in zip(jobs, states, strict=True):
            is_cancelled = state is JobState.CANCELLED
            all_cancelled &= is_cancelled
            if as_json:
                emit({"id": job_id, "state": state.value if state else None})
            elif is_cancelled:
                sys.stdout.write(f"{job_id} cancelled\n")
            elif state is not None:
                note(f"{job_id} had {state.value} already")
            else:
                note(_unknown(farm, job_id))
    if not all_cancelled:
        raise typer.Exit(FAILED)


def _wait(job: Job, prompt: str, timeout_s: float | None, as_json: bool) -> None:
    job.result(timeout_s)
    view = job.farm.patiently(job.status)
    if as_json:
        emit(view.to_dict())
        return
    _print_prompt(prompt)
    stdout().print(printable(view.text), markup=False, soft_wrap=True)
    _sum_up(view)


def _stream(job: Job, prompt: str, as_json: bool) -> None:
    """Print deltas as they come; with JSON one line each, and the whole job as the last."""
    if not as_json:
        _print_prompt(prompt)
    try:
        for delta in job.stream():
            if as_json:
                emit({"id": job.id, "index": delta.index, "text": delta.text})
            else:
                sys.stdout.write(printable(delta.text))
                sys.stdout.flush()
    finally:
        if not as_json:
            sys.stdout.write("\n")
            sys.stdout.flush()
    view = job.farm.patiently(job.status)
    emit(view.to_dict()) if as_json else _sum_up(view)


def _print_prompt(prompt: str) -> None:
    """Before its completion, for a person; a pipe gets the completion alone."""
    if sys.stdout.isatty():
        stdout().print(printable(prompt), style="dim", markup=False, end="", soft_wrap=True)


def _sum_up(view: JobView) -> None:
    if not sys.stderr.isatty():
        return
    tokens, total_s = view.usage.completion_tokens, view.timings.total_s
    resumed = f", {view.usage.resumed_tokens} of them resumed" if view.usage.resumed_tokens else ""
    note(f"{tokens} tokens{resumed} in {duration(total_s)} by {view.worker} ({view.finish_reason})\njob {view.id}")


def _goes_on(job: Job) -> str:
    """How to come back to a job; its id is whole on a line of 80 columns."""
    return f"the job goes on:\n  farm status {job.id}   shows it\n  farm cancel {job.id}   ends it"


def _say_if_nobody_serves(farm: Farm, model: str | None) -> None:
    """A job may wait for a worker as long as it likes; the person who waits should know."""
    name = model_name(model or farm.settings.model.id)
    if overview(farm.ledger).live_slots(name) == 0:
        note(f"no worker serves {name} now; the job waits until one does (farm worker starts one)")


def _unknown(farm: Farm, job_id: str) -> str:
    try:
        return f"{job_id} is {farm.ledger.view(job_id).state.value}"
    except JobNotFound as error:
        return str(error)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise InvalidRequest("prompt", "standard input is not UTF-8 text; convert it") from None
