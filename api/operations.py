"""What ``/openapi.json`` says of each path: parameters, bodies, every answer with an example."""

from __future__ import annotations

from api import schemas
from api.openapi import ETAG, LOCATION, REQUEST_ID, RETRY_AFTER, answer, error, operation, parameter, ref
from api.requests import MAX_KEY_CHARS, MAX_WAIT_S
from farm.ledger.listing import MOST as MAX_PAGE

ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
HERE = "http://127.0.0.1:8000"  # stands for the server's own address wherever the document is shown
KEY = ' -H "Authorization: Bearer $FARM_API_KEY"'  # goes after this in examples, if keys are needed:
BEFORE_KEY = "curl -sS"
DESCRIPTION = f"""Large language models over a durable queue: a job that was accepted is answered, whatever dies on the
way. Submit a prompt and get a job; wait for it, follow its text as it is generated, or ask later.

```sh
curl -sS {HERE}/v1/jobs -H 'Content-Type: application/json' -H 'Prefer: wait=30' \\
  -d '{{"prompt": "Once upon a time", "max_tokens": 32}}'
```

Or without waiting:

```sh
JOB=$(curl -sS {HERE}/v1/jobs -H 'Content-Type: application/json' -H 'Idempotency-Key: order-7' \\
  -d '{{"prompt": "Every morning the farmer", "max_tokens": 64}}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
curl -sS -N {HERE}/v1/jobs/$JOB/events
curl -sS "{HERE}/v1/jobs/$JOB?wait=30"
```

Errors are `{{"error": {{"message", "type", "param", "code"}}}}`; `param` names the field. Every answer has
an `x-request-id`.
"""

DOORS = {
    **error(401, "No key, or none that is known.", "there is no key; …", "invalid_api_key"),
    **error(403, "The key does not allow this.", "this key may not submit; it may read", "insufficient_scope"),
    **error(429, "The tenant asks more often than it may.", "…; try again in 2 s", "rate_limited"),
    **error(
        503, "The farm's server does not answer, or is full.", "…; nothing is lost, try again", "server_unreachable"
    ),
}
BAD = error(
    400,
    "Something is wrong with the request.",
    "max_tokens: 0 is out of range; give at least 1",
    "invalid_request",
    "max_tokens",
)
LOST = {
    **error(404, "No job of this tenant has this id.", "job … is unknown; check the id", "job_not_found"),
    **error(410, "The job's retention has passed.", "job … is gone: finished jobs are kept 86400 s", "job_gone"),
}
BODY_ERRORS = {
    **error(408, "The request did not come in time.", "…", "request_timeout"),
    **error(413, "The body is too large.", "body: is larger than 1,048,576 bytes; …", "body_too_large", "body"),
    **error(415, "The body is not said to be JSON.", "the body must be JSON and say so; …", "unsupported_media_type"),
    **error(
        422,
        "The idempotency key came with another request before; or the deadline can't be met.",
        "…; use another idempotency key or send the same request",
        "idempotency_conflict",
        "Idempotency-Key",
    ),
}
IDEMPOTENCY_KEY = parameter(
    "header",
    "Idempotency-Key",
    "The same key and body again give the same job; another body is refused.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": "^[!-~]+$"},
)
JOB_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": ID_PATTERN},
    "description": "The job's id.",
    "example": schemas.JOB_ID,
}


SUBMIT = operation(
    "submit",
    "Submit a request, or a list of them",
    f"""Answers 202 as soon as the job is written down: from then on it will be answered. A list of up to
{schemas.MAX_LIST:,} is checked as a whole first, and nothing of it is enqueued if anything is wrong.

With `Prefer: wait=30` a single request is answered with 200 and the finished job, if it ends in time.""",
    {
        202: {
            "description": "Accepted.",
            "content": {
                "application/json": {
                    "schema": {"oneOf": [ref("Accepted"), ref("AcceptedList")]},
                    "example": schemas.accepted_example(),
                }
            },
            "headers": {**REQUEST_ID, "retry-after": RETRY_AFTER, "location": LOCATION | {"required": False}},
        },
        200: answer(schemas.Job, "It has ended already.", schemas.job_example()),
        **BAD,
        **BODY_ERRORS,
        **DOORS,
    },
    parameters=[
        IDEMPOTENCY_KEY,
        parameter(
            "header", "Prefer", f"`wait=N`: seconds to wait for the end, at most {MAX_WAIT_S:g}.", {"type": "string"}
        ),
    ],
    body={
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        ref("Request"),
                        {"type": "array", "items": ref("Request"), "minItems": 1, "maxItems": schemas.MAX_LIST},
                    ]
                },
                "examples": {
                    "one": {"summary": "One request", "value": {"prompt": "Once upon a time", "max_tokens": 32}},
                    "sampled": {
                        "summary": "Sampled, urgent, with a deadline",
                        "value": {
                            "prompt": "Every morning the farmer",
                            "max_tokens": 64,
                            "temperature": 0.8,
                            "top_p": 0.95,
                            "seed": 7,
                            "stop": ["\n"],
                            "priority": "high",
                            "deadline_s": 60,
                            "metadata": {"order": "7"},
                        },
                    },
                    "list": {
                        "summary": "A list",
                        "value": [{"prompt": "A goat", "max_tokens": 8}, {"prompt": "A hen", "max_tokens": 8}],
                    },
                },
            }
        },
    },
)

