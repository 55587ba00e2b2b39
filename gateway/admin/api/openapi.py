"""The OpenAPI 3.1 document, made from the same table that makes the routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.admin.http.idempotency import KEY_PARAMETER
from gateway.admin.http.listing import LIMIT_DEFAULT, LIMIT_MAX
from gateway.admin.resources.resource import Answered, Document, Filter, Question, Report, Resource

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
    "403": "This token may only read.",
    "404": "There is no such row.",
    "409": "Contradicts what is stored, or the Idempotency-Key was used for something else.",
    "413": "The body is too large.",
    "415": "The body has a Content-Encoding.",
    "422": "Some fields are wrong; `errors` names them.",
    "503": "PostgreSQL does not answer.",
}
READ_REFUSALS = ("401", "404", "422", "503")

_FILTER_SCHEMAS: Mapping[str, Json] = {
    "id": {"type": "integer", "minimum": 1},
    "count": {"type": "integer", "minimum": 0},
    "text": {"type": "string"},
    "uuid": {"type": "string", "format": "uuid"},
    "flag": {"type": "boolean"},
}


def document(resources: Mapping[str, Resource], reports: Mapping[str, Report], *, version: str) -> Json:
    """Describe every resource and every report; the answer is JSON, ready to be sent."""
    paths: Json = {}
    for report in reports.values():
        paths |= _report_paths(report)
    for resource in resources.values():
        paths |= _paths(resource, resources)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper Admin API",
            "version": version,
            "description": "Administration of organizations, tenants, credentials, plans and quotas. "
            "Amounts are integers below 2^53, money is a decimal in a string, times are RFC 3339 UTC.",
        },
        "security": [{"token": []}],
        "tags": [
            {"name": each.name, "description": each.description}
            for each in (*resources.values(), *reports.values())
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(resources, reports),
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
        if report.run is not None and report.run.body is not None:
            models.append((report.run.body, "validation"))
    for resource in resources.values():
        models.append((resource.out, "serialization"))
        models += [(question.out, "serialization") for question in resource.questions]
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
            _parameter(name, {**_whole(each.least, each.most), "default": each.default}, each.hint)
            for name, each in report.numbers.items()
        ]
    if report.asked is not None:
        read["parameters"] = _asked(report.asked)
    methods = {"get": read}
    if report.run is not None:
        run = methods["post"] = _operation(report, report.run.name, report.run.summary, report.run.body)
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
        act = _operation(resource, action.name, action.summary, action.body, title=title, later=True)
        act["parameters"] = [KEY_PARAMETER]
        paths[f"{root}/{{id}}/{action.name}"] = {"parameters": [row], "post": act}
    for file in resource.documents:
        paths[f"{root}/{{id}}{file.suffix}"] = {"parameters": [row], "get": _document(resource, file)}
    return paths


def _list(resource: Resource) -> Json:
    operation = _operation(
        resource, "list", f"List {resource.name}, {resource.order}", refusals=READ_REFUSALS
    )
    operation["parameters"] = [
        _parameter("limit", {**_whole(1, LIMIT_MAX), "default": LIMIT_DEFAULT}),
        _parameter("cursor", {"type": "string"}, "`next_cursor` of the page before, with the same filters."),
        _parameter("order", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}),
        _parameter("from", {"type": "string", "format": "date-time"}, "Made at this time or later."),
        _parameter("to", {"type": "string", "format": "date-time"}, "Made before this time."),
        *(_parameter(name, _filter_schema(each)) for name, each in resource.filters.items()),
    ]
    operation["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _REF + resource.title}},
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


def _ask(resource: Resource, question: Question) -> Json:
    title = question.out.__name__
    operation = _operation(resource, question.name, question.summary, title=title, refusals=READ_REFUSALS)
    operation["parameters"] = _asked(question.asked)
    return operation


def _asked(model: type[BaseModel]) -> list[Json]:
    asked = model.model_json_schema()
    return [
        _parameter(name, schema, schema.get("description")) | {"required": name in asked.get("required", ())}
        for name, schema in asked["properties"].items()
    ]


def _document(answered: Answered, file: Document) -> Json:
    binary = {} if file.media.startswith("text/") else {"format": "binary"}
    content = {file.media: {"schema": {"type": "string", **binary}}}
    read = _operation(answered, file.suffix.strip("./"), file.summary, refusals=READ_REFUSALS)
    read["responses"]["200"] = {"description": "The document.", "content": content}
    return read


def _operation(
    answered: Answered,
    verb: str,
    summary: str,
    body: type[BaseModel] | None = None,
    *,
    title: str = "",
    later: bool = False,
    refusals: Iterable[str] = REFUSALS,
) -> Json:
    content = {"application/json": {"schema": {"$ref": _REF + (title or answered.title)}}}
    responses: Json = {"200": {"description": "Done.", "content": content}}
    if later:
        responses["202"] = {"description": "Stored; applied once Redis is back.", "content": content}
    operation: Json = {
        "operationId": f"{answered.name}.{verb}",
        "tags": [answered.name],
        "summary": summary,
        "responses": responses | {code: {"$ref": f"#/components/responses/{code}"} for code in refusals},
    }
    if body is not None:
        schema = {"$ref": _REF + body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _parameter(name: str, schema: Json, description: str = "") -> Json:
    parameter = {"name": name, "in": "query", "schema": schema}
    return {**parameter, "description": description} if description else parameter


def _whole(least: int, most: int) -> Json:
    return {"type": "integer", "minimum": least, "maximum": most}


def _filter_schema(wanted: Filter) -> Json:
    choices = {"enum": list(wanted.choices)} if wanted.choices else {}
    return {**_FILTER_SCHEMAS[wanted.kind], **choices}
