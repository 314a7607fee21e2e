"""How ``/openapi.json`` is put together: the parts that an operation is described with, and the whole."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from api import batch_schemas, openai_schemas, schemas

REFS = "#/components/schemas/{model}"


def ref(name: str) -> dict[str, str]:
    return {"$ref": REFS.format(model=name)}


def answer(model: type[BaseModel], description: str, example: Any = None, **headers: dict[str, Any]) -> dict[str, Any]:
    """An answer with a JSON body."""
    content: dict[str, Any] = {"schema": ref(model.__name__)}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}, "headers": {**REQUEST_ID, **headers}}


def header(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "schema": schema, "required": True}


REQUEST_ID = {"x-request-id": header("The request's id, as the caller gave it or made up.", {"type": "string"})}
RETRY_AFTER = header("Seconds after which to ask again.", {"type": "integer", "minimum": 1})
LOCATION = header("Where the job is.", {"type": "string"})
ETAG = header("Changes whenever the answer does.", {"type": "string"})


def error(
    status: int, description: str, message: str, code: str, param: str | None = None
) -> dict[int, dict[str, Any]]:
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    example = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {"retry-after": RETRY_AFTER} if status in (429, 503) else {}
    return {status: answer(schemas.Error, description, example, **headers)}


def parameter(where: str, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": description, "schema": schema}


def operation(
    operation_id: str,
    summary: str,
    description: str,
    responses: dict[int, dict[str, Any]],
    *,
    tag: str = "jobs",
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``add_api_route`` takes."""
    extra: dict[str, Any] = {"parameters": parameters or []}
    if body is not None:
        extra["requestBody"] = body
    return {
        "operation_id": operation_id,
        "summary": summary,
        "description": description,
        "tags": [tag],
        "status_code": min(responses),
        "response_model": None,
        "responses": responses,
        "openapi_extra": extra,
    }


SHAPES: tuple[type[BaseModel], ...] = (
    schemas.Accepted,
    schemas.AcceptedList,
    schemas.Job,
    schemas.JobPage,
    schemas.UsageReport,
    schemas.Error,
    schemas.Alive,
    schemas.Ready,
    *batch_schemas.SHAPES,
    openai_schemas.Completion,
    openai_schemas.Model,
    openai_schemas.ModelList,
)


# FastAPI adds a 422 of its own to paths with parameters; these answer with ours.
OWN_422 = ("/v1/jobs", "/v1/completions", "/v1/batches")


def complete(document: dict[str, Any], needs_key: bool) -> dict[str, Any]:
    """Add the schemas that the paths refer to, and the keys."""
    parts: dict[str, Any] = {}
    for shape in SHAPES:
        schema = shape.model_json_schema(ref_template=REFS, mode="serialization")
        parts |= schema.pop("$defs", {})
        parts[shape.__name__] = schema
    for name, schema in (
        ("Request", schemas.request_schema(REFS)),
        ("CompletionRequest", openai_schemas.completion_request_schema(REFS)),
        ("BatchRequest", batch_schemas.batch_request_schema(REFS)),
    ):
        parts |= schema.pop("$defs", {})
        parts[name] = schema
    keys: list[dict[str, list[str]]] = [{"key": []}] if needs_key else [{}, {"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = keys if path.startswith("/v1/") else []
            if path not in OWN_422:
                operation["responses"].pop("422", None)  # FastAPI's own, for models that it does not use here
    document["components"] = {
        "schemas": parts,
        "securitySchemes": {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key: `farm keys create`."}
        },
    }
    return document
