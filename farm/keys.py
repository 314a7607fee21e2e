"""Every key that the farm keeps in Redis: its type, lifetime and owner. The one place that spells them.

All share the hash tag ``{farm}``, so one script may touch any of them on a cluster too. Times are server milliseconds.
Scripts build the same names from the prefix they get as KEYS[1]; ``tests/unit/test_keys.py`` holds them to this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "{farm}:"


@dataclass(frozen=True, slots=True)
class Key:
    """One family of keys. ``name`` holds the parts that vary in angle brackets."""

    name: str
    type: Literal["hash", "list", "zset", "set", "string", "stream"]
    ttl: str
    holds: str


KEYS = (
    Key("job:<id>", "hash", "retention after the end", "one job: request, state, attempt, fence, outcome"),
    Key("out:<id>", "list", "retention after the end", "its generated tokens, one JSON entry each"),
    Key("history:<id>", "list", "retention after the end", "its past attempts, the latest 20"),
    Key("queue:<model>:<priority>:<tenant>", "zset", "none", "queued jobs by their sequence number"),
    Key("lanes:<model>:<priority>", "zset", "none", "tenants with queued jobs by their virtual time"),
    Key("vtime:<model>", "hash", "none", "tenants' virtual time, in tokens over weight; idle ones are forgotten"),
    Key("vclock:<model>", "string", "none", "virtual time of the latest dispatch; where newcomers start"),
    Key("owed:<model>", "hash", "none", "tokens charged to tenants for jobs that have not ended"),
    Key("weights", "hash", "none", "tenants' weights other than 1"),
    Key("limits", "hash", "none", "tenants' limits other than the settings', as JSON"),
    Key("pace:<tenant>", "string", "until the bucket is full", "when a tenant's bucket of requests is full again"),
    Key("waiting", "string", "none", "jobs queued or dispatched"),
    Key("waiting_jobs", "hash", "none", "each tenant's jobs queued or dispatched; not there for none"),
    Key("waiting_tokens", "hash", "none", "each tenant's tokens, by estimate, queued or dispatched"),
    Key("jobs:<tenant>", "zset", "none", "a tenant's jobs by their sequence number, for listing"),
    Key("usage:<tenant>:<day>", "hash", "limits.usage_days", "jobs by how they ended, and tokens, of one UTC day"),
    Key("used:<day>", "set", "limits.usage_days", "tenants with usage on that day"),
    Key("usage_days", "string", "none", "how many days usage is kept, as the latest keeper has it in its settings"),
    Key("keys", "hash", "none", "API keys by id: SHA-256, tenant, scopes and name as JSON"),
    Key("keys_used", "hash", "none", "when an API key was last used, to the minute, in Unix seconds"),
    Key("webhooks", "zset", "none", "lanes with webhooks to call, by when they are swept; see webhook_take.lua"),
    Key("hook_tenants", "zset", "none", "tenants with webhooks to call, by when it is their turn"),
    Key("hook_lanes:<tenant>", "zset", "none", "a tenant's lanes, by when the first of each is due"),
    Key("hooks:<tenant>:<receiver>", "zset", "none", "a lane: job:<id> and batch:<id> by when to call their webhooks"),
    Key("hooks_waiting", "string", "none", "how many webhooks are in all lanes"),
    Key("webhook_secrets", "hash", "none", "each tenant's secret for signing webhooks, as JSON; readable"),
    Key("file:<id>", "hash", "until deleted", "one file: tenant, name, purpose, size, where it lies"),
    Key("files:<tenant>", "zset", "none", "a tenant's files by when they were made"),
    Key("place:<tenant>:<id>", "string", "an hour", "where a file or batch that is gone stood in its tenant's list"),
    Key("file_bytes", "hash", "none", "how much each tenant has in files"),
    Key("files_due", "zset", "none", "files by when they are to be deleted"),
    Key("files_trash", "zset", "none", "paths in the file store by when to delete them"),
    Key("batch:<id>", "hash", "files.retention_s after the end", "one batch: request, status, lease, how far it came"),
    Key("batch_parts:<id>", "list", "until the end", "the files that hold a batch's results so far"),
    Key(
        "batches:<tenant>", "zset", "files.retention_s after the last end", "a tenant's batches by when they were made"
    ),
    Key("batches_open", "hash", "none", "how many batches of each tenant have not ended"),
    Key("batches_due", "zset", "none", "batches that have not ended by when somebody may drive them"),
    Key("delayed", "zset", "none", "queued jobs that must wait, by the time they may go"),
    Key("dispatched", "zset", "none", "jobs whose message is out, by the time to publish it again"),
    Key("running", "zset", "none", "running jobs by the end of their lease"),
    Key("deadlines", "zset", "none", "unfinished jobs with a deadline"),
    Key("kept:<tenant>", "zset", "none", "a tenant's finished jobs as id|bytes by their end"),
    Key("kept_oldest", "zset", "none", "tenants with finished jobs by the end of their oldest"),
    Key("kept_newest", "zset", "none", "tenants with finished jobs by the end of their newest"),
    Key("kept_jobs", "zset", "none", "tenants by how many finished jobs they have"),
    Key("kept_bytes", "zset", "none", "tenants by how many bytes these are"),
    Key("kept_all", "hash", "none", "jobs and bytes of all tenants' finished jobs"),
    Key("finished", "zset", "none", "where earlier versions list finished jobs, as id|bytes|tenant; moved to kept:"),
    Key("finished_bytes", "string", "none", "sum of the bytes in finished"),
    Key("dead", "zset", "none", "dead jobs by their end"),
    Key("undelivered", "zset", "none", "finished plain-Celery jobs whose result is not known to be stored"),
    Key("counts:<model>", "hash", "none", "jobs now queued, dispatched, running"),
    Key("depth:<model>", "hash", "none", "jobs that wait for their turn, by priority"),
    Key("totals", "hash", "none", "jobs submitted, ended and revived, releases by reason, since the beginning"),
    Key("tally", "hash", "none", "as <what>:<model>: jobs submitted and ended, tokens of those that ended"),
    Key("spent:<day>", "zset", "two days", "tenants by the tokens of their jobs that ended on that UTC day, and (all)"),
    Key("dropped:<nonce>", "string", "a minute", "a delivery that was of no use and is counted"),
    Key("rate:<model>", "hash", "none", "finished jobs per second, smoothed; tokens, slot time of the latest jobs"),
    Key("seq", "string", "none", "the latest sequence number given to a job"),
    Key("workers", "zset", "none", "workers by their latest beat"),
    Key(
        "worker:<worker>",
        "hash",
        "a day once succeeded",
        "one worker: model, capacity, tokens written, trouble, drain, suspect; or successor",
    ),
    Key("held:<worker>", "set", "none", "the jobs that a worker runs"),
    Key("names", "hash", "none", "a worker's name -> its latest incarnation"),
    Key("models", "hash", "none", "a model's name -> its context, fingerprint and tokenizer as JSON"),
    Key("schema", "string", "none", "the highest schema that a worker has written: see farm/schema.py"),
    Key("beat", "string", "none", "when a worker or keeper last reached the server"),
    Key("grace", "string", "none", "until when no lease ends, after the server was silent"),
    Key("leader", "string", "keeper.lock_s", "the leading keeper"),
    Key("mark", "string", "none", "written last by calls that wait for the disk or for replicas"),
    Key("full", "string", "5 s", "present while memory is short, so that new jobs are refused"),
    Key("wake", "list", "none", "holds one item when the keeper has something to do"),
    Key("events", "stream", "10,000 entries", "jobs that got tokens or ended: id, tokens, state"),
)

FULL = PREFIX + "full"
WAKE = PREFIX + "wake"
EVENTS = PREFIX + "events"
MODELS = PREFIX + "models"
WORKERS = PREFIX + "workers"
NAMES = PREFIX + "names"
TOTALS = PREFIX + "totals"
SCHEMA = PREFIX + "schema"
WEIGHTS = PREFIX + "weights"
LIMITS = PREFIX + "limits"
WAITING_JOBS = PREFIX + "waiting_jobs"
WAITING_TOKENS = PREFIX + "waiting_tokens"
API_KEYS = PREFIX + "keys"
API_KEYS_USED = PREFIX + "keys_used"
WEBHOOKS = PREFIX + "webhooks"
HOOK_TENANTS = PREFIX + "hook_tenants"
WEBHOOK_SECRETS = PREFIX + "webhook_secrets"
FILE_BYTES = PREFIX + "file_bytes"
FILES_DUE = PREFIX + "files_due"
FILES_TRASH = PREFIX + "files_trash"
BATCHES_DUE = PREFIX + "batches_due"
UNDELIVERED = PREFIX + "undelivered"
LEADER = PREFIX + "leader"
TALLY = PREFIX + "tally"
KEPT_NEWEST = PREFIX + "kept_newest"
DEAD = PREFIX + "dead"


def job(job_id: str) -> str:
    """The key of a job's hash."""
    return f"{PREFIX}job:{job_id}"


