"""What people are asked, made of a resource's own model: each field, how it is labelled, what may be chosen.

The model's JSON schema is the only source: forms and commands ask for exactly what the Admin API takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from typing import Any

from pydantic import BaseModel

from gateway.admin.resources.resource import Answered

Json = Mapping[str, Any]  # JSON schema: any shape

LONG_TEXT_CHARS = 200
# Names that are not said as they are spelled.
PROPER = {"postgresql": "PostgreSQL", "request_id": "Request id", "url": "URL", "api_key_id": "API key"}

_PLAIN = {"integer": "whole", "boolean": "flag", "amount": "amount"}
# What a program sends as null, a person leaves empty.
_NULL = re.compile(r"\bnull\b")


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that is asked; `name` may be `outer.inner`.

    `kind` is text, long, whole, money, amount (of money or a whole number, as the unit of its row says), day,
    instant, flag, choice, many, lines, numbers or json.
    `nullable` says that leaving it empty may be sent as null; `refers` names the resource an id is of;
    `of_texts` says that all a document's values are texts.
    """

    name: str
    kind: str
    required: bool = False
    nullable: bool = False
    hint: str = ""
    choices: tuple[str, ...] = ()
    refers: str = ""
    default: str = ""
    of_texts: bool = False

    @property
    def label(self) -> str:
        """What it is called."""
        return words(self.name.rpartition(".")[2])

    @property
    def group(self) -> str:
        """The heading of the fields it stands together with; empty if it stands alone."""
        outer, _, _ = self.name.rpartition(".")
        return f"{words(outer)} (empty: not limited)" if outer else ""

    @property
    def control(self) -> str:
        """An identifier that a label or an option can point to."""
        name = self.name.replace(".", "_")
        return f"{name}_" if iskeyword(name) else name


@cache
def fields_of(resource: Answered, model: type[BaseModel]) -> tuple[Field, ...]:
    """What is asked for one of the resource's models: of a new row, a change or an action."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    found: list[Field] = []
    for name, part in schema.get("properties", {}).items():
        shape, nullable = _shape(part, schema)
        if name.endswith("limits"):
            found += [Field(f"{name}.{inner}", "whole", nullable=True) for inner in shape["properties"]]
            continue
        kind, choices = _kind(name, shape, schema)
        default = part.get("default")
        found.append(
            Field(
                name,
                kind,
                name in required,
                nullable,
                hint=_NULL.sub("empty", part.get("description", "")),
                choices=choices,
                refers=resource.target(name),
                default="" if default in (None, [], {}) else _text(default),
                of_texts=_of_texts(shape),
            )
        )
    return tuple(found)


def words(name: str) -> str:
    """A field's name as a label."""
    if name in PROPER:
        return PROPER[name]
    text = name.removesuffix("_id").removesuffix("_at").replace("_", " ").replace("-", " ").strip() or name
    return text[:1].upper() + text[1:]


def _shape(part: Json, schema: Json) -> tuple[Json, bool]:
    """The schema behind references and `or null`."""
    if "$ref" in part:
        return schema["$defs"][part["$ref"].rpartition("/")[2]], False
    options: Sequence[Json] = part.get("anyOf", ())
    if options:
        real = [option for option in options if option.get("type") != "null"]
        if [option.get("type") for option in real] == ["string", "integer"]:
            return {"type": "amount"}, len(real) < len(options)
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
    if kind in _PLAIN:
        return _PLAIN[kind], ()
    if kind == "array" and name != "tiers":
        items, _ = _shape(shape["items"], schema)
        if "properties" in items:
            return "json", ()
        if items.get("type") == "number":
            return "numbers", ()
        return ("many", tuple(map(str, items["enum"]))) if "enum" in items else ("lines", ())
    if kind in {"object", "array"}:
        return "json", ()
    if "0-9" in shape.get("pattern", "") and "examples" in shape:
        return "money", ()
    return ("long" if shape.get("maxLength", 0) > LONG_TEXT_CHARS else "text"), ()


def _of_texts(shape: Json) -> bool:
    inner = shape.get("additionalProperties")
    parts: Sequence[Json] = (
        [inner] if isinstance(inner, Mapping) else list(shape.get("properties", {}).values())
    )
    return bool(parts) and all(
        _shape(part, {})[0].get("type") == "string" for part in parts if "$ref" not in part
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return str(value)
