"""``farm submit`` and ``farm cancel``: one prompt at a time, from a terminal or a script."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from farm.cli.answers import goes_on, print_text, say_if_nobody_serves, sum_up
from farm.cli.exits import FAILED, INTERRUPTED
from farm.cli.help import Command, commands, examples
from farm.cli.options import QUEUEING, JobIds, Json, Tenant, job_ids, reachable_settings, standard_input
from farm.cli.output import emit, note, printable, stdout
from farm.cli.request_options import request_options, warn_of_webhook
from farm.client import Farm
from farm.contracts import JobState
from farm.errors import InvalidRequest, JobNotFound, JobNotSucceeded
from farm.job import Job

OUTPUT = "What to print"
app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        'farm submit "Once upon a time"',
        'farm submit "Once upon a time" --stream --temperature 0.8 --seed 7',
        "cat prompt.txt | farm submit - --max-tokens 200 > story.txt",
        'id=$(farm submit "A goat" --no-wait) && farm wait $id',
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
            "--no-wait", help="Print the job's id and end; farm wait ID has the answer.", rich_help_panel=OUTPUT
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
        prompt = standard_input("prompt").removesuffix("\n")
    settings = reachable_settings()
    warn_of_webhook(settings, params)
    with Farm(settings, tenant=tenant) as farm:
        job = farm.submit(prompt, idempotency_key=idempotency_key, **params)
        if no_wait:
            emit(job.status().to_dict()) if as_json else sys.stdout.write(job.id + "\n")
            return
        try:
            say_if_nobody_serves(farm, params.get("model"))
            if stream:
                _stream(job, prompt, as_json)
            else:
                _wait(job, prompt, timeout, as_json)
        except KeyboardInterrupt:
            note(f"\nstopped waiting; {goes_on(job.id)}")
            raise typer.Exit(INTERRUPTED) from None
        except TimeoutError:
            trouble = f" ({farm.reader.trouble})" if farm.reader.trouble else ""
            within = "" if timeout is None else f" within {timeout:g} s"
            note(f"no answer{within}{trouble}; {goes_on(job.id)}")
            if as_json:
                emit(job.status().to_dict())
            raise typer.Exit(FAILED) from None
        except JobNotSucceeded as error:
            if as_json and error.job is not None:
                emit(error.job.to_dict())
            elif error.job is not None and error.job.text and not stream:
                print_text(error.job)
            raise


@app.command(
    cls=Command,
    epilog=examples("farm cancel 0192f0c1-…", "farm cancel - < ids.txt"),
)
def cancel(
    jobs: JobIds,
    as_json: Json = False,
) -> None:
    """End jobs that have not ended.

    A running one stops at its next token; what it generated is kept. Fails if a job is unknown or had ended otherwise.
    """
    with Farm(reachable_settings()) as farm:
        wanted = job_ids(jobs)
        states = farm.ledger.cancel(wanted)
        all_cancelled = True
        for job_id, state in zip(wanted, states, strict=True):
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
    print_text(view)
    sum_up(view)


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
    emit(view.to_dict()) if as_json else sum_up(view)


def _print_prompt(prompt: str) -> None:
    """Before its completion, for a person; a pipe gets the completion alone."""
    if sys.stdout.isatty():
        stdout().print(printable(prompt), style="dim", markup=False, end="", soft_wrap=True)


def _unknown(farm: Farm, job_id: str) -> str:
    try:
        return f"{job_id} is {farm.ledger.view(job_id).state.value}"
    except JobNotFound as error:
        return str(error)