def out(job_id: str) -> str:
    """The key of a job's tokens."""
    return f"{PREFIX}out:{job_id}"


def history(job_id: str) -> str:
    """The key of a job's past attempts."""
    return f"{PREFIX}history:{job_id}"


def worker(worker_id: str) -> str:
    """The key of a worker's hash."""
    return f"{PREFIX}worker:{worker_id}"


def held(worker_id: str) -> str:
    """The key of the set of jobs that a worker runs."""
    return f"{PREFIX}held:{worker_id}"


def jobs(tenant: str) -> str:
    """The key of the list of a tenant's jobs."""
    return f"{PREFIX}jobs:{tenant}"


def kept(tenant: str) -> str:
    """The key of the list of a tenant's finished jobs."""
    return f"{PREFIX}kept:{tenant}"


def usage(tenant: str, day: str) -> str:
    """The key of what a tenant used on a day, as 2026-11-23."""
    return f"{PREFIX}usage:{tenant}:{day}"


def used(day: str) -> str:
    """The key of the tenants that used something on a day."""
    return f"{PREFIX}used:{day}"


def spent(day: str) -> str:
    """The key of the tokens of a day, by tenant."""
    return f"{PREFIX}spent:{day}"


def counts(model: str) -> str:
    """The key of a model's job counters."""
    return f"{PREFIX}counts:{model}"


