"""What Flower shows of the farm: its configuration file, which Flower runs and reads names from.

Addresses, ports and passwords are not here: ``farm.flower`` passes them on.
"""

from __future__ import annotations

from typing import Protocol


class _Task(Protocol):
    name: str | None
    args: str | None
    kwargs: str | None
    result: str | None


OURS = "farm."

# What fits 1,280 pixels. "UUID" is the job's id; arguments hold nothing that it does not say.
tasks_columns = "name,uuid,state,received,runtime,worker"
# A restarted worker has another name; the one that is gone need not stay on the page.
purge_offline_workers = 60
# Generating takes seconds: Prometheus' own buckets end at 10.
task_runtime_metric_buckets = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]


def format_task(task: _Task) -> _Task:
    """Keep prompts and completions off the pages, whatever a foreign sender wrote into its message.

    Workers send ids and counts only; this holds for tasks that reached no worker of ours yet.
    """
    if task.name and task.name.startswith(OURS):
        task.args = "()"
        task.result = None
    return task
