"""The OpenAPI 3.1 document, made from the same table that makes the routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.admin.api.examples import illustrate
from gateway.admin.api.query_parameters import PAGING, asked_with, filter_schema, parameter, whole
from gateway.admin.http.idempotency import KEY_PARAMETER
from gateway.admin.resources.resource import (
    Answered,
    Batch,
    Document,
    Part,
    Question,
    Report,
    Resource,
)
from gateway.core.accounts.roles import ROLES

Json = dict[str, Any]  # JSON as OpenAPI has it: any shape

_REF = "#/components/schemas/"

PROBLEM: Json = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}

REFUSALS = {
    "400": "The body is not one unambiguous JSON object.",
    "401": "No valid admin token.",
    "403": "The role of this token may not do this; the message says which may.",
    "404": "There is no such row.",
    "409": "Contradicts what is stored, or the Idempotency-Key was used for something else.",
    "413": "The body is too large.",
    "415": "The body has a Content-Encoding.",
    "422": "Some fields are wrong; `errors` names them.",
    "429": "The organization has enough under way, or has used up its hour; `Retry-After` says when.",
    "503": "PostgreSQL does not answer.",
}
READ_REFUSALS = ("401", "403", "404", "422", "429", "503")
# A document may not be there yet, or never be of a row as it is.
DOCUMENT_REFUSALS = (*READ_REFUSALS[:-1], "409", "503")


def document(resources: Mapping[str, Resource], reports: Mapping[str, Report], *, version: str) -> Json:
    """Describe every resource and every report; the answer is JSON, ready to be sent."""
    paths: Json = {}
    for report in reports.values():
        paths |= _report_paths(report)
    for resource in resources.values():
        paths |= _paths(resource, resources)
    schemas = _schemas(resources, reports)
    illustrate(paths, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper Admin API",
            "version": version,
            "description": "Administration of organizations, tenants, credentials, plans and quotas. "
            "Amounts are integers below 2^53, money is a decimal in a string, times are RFC 3339 UTC. "
            "422 also says what no schema can: an id that nobody has, a time that is over.",
        },
        "servers": [{"url": "/", "description": "The admin port of the keeper that answered this."}],
        "security": [{"token": []}],
        "tags": [
            {"name": each.name, "description": each.description}
            for each in (*resources.values(), *reports.values())
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {
                code: {
                    "description": text,
                    "content": {"application/problem+json": {"schema": {"$ref": _REF + "Problem"}}},
                }
                for code, text in REFUSALS.items()
            },
        },
    }


def _schemas(resources: Mapping[str, Resource], reports: Mapping[str, Report]) -> Json:
    models: list[tuple[type[BaseModel], Any]] = []
    for report in reports.values():
        models.append((report.out, "serialization"))
        if report.ran is not None:
            models.append((report.ran, "serialization"))
        if report.run is not None and report.run.body is not None:
            models.append((report.run.body, "validation"))
    for resource in resources.values():
        models.append((resource.out, "serialization"))
        models += [(question.out, "serialization") for question in resource.questions]
        models += [(part.out, "serialization") for part in resource.parts]
        if resource.batch is not None:
            models += [(resource.batch.body, "validation"), (resource.batch.out, "serialization")]
        bodies = (resource.create, resource.patch, *(action.body for action in resource.actions))
        models += [(model, "validation") for model in bodies if model is not None]
    _, made = models_json_schema(models, ref_template=_REF + "{model}")
    schemas: Json = {"Problem": PROBLEM, **made["$defs"]}
    for resource in resources.values():
        if resource.secret is not None:
            schemas[f"{resource.title}Created"] = {
                "allOf": [
                    {"$ref": _REF + resource.title},
                    {
                        "type": "object",
                        "properties": {
                            resource.secret.field: {"type": "string", "description": "Shown once."}
                        },
                    },
                ]
            }
    return schemas


def _report_paths(report: Report) -> Json:
    read = _operation(report, "show", report.summary, refusals=READ_REFUSALS)
    if report.numbers:
        read["parameters"] = [
            parameter(name, {**whole(each.least, each.most), "default": each.default}, each.hint)
            for name, each in report.numbers.items()
        ]
    if report.asked is not None:
        read["parameters"] = asked_with(report.asked)
    methods = {"get": read}
    if report.run is not None:
        title = (report.ran or report.out).__name__
        run = methods["post"] = _operation(
            report, report.run.name, report.run.summary, report.run.body, title=title
        )
        run["requestBody"]["required"] = False
        run["parameters"] = [KEY_PARAMETER]
    root = f"/admin/v1/{report.name}"
    return {root: methods} | {
        root + file.suffix: {"get": _document(report, file)} for file in report.documents
    }


def _paths(resource: Resource, resources: Mapping[str, Resource]) -> Json:
    name, root = resource.name, f"/admin/v1/{resource.name}"
    row = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
    collection: Json = {"get": _list(resource)}
    if resource.create is not None:
        collection["post"] = _create(resource)
    elif resource.batch is not None:
        collection["post"] = _take(resource, resource.batch)
    read = _operation(resource, "get", f"Read one of {name}", refusals=READ_REFUSALS)
    one: Json = {"parameters": [row], "get": read}
    if resource.patch is not None:
        one["patch"] = _operation(
            resource, resource.patch_verb, f"Change one of {name}", resource.patch, later=True
        )
    if resource.deletable:
        delete = one["delete"] = _operation(resource, "delete", f"Delete one of {name}")
        del delete["responses"]["200"]
        delete["responses"]["204"] = {"description": "Deleted."}
    paths: Json = {root: collection, root + "/{id}": one}
    for question in resource.questions:
        paths[f"{root}/{question.name}"] = {"get": _ask(resource, question)}
    for action in resource.actions:
        title = resources["tenant-quotas"].title if action.quota else resource.title
        title = f"{title}Created" if action.mints else title
        act = _operation(resource, action.name, action.summary, action.body, title=title, later=True)
        act["parameters"] = [KEY_PARAMETER]
        paths[f"{root}/{{id}}/{action.name}"] = {"parameters": [row], "post": act}
    for part in resource.parts:
        paths[f"{root}/{{id}}/{part.name}"] = {"parameters": [row], "get": _part(resource, part)}
    for file in resource.documents:
        paths[f"{root}/{{id}}{file.suffix}"] = {"parameters": [row], "get": _document(resource, file)}
    return paths


def _list(resource: Resource) -> Json:
    operation = _operation(
        resource, "list", f"List {resource.name}, {resource.order}", refusals=READ_REFUSALS
    )
    operation["parameters"] = [
        *PAGING,
        parameter("from", {"type": "string", "format": "date-time"}, "Made at this time or later."),
        parameter("to", {"type": "string", "format": "date-time"}, "Made before this time."),
        *(parameter(name, filter_schema(each)) for name, each in resource.filters.items()),
    ]
    return _paged(operation, resource.title)


def _part(resource: Resource, part: Part) -> Json:
    summary = f"{part.summary}, {part.order}"
    operation = _operation(resource, part.name, summary, refusals=READ_REFUSALS)
    operation["parameters"] = list(PAGING)
    return _paged(operation, part.out.__name__)


def _paged(operation: Json, title: str) -> Json:
    operation["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _REF + title}},
            "next_cursor": {"type": ["string", "null"]},
        },
    }
    return operation


def _create(resource: Resource) -> Json:
    title = f"{resource.title}Created" if resource.secret else resource.title
    operation = _operation(
        resource, "create", f"Make one of {resource.name}", resource.create, title=title, later=True
    )
    operation["responses"]["201"] = operation["responses"].pop("200")
    operation["parameters"] = [KEY_PARAMETER]
    return operation


def _take(resource: Resource, batch: Batch) -> Json:
    operation = _operation(
        resource, batch.name, batch.summary, batch.body, title=batch.out.__name__, later=True
    )
    one = {"$ref": _REF + batch.body.__name__}
    schemas = {media: {"type": "array", "items": one} if "batch" in media else one for media in batch.media}
    operation["requestBody"]["content"] = {media: {"schema": each} for media, each in schemas.items()}
    operation["parameters"] = [KEY_PARAMETER]
    return operation


def _ask(resource: Resource, question: Question) -> Json:
    title = question.out.__name__
    operation = _operation(resource, question.name, question.summary, title=title, refusals=READ_REFUSALS)
    operation["parameters"] = asked_with(question.asked)
    return operation


def _document(answered: Answered, file: Document) -> Json:
    schema: Json = {"type": "string", **({} if file.media.startswith("text/") else {"format": "binary"})}
    if file.media.endswith("json"):
        schema = {"type": "object"}
    read = _operation(answered, file.suffix.strip("./"), file.summary, refusals=DOCUMENT_REFUSALS)
    read["responses"]["200"] = {"description": "The document.", "content": {file.media: {"schema": schema}}}
    if file.public:
        read |= {"security": [], "description": "Anybody may ask: it says nothing of what is there."}
    if file.formats:
        asked = {"type": "string", "enum": list(file.formats), "default": file.formats[0]}
        read["parameters"] = [parameter("format", asked, "Else what the Accept header names.")]
    return read


def _operation(
    answered: Answered,
    verb: str,
    summary: str,
    body: type[BaseModel] | None = None,
    *,
    title: str = "",
    later: bool = False,
    refusals: Collection[str] = REFUSALS,
) -> Json:
    content = {"application/json": {"schema": {"$ref": _REF + (title or answered.title)}}}
    responses: Json = {"200": {"description": "Done.", "content": content}}
    if later:
        responses["202"] = {"description": "Stored; applied once Redis is back.", "content": content}
    reads = "400" not in refusals
    roles = answered.access.read if reads else answered.access.writers(verb)
    operation: Json = {
        "operationId": f"{answered.name}.{verb}",
        "tags": [answered.name],
        "summary": summary,
        "description": f"For the roles {', '.join(role for role in ROLES if role in roles)}.",
        "responses": responses | {code: {"$ref": f"#/components/responses/{code}"} for code in refusals},
    }
    if body is not None:
        schema = {"$ref": _REF + body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