def rate(model: str) -> str:
    """The key of a model's pace."""
    return f"{PREFIX}rate:{model}"


def queue(model: str, priority: str, tenant: str) -> str:
    """The key of one tenant's queue at one priority."""
    return f"{PREFIX}queue:{model}:{priority}:{tenant}"


def lanes(model: str, priority: str) -> str:
    """The key of the tenants that have queued jobs at one priority."""
    return f"{PREFIX}lanes:{model}:{priority}"


def hooks(lane: str) -> str:
    """The key of the webhooks of one tenant and receiver, a lane as ``<tenant>:<receiver>``."""
    return f"{PREFIX}hooks:{lane}"


def hook_lanes(tenant: str) -> str:
    """The key of the list of a tenant's lanes."""
    return f"{PREFIX}hook_lanes:{tenant}"


def file(file_id: str) -> str:
    """The key of a file's hash."""
    return f"{PREFIX}file:{file_id}"


def files(tenant: str) -> str:
    """The key of the list of a tenant's files."""
    return f"{PREFIX}files:{tenant}"


def place(tenant: str, member: str) -> str:
    """The key of where a file or batch stood in its tenant's list."""
    return f"{PREFIX}place:{tenant}:{member}"


def batch(batch_id: str) -> str:
    """The key of a batch's hash."""
    return f"{PREFIX}batch:{batch_id}"


def batch_parts(batch_id: str) -> str:
    """The key of the list of a batch's parts."""
    return f"{PREFIX}batch_parts:{batch_id}"


def batches(tenant: str) -> str:
    """The key of the list of a tenant's batches."""
    return f"{PREFIX}batches:{tenant}"
