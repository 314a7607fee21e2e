"""``farm batch``: a file of prompts to a file of completions, however often it is interrupted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.batch import DEFAULT_WINDOW, run_batch
from farm.batch_report import BatchReport
from farm.cli.exits import FAILED, INTERRUPTED
from farm.cli.help import Command, commands, examples
from farm.cli.options import QUEUEING, Json, Tenant, reachable_settings
from farm.cli.output import duration, emit, note
from farm.cli.progress import shown
from farm.cli.request_options import request_options, warn_of_webhook
from farm.client import Farm
from farm.errors import InvalidRequest

EXAMPLE = '{"prompt": "Once upon a time"}'
app = commands()


@app.command(
    cls=Command,
    epilog=examples(
        "farm batch prompts.jsonl -o completions.jsonl",
        "farm batch prompts.jsonl -o completions.jsonl --max-tokens 200 --priority low",
        "farm batch prompts.jsonl -o completions.jsonl --retry-errors",
        "zcat prompts.jsonl.gz | farm batch - -o completions.jsonl",
        "",
        "A line of the input is short or OpenAI's:",
        '{"custom_id": "a", "prompt": "Once upon a time", "max_tokens": 32}',
        '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once upon a time"}}',
    ),
)
@request_options
def batch(
    source: Annotated[str, typer.Argument(metavar="IN.jsonl", help="One request a line; - reads standard input.")],
    target: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where answers are appended.", dir_okay=False)
    ],
    params: dict[str, Any],
    tenant: Tenant = None,
    window: Annotated[
        int, typer.Option(metavar="N", help="How many jobs may be in flight.", rich_help_panel=QUEUEING)
    ] = DEFAULT_WINDOW,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="Ask lines again that died, expired, were cancelled or ran out of retries."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Complete a file of prompts, and go on where an earlier run stopped.

    Answers are written as they come, each with its line's custom_id. The options are for lines that don't say. A bad
    line gets an error in its place. The same command again, after whatever happened, skips what is answered, by a
    completion or an error, and takes up jobs that are still in the farm; --retry-errors asks lines again that were
    dead, expired, cancelled or out of retries. Fails when a line has no completion, from this run or an earlier one.
    """
    if not target.parent.is_dir():
        raise InvalidRequest("--output", f"there is no folder {target.parent}; make it, or name another file")
    if source != "-" and (not Path(source).exists() or Path(source).is_dir()):
        raise InvalidRequest(
            "IN.jsonl", f"{source} is no file; name one with a request a line, or - for standard input"
        )
    latest = BatchReport(None)
    settings = reachable_settings()
    warn_of_webhook(settings, params)
    try:
        with Farm(settings, tenant=tenant) as farm, shown(is_quiet=as_json) as show:

            def see(report: BatchReport) -> None:
                nonlocal latest
                latest = report
                show.report(report)

            latest = run_batch(
                farm,
                source,
                target,
                defaults=params,
                window=window,
                retry_errors=retry_errors,
                on_progress=see,
                on_notice=show.say,
            )
    except KeyboardInterrupt:
        note(f"stopped with {latest.done:,} done; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        emit({**asdict(latest), "done": latest.done, "tokens_per_s": tokens_per_s(latest), "output": str(target)})
    else:
        note(summary(latest, target))
    if latest.failed or latest.failed_before:
        raise typer.Exit(FAILED)


def tokens_per_s(report: BatchReport) -> float:
    """Tokens generated per second over the whole run."""
    return round(report.new_tokens / report.elapsed_s, 1) if report.elapsed_s else 0.0


def summary(report: BatchReport, target: Path) -> str:
    """The run in one line, and what to do about errors in another."""
    if not report.done:
        return f"the input has no request; a line is one, such as {EXAMPLE}"
    parts = [f"{report.succeeded:,} completed"]
    if report.failed:
        parts.append(f"{report.failed:,} failed")
    if report.retried:
        parts.append(f"{report.retried:,} of them asked again")
    if answered_before := report.skipped - report.failed_before:
        parts.append(f"{answered_before:,} completed before")
    if report.failed_before:
        parts.append(f"{report.failed_before:,} failed before")
    pace = f"{report.new_tokens:,} tokens in {duration(report.elapsed_s)}, {tokens_per_s(report):,.0f} tokens/s"
    lines = [f"{', '.join(parts)} · {pace} -> {target}"]
    if report.failed or report.failed_before:
        lines.append(_remedy(report))
    return "\n".join(lines)


def _remedy(report: BatchReport) -> str:
    if report.passing:
        return f"the output has their errors; --retry-errors asks {report.passing:,} of them again"
    return "the output has their errors, which would come again: correct these lines, and give them new custom_ids"
