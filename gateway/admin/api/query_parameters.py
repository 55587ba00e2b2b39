"""Query parameters as the OpenAPI document has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.admin.http.listing import LIMIT_DEFAULT, LIMIT_MAX
from gateway.admin.resources.resource import Filter

Json = dict[str, Any]  # JSON as OpenAPI has it: any shape

_SCHEMAS: Mapping[str, Json] = {
    "id": {"type": "integer", "minimum": 1},
    "count": {"type": "integer", "minimum": 0},
    "text": {"type": "string"},
    "uuid": {"type": "string", "format": "uuid"},
    "flag": {"type": "boolean"},
}


def parameter(name: str, schema: Json, description: str = "") -> Json:
    """One parameter of a query."""
    made = {"name": name, "in": "query", "schema": schema}
    return {**made, "description": description} if description else made


def whole(least: int, most: int) -> Json:
    """A whole number between two."""
    return {"type": "integer", "minimum": least, "maximum": most}


def filter_schema(wanted: Filter) -> Json:
    """What a filter may be."""
    choices = {"enum": list(wanted.choices)} if wanted.choices else {}
    return {**_SCHEMAS[wanted.kind], **choices}


PAGING = (
    parameter("limit", {**whole(1, LIMIT_MAX), "default": LIMIT_DEFAULT}),
    parameter("cursor", {"type": "string"}, "`next_cursor` of the page before, with the same filters."),
    parameter("order", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}),
)
