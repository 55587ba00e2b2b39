"""Query parameters as the OpenAPI document has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from gateway.admin.http.listing import FILTER_CHARS_MAX, LIMIT_DEFAULT, LIMIT_MAX
from gateway.admin.resources.paging import Cursor
from gateway.admin.resources.resource import Filter

Json = dict[str, Any]  # JSON as OpenAPI has it: any shape


def whole(least: int, most: int) -> Json:
    """A whole number between two."""
    return {"type": "integer", "minimum": least, "maximum": most}


_SCHEMAS: Mapping[str, Json] = {
    "text": {"type": "string", "minLength": 1, "maxLength": FILTER_CHARS_MAX},
    "uuid": {"type": "string", "format": "uuid"},
    "flag": {"type": "boolean"},
}


def parameter(name: str, schema: Json, description: str = "") -> Json:
    """One parameter of a query."""
    made = {"name": name, "in": "query", "schema": schema}
    return {**made, "description": description} if description else made


def filter_schema(wanted: Filter) -> Json:
    """What a filter may be."""
    if wanted.kind in {"id", "count"}:
        return whole(int(wanted.kind == "id"), wanted.most)
    return {"type": "string", "enum": list(wanted.choices)} if wanted.choices else _SCHEMAS[wanted.kind]


def asked_with(model: type[BaseModel]) -> list[Json]:
    """The parameters that a model reads a query into. None of them can be null: it is left out then."""
    asked = model.model_json_schema()
    return [
        parameter(name, _said(schema), schema.get("description"))
        | {"required": name in asked.get("required", ())}
        for name, schema in asked["properties"].items()
    ]


def _said(schema: Json) -> Json:
    said = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(said) != 1:
        return schema
    plain: Json = {name: each for name, each in schema.items() if name not in {"anyOf", "default"}}
    plain.update(said[0])
    return plain


PAGING = (
    parameter("limit", {**whole(1, LIMIT_MAX), "default": LIMIT_DEFAULT}),
    parameter(
        "cursor",
        TypeAdapter(Cursor).json_schema(),
        "`next_cursor` of the page before, with the same filters.",
    ),
    parameter("order", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}),
)
