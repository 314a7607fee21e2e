"""What ``/openapi.json`` says of files and batches."""

from __future__ import annotations

from typing import Any

from api import batch_schemas as shapes
from api.openapi import REQUEST_ID, answer, error, header, operation, parameter, ref
from api.operations import BAD, DOORS
from api.requests import MAX_KEY_CHARS
from api.routes.batches import MOST_PAGE as MOST_BATCHES
from api.routes.batches import PAGE
from api.routes.files import EXPIRY_S, LISTED
from farm.ledger.files import MOST_PAGE as MOST_FILES

TAG = "batches"
PURPOSE = {"enum": list(LISTED)}
LOST_FILE = error(404, "No file of this tenant has this id.", "file file-… is unknown; check the id", "file_not_found")
LOST_BATCH = error(
    404, "No batch of this tenant has this id.", "batch batch_… is unknown; check the id", "batch_not_found"
)
STORE_DOORS = DOORS | error(
    503, "The farm's server or its file store does not answer.", "…; nothing is lost, try again", "server_unreachable"
)


def _id(name: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"},
        "description": "Its id.",
        "example": example,
    }


def _pages(most: int, usual: int) -> list[dict[str, Any]]:
    return [
        parameter(
            "query", "after", "The id of the last one of the page before; it may be deleted since.", {"type": "string"}
        ),
        parameter(
            "query", "limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": most, "default": usual}
        ),
    ]


FILE_ID, BATCH_ID = _id("file_id", shapes.FILE_ID), _id("batch_id", shapes.BATCH_ID)

