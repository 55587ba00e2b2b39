"""Form fields made of a resource's own model: what is asked, how it is labelled, what may be chosen.

The model's JSON schema is the only source, so a form asks for exactly what the Admin API takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from gateway.admin.console import shown

Json = Mapping[str, Any]  # JSON schema: any shape

LONG_TEXT_CHARS = 200
# Fields that take a document; an example says more than a schema.
EXAMPLES = {
    "pricing": '{"tiers": [{"up_to": 1000, "unit_price": "0.002"}, {"up_to": null, "unit_price": "0.001"}]}\n'
    'or {"per_million": {"*": {"input": 500, "output": 1500}}}',
    "changes": '{"amount": 120}',
}
# What an id refers to, where it is the same everywhere.
REFERS = {
    "organization_id": "organizations",
    "tenant_id": "tenants",
    "service_id": "services",
    "feature_id": "services",
    "business_model_id": "business-models",
    "token_plan_id": "token-plans",
    "user_id": "users",
    "added_by_id": "users",
    "webhook_id": "webhooks",
    "corrects_id": "invoices",
}


# What a program sends as null, a person leaves empty.
_NULL = re.compile(r"\bnull\b")


@dataclass(frozen=True, slots=True)
class Field:
    """One control of a form; `name` may be `outer.inner`.

    `kind` is text, long, whole, money, day, instant, flag, choice, many, lines or json.
    `nullable` says that leaving it empty may be sent as null; fields of one `group` stand together.
    """

    name: str
    kind: str
    label: str
    required: bool = False
    nullable: bool = False
    hint: str = ""
    choices: tuple[str, ...] = ()
    refers: str = ""
    default: str = ""
    group: str = ""

    @property
    def control(self) -> str:
        """An id that a label can point to."""
        return self.name.replace(".", "-")


@cache
def fields_of(model: type[BaseModel], refers: tuple[tuple[str, str], ...] = ()) -> tuple[Field, ...]:
    """The fields of a form for a model; `refers` says what ids of this resource refer to."""
    schema = model.model_json_schema()
    known = {**REFERS, **dict(refers)}
    found: list[Field] = []
    for name, part in schema.get("properties", {}).items():
        found += _fields(name, part, schema, known, required=name in schema.get("required", ()))
    return tuple(found)


def _fields(name: str, part: Json, schema: Json, known: Mapping[str, str], *, required: bool) -> list[Field]:
    shape, nullable = _shape(part, schema)
    if "properties" in shape and name.endswith("limits"):
        return [
            Field(
                f"{name}.{inner}",
                "whole",
                shown.words(inner),
                nullable=True,
                group=f"{shown.words(name)} (empty: not limited)",
            )
            for inner in shape["properties"]
        ]
    kind, choices = _kind(name, shape, schema)
    default = part.get("default")
    return [
        Field(
            name,
            kind,
            shown.words(name),
            required=required,
            nullable=nullable,
            hint=_NULL.sub("empty", part.get("description", "")),
            choices=choices,
            refers=known.get(name, ""),
            default="" if default is None or default == [] else _text(default),
        )
    ]


def _shape(part: Json, schema: Json) -> tuple[Json, bool]:
    """The schema behind references and `or null`."""
    if "$ref" in part:
        return schema["$defs"][part["$ref"].rpartition("/")[2]], False
    options: Sequence[Json] = part.get("anyOf", ())
    if options:
        real = [option for option in options if option.get("type") != "null"]
        shape, _ = _shape(real[0], schema)
        return shape, len(real) < len(options)
    return part, False


def _kind(name: str, shape: Json, schema: Json) -> tuple[str, tuple[str, ...]]:
    if "enum" in shape:
        return "choice", tuple(map(str, shape["enum"]))
    if "const" in shape:
        return "choice", (str(shape["const"]),)
    if shape.get("format") == "date":
        return "day", ()
    if shape.get("format") == "date-time":
        return "instant", ()
    kind = shape.get("type")
    if kind == "integer":
        return "whole", ()
    if kind == "boolean":
        return "flag", ()
    if kind == "array" and name != "tiers":
        items, _ = _shape(shape["items"], schema)
        if "properties" in items:
            return "json", ()
        return ("many", tuple(map(str, items["enum"]))) if "enum" in items else ("lines", ())
    if kind in {"object", "array"}:
        return "json", ()
    if "0-9" in shape.get("pattern", "") and "examples" in shape:
        return "money", ()
    return ("long" if shape.get("maxLength", 0) > LONG_TEXT_CHARS else "text"), ()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
