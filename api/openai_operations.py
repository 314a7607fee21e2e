"""What ``/openapi.json`` says of the paths that OpenAI's clients use."""

from __future__ import annotations

from api import openai_schemas as shapes
from api.openapi import answer, error, operation, parameter, ref
from api.operations import BAD, BODY_ERRORS, DOORS, IDEMPOTENCY_KEY

CHUNK = {
    "description": "One chunk. `data` is JSON like a completion's, with a part of each choice's text; or `[DONE]`.",
    "type": "object",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
COMPLETE = operation(
    "complete",
    "Complete a prompt",
    """As OpenAI's completions: the official clients work with this server as their `base_url`. Each choice is a job.
When the client leaves, its jobs are cancelled, unless it gave an `Idempotency-Key`: then it may ask again and gets
the same answer. With `stream` the answer is server-sent events that end with `[DONE]`.

`best_of` other than n, `suffix` and `logit_bias` are refused, and so is `echo` with `logprobs`.""",
    {
        200: {
            **answer(shapes.Completion, "The choices.", shapes.completion_example()),
            "content": {
                "application/json": {"schema": ref("Completion"), "example": shapes.completion_example()},
                "text/event-stream": {
                    "schema": CHUNK,
                    "example": 'data: {"id":"cmpl-…","object":"text_completion","choices":[{"index":0,"text":", there"'
                    ',"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n',
                },
            },
        },
        **BAD,
        **BODY_ERRORS,
        **error(
            408,
            "A job's deadline passed, or the request did not come in time.",
            "job … passed its deadline after 3 tokens",
            "job_expired",
        ),
        **error(409, "A job was cancelled.", "job … was cancelled after 3 tokens, attempt 1", "job_cancelled"),
        **error(500, "A job failed.", "job … failed after 3 tokens, attempt 1", "job_failed"),
        **DOORS,
    },
    tag="openai",
    parameters=[IDEMPOTENCY_KEY],
    body={
        "required": True,
        "content": {
            "application/json": {
                "schema": ref("CompletionRequest"),
                "examples": {
                    "one": {
                        "summary": "One prompt",
                        "value": {"model": "tiny-bloom", "prompt": "Once upon a time", "max_tokens": 32},
                    },
                    "several": {
                        "summary": "Two prompts, twice each",
                        "value": {"prompt": ["A goat", "A hen"], "n": 2, "max_tokens": 8, "seed": 7},
                    },
                },
            }
        },
    },
)

MODELS = operation(
    "models",
    "List the models",
    "Those that workers have served here, and the one that the farm is set up for.",
    {
        200: answer(shapes.ModelList, "The models.", {"object": "list", "data": [shapes.model_example()]}),
        **BAD,
        **DOORS,
    },
    tag="openai",
)

MODEL = operation(
    "model",
    "Read a model",
    "",
    {
        200: answer(shapes.Model, "The model.", shapes.model_example()),
        **BAD,
        **error(404, "No model has this name.", "model 'x' is not served here; …", "model_not_found"),
        **DOORS,
    },
    tag="openai",
    parameters=[
        {**parameter("path", "model", "The model's id.", {"type": "string", "minLength": 1}), "required": True}
    ],
)