UPLOAD = operation(
    "upload",
    "Upload a file",
    "A file of requests for a batch, one JSON object per line, UTF-8. It is kept for 30 days unless it says otherwise.",
    {
        200: answer(shapes.File, "It is kept.", shapes.file_example())
        | {
            "links": {
                "batch": {
                    "operationId": "create_batch",
                    "requestBody": {"input_file_id": "$response.body#/id", "endpoint": "/v1/completions"},
                    "description": "Have its lines answered.",
                },
                "content": {"operationId": "content", "parameters": {"file_id": "$response.body#/id"}},
            }
        },
        **BAD,
        **error(408, "The file did not come in time.", "…", "request_timeout"),
        **error(413, "The file is too large, or the tenant keeps too much.", "…; delete some", "storage_full"),
        **error(
            415, "The body is not said to be a form.", "…; send it as multipart/form-data", "unsupported_media_type"
        ),
        **STORE_DOORS,
    },
    tag=TAG,
    body={
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {
                            "type": "string",
                            "contentMediaType": "application/octet-stream",
                            "description": "The file, with its name.",
                        },
                        "purpose": {"enum": ["batch"], "description": "What it is for."},
                        "expires_after[anchor]": {"enum": ["created_at"], "description": "From when on it is kept."},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": EXPIRY_S[0],
                            "maximum": EXPIRY_S[1],
                            "description": "How long it is kept.",
                        },
                    },
                    "required": ["file", "purpose"],
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                    "additionalProperties": False,
                },
                "example": {"file": '{"custom_id": "1", "body": {"prompt": "A goat"}}\n', "purpose": "batch"},
            }
        },
    },
)
LIST_FILES = operation(
    "list_files",
    "List files",
    "What the tenant uploaded and what its batches left, the newest first.",
    {
        200: answer(shapes.FileList, "The files.", shapes.list_example(shapes.file_example())),
        **BAD,
        **LOST_FILE,
        **DOORS,
    },
    tag=TAG,
    parameters=[
        parameter("query", "purpose", "Only files of this purpose.", PURPOSE),
        parameter("query", "order", "By the time they were made.", {"enum": ["asc", "desc"], "default": "desc"}),
        *_pages(MOST_FILES, MOST_FILES),
    ],
)
READ_FILE = operation(
    "read_file",
    "Read what is known of a file",
    "",
    {200: answer(shapes.File, "The file.", shapes.file_example()), **BAD, **LOST_FILE, **DOORS},
    tag=TAG,
    parameters=[FILE_ID],
)
CONTENT = operation(
    "content",
    "Download a file",
    """Of a batch's output each line is
`{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`, in the order of the answers.""",
    {
        200: {
            "description": "Its content.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "contentMediaType": "application/octet-stream"},
                    "example": '{"id":"batch_req_…","custom_id":"1","response":{"status_code":200,…},"error":null}\n',
                }
            },
            "headers": REQUEST_ID | {"content-disposition": header("The file's name.", {"type": "string"})},
        },
        **BAD,
        **LOST_FILE,
        **STORE_DOORS,
    },
    tag=TAG,
    parameters=[FILE_ID],
)
DELETE_FILE = operation(
    "delete_file",
    "Delete a file",
    "The input of a batch that has not ended can't be deleted.",
    {
        200: answer(shapes.FileDeleted, "It is gone.", {"id": shapes.FILE_ID, "object": "file", "deleted": True}),
        **BAD,
        **LOST_FILE,
        **error(409, "A batch still reads it.", "file … is the input of a batch that …", "file_in_use"),
        **DOORS,
    },
    tag=TAG,
    parameters=[FILE_ID],
)
CREATE = operation(
    "create_batch",
    "Make a batch",
    """Every line of the input file is answered once, at low priority unless it says otherwise, or written to the error
file. Lines are as OpenAI's, `{"custom_id", "method": "POST", "url": "/v1/completions", "body"}`, or short:
`{"custom_id", "prompt", "max_tokens", …}`.""",
    {
        200: answer(shapes.Batch, "Accepted.", shapes.batch_example())
        | {
            "links": {
                "read": {"operationId": "read_batch", "parameters": {"batch_id": "$response.body#/id"}},
                "cancel": {"operationId": "cancel_batch", "parameters": {"batch_id": "$response.body#/id"}},
            }
        },
        **BAD,
        **error(404, "The input file is unknown.", "file file-… is unknown; check the id", "file_not_found"),
        **error(408, "The request did not come in time.", "…", "request_timeout"),
        **error(413, "The body is too large.", "body: is larger than 1,048,576 bytes; …", "body_too_large", "body"),
        **error(
            415, "The body is not said to be JSON.", "the body must be JSON and say so; …", "unsupported_media_type"
        ),
        **error(
            422,
            "The idempotency key came with another batch before.",
            "…; use another key, or send the same",
            "idempotency_conflict",
            "Idempotency-Key",
        ),
        **DOORS,
    },
    tag=TAG,
    parameters=[
        parameter(
            "header",
            "Idempotency-Key",
            "The same key and body again give the same batch; another body is refused.",
            {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": "^[!-~]+$"},
        )
    ],
    body={
        "required": True,
        "content": {
            "application/json": {
                "schema": ref("BatchRequest"),
                "example": {
                    "input_file_id": shapes.FILE_ID,
                    "endpoint": "/v1/completions",
                    "completion_window": "24h",
                },
            }
        },
    },
)
LIST = operation(
    "list_batches",
    "List batches",
    "The tenant's batches, the newest first.",
    {
        200: answer(shapes.BatchList, "The batches.", shapes.list_example(shapes.batch_example())),
        **BAD,
        **LOST_BATCH,
        **DOORS,
    },
    tag=TAG,
    parameters=_pages(MOST_BATCHES, PAGE),
)
READ = operation(
    "read_batch",
    "Read a batch",
    "Its status, counts and files.",
    {200: answer(shapes.Batch, "The batch.", shapes.batch_example()), **BAD, **LOST_BATCH, **DOORS},
    tag=TAG,
    parameters=[BATCH_ID],
)
CANCEL = operation(
    "cancel_batch",
    "Cancel a batch",
    "It is `cancelling` until what was answered so far is written, and then `cancelled`.",
    {
        200: answer(shapes.Batch, "The batch.", shapes.batch_example()),
        **BAD,
        **LOST_BATCH,
        **error(409, "It has ended.", "batch … is completed; …", "batch_ended"),
        **DOORS,
    },
    tag=TAG,
    parameters=[BATCH_ID],
)