READ = operation(
    "read",
    "Read a job",
    """The state and the text so far. With `wait` the answer comes when the job has ended, or after so many seconds.
With `If-None-Match` and an unchanged job the answer is 304.""",
    {
        200: answer(schemas.Job, "The job.", schemas.job_example(), etag=ETAG),
        304: {"description": "The job is as the caller knows it.", "headers": REQUEST_ID | {"etag": ETAG}},
        **BAD,
        **LOST,
        **DOORS,
    },
    parameters=[
        JOB_ID,
        parameter(
            "query",
            "wait",
            "Seconds to wait for the end.",
            {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
        ),
        parameter("header", "If-None-Match", "An ETag of an earlier answer.", {"type": "string"}),
    ],
)

LIST = operation(
    "list",
    "List jobs",
    "The tenant's jobs, the newest first; `next` leads to the next page. None is on two pages, and none is left out.",
    {200: answer(schemas.JobPage, "The jobs.", {"jobs": [schemas.job_example()], "next": None}), **BAD, **DOORS},
    parameters=[
        parameter("query", "state", "Only jobs in this state.", {"enum": list(schemas.STATES)}),
        parameter("query", "after", "`next` of the page before.", {"type": "string", "pattern": r"^\d{1,16}$"}),
        parameter(
            "query", "limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 20}
        ),
    ],
)

CANCEL = operation(
    "cancel",
    "Cancel a job",
    "Ends the job unless it has ended; what it generated so far is kept. Answers with the job as it is then.",
    {200: answer(schemas.Job, "The job.", schemas.job_example(), etag=ETAG), **BAD, **LOST, **DOORS},
    parameters=[JOB_ID],
)

USAGE = operation(
    "usage",
    "Jobs and tokens by day",
    """What the key's tenant used. A key with the scope `admin` may name another tenant, or `*` for all of them, and
then of the latest 31 days at most.""",
    {200: answer(schemas.UsageReport, "The days.", schemas.usage_example()), **BAD, **DOORS},
    tag="usage",
    parameters=[
        parameter(
            "query",
            "days",
            "How many days, today included.",
            {"type": "integer", "minimum": 1, "maximum": 400, "default": 30},
        ),
        parameter("query", "tenant", "Whose usage.", {"type": "string", "pattern": rf"{ID_PATTERN}|^\*$"}),
    ],
)

EVENT = {
    "description": "One event. `data` is JSON.",
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": r"^\d+(\.end)?$"},
        "event": {"enum": ["tokens", "end", "resume", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
EVENTS = operation(
    "events",
    "Follow a job",
    """Server-sent events. `tokens` carries text as it is generated; its id is how many tokens the client has then.
`end` is the last one: state, usage, and the text after the last token. `resume` says that this
server stops: connect again.
A client that was cut off sends the last id that it got as `Last-Event-ID` and misses nothing, whichever process answers
and whichever worker generates.""",
    {
        200: {
            "description": "The events.",
            "content": {
                "text/event-stream": {
                    "schema": EVENT,
                    "example": (
                        'retry: 1000\n\nid: 4\nevent: tokens\ndata: {"index":4,"text":", there was"}\n\n'
                        f'id: 5.end\nevent: end\ndata: {{"index":5,"text":" a goat.","id":"{schemas.JOB_ID}",'
                        '"state":"succeeded","finish_reason":"length","usage":{"prompt_tokens":4,'
                        '"completion_tokens":5,"total_tokens":9,"resumed_tokens":0},"error":null}\n\n'
                    ),
                }
            },
            "headers": REQUEST_ID,
        },
        204: {"description": "The client has the end already.", "headers": REQUEST_ID},
        **BAD,
        **LOST,
        **DOORS,
    },
    parameters=[
        JOB_ID,
        parameter(
            "header",
            "Last-Event-ID",
            "The id of the last event that the client got.",
            {"type": "string", "pattern": r"^\d{1,9}(\.end)?$"},
        ),
    ],
)

LIVEZ = operation(
    "livez", "Whether this process answers", "", {200: answer(schemas.Alive, "It does."), **BAD}, tag="health"
)
READYZ = operation(
    "readyz",
    "Whether the farm takes jobs",
    "A model that waits has no live worker: its jobs are accepted, and wait for one.",
    {
        200: answer(schemas.Ready, "It does.", {"status": "ready", "models": {"tiny-bloom": "serving"}}),
        **BAD,
        **error(
            503, "The farm's server does not answer.", "the farm's server does not answer; …", "server_unreachable"
        ),
    },
    tag="health",
)
