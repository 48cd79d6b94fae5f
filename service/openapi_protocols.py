"""The OpenAPI document of the protocols that are answered before the framework: OIP v2 and OpenAI's."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import inference_schemas as oip
from service import schemas
from service.documents import answers, binary, headers, reference
from service.openapi import REFERENCE
from service.tensors import PARAMETERS
from service.wire import BINARY

__all__ = ["describe"]

MODELS: list[type[BaseModel]] = [
    *(oip.Server, oip.Live, oip.Ready, oip.Model, oip.ModelReady, oip.InferRequest, oip.InferAnswer, oip.Failure),
    *(oip.IndexRequest, oip.Index, oip.RepositoryRequest, schemas.EmbeddingsRequest, schemas.Embeddings),
    *(schemas.Models, schemas.Model, schemas.OpenAIError, schemas.SearchRequest, schemas.SearchRows, schemas.Row),
]
HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
    "description": "bytes of JSON before the binary tensors; left out where the whole body is JSON",
}


def describe(schema: dict[str, Any]) -> None:
    """Add the protocols' paths and models to the document."""
    _, definitions = models_json_schema([(model, "validation") for model in MODELS], ref_template=REFERENCE)
    schema["components"]["schemas"] |= definitions["$defs"]
    paths = schema["paths"]
    paths["/v2"] = _get("The server and its extensions", oip.Server)
    paths["/v2/health/live"] = _get("The process runs", oip.Live)
    paths["/v2/health/ready"] = _get("The process wants requests", oip.Ready, 503)
    for version in ("", "/versions/{version}"):
        names = [_name("table"), _name("version")] if version else [_name("table")]
        base = f"/v2/models/{{table}}{version}"
        paths[base] = _get("A table as a model", oip.Model, 404, names=names)
        paths[f"{base}/ready"] = _get("A table is served", oip.ModelReady, 404, names=names)
        paths[f"{base}/infer"] = {"post": _infer(names)}
    paths["/v2/repository/index"] = _post("All tables and whether they are served", oip.IndexRequest, oip.Index)
    for verb, summary in (("load", "Serve a table again"), ("unload", "Stop serving a table")):
        operation = _post(summary, oip.RepositoryRequest, None, 404)
        operation["post"]["parameters"] = [_name("table")]
        paths[f"/v2/repository/models/{{table}}/{verb}"] = operation
    failures = answers(400, 404, 408, 413, 422, 429, model=schemas.OpenAIError)
    paths["/v1/embeddings"] = {
        "post": {
            "summary": "Embeddings, as OpenAI's API",
            "tags": ["openai"],
            "requestBody": {"required": True, "content": reference(schemas.EmbeddingsRequest)},
            "responses": {"200": _ok(schemas.Embeddings, "X-HFH-Version")} | failures,
        }
    }
    paths["/v1/models"] = _get("All tables, as OpenAI's API", schemas.Models, tag="openai")
    paths["/v1/models/{table}"] = _get(
        "One table, as OpenAI's API", schemas.Model, names=[_name("table")], tag="openai"
    )
    paths["/v1/models/{table}"]["get"]["responses"] |= answers(404, model=schemas.OpenAIError)


def _infer(names: list[dict[str, Any]]) -> dict[str, Any]:
    content = reference(oip.InferRequest)
    content[BINARY] = binary("JSON of Inference-Header-Content-Length bytes, then the binary tensors")
    ok = _ok(oip.InferAnswer, "X-HFH-Version", "Inference-Header-Content-Length")
    ok["content"][BINARY] = binary("JSON of Inference-Header-Content-Length bytes, then the binary tensors")
    return {
        "summary": "Rows or bags, as tensors",
        "description": f"Known parameters: {', '.join(sorted(PARAMETERS))}. See docs/service.md.",
        "tags": ["inference"],
        "parameters": [*names, HEADER_LENGTH],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": ok} | answers(400, 404, 408, 413, 415, 429, model=oip.Failure),
    }


def _name(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ok(model: type[BaseModel] | None, *named: str) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "done"}
    if model is not None:
        ok["content"] = reference(model)
    if named:
        ok["headers"] = headers(*named)
    return ok


def _get(
    summary: str,
    model: type[BaseModel],
    *statuses: int,
    names: list[dict[str, Any]] | None = None,
    tag: str = "inference",
) -> dict[str, Any]:
    responses = {"200": _ok(model)} | answers(*statuses, model=oip.Failure)
    operation: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": responses}
    if names:
        operation["parameters"] = names
    return {"get": operation}


def _post(summary: str, asked: type[BaseModel], answer: type[BaseModel] | None, *statuses: int) -> dict[str, Any]:
    responses = {"200": _ok(answer)} | answers(400, 408, 413, *statuses, model=oip.Failure)
    body = {"required": False, "content": reference(asked)}
    return {"post": {"summary": summary, "tags": ["inference"], "requestBody": body, "responses": responses}}
