"""Nested values as texts for forms: one name and value on a line, nested ones indented.

The format is the YAML of configuration files, so JSON is read too. A text made from a value is read back as
the same value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from gateway.yaml_reader import UnreadableYaml, documents

# A text that needs no quotes: YAML reads it as this text, or `fit_to` converts it back.
_PLAIN = re.compile(r"[A-Za-z0-9./@+_-]([A-Za-z0-9 ./@+_:-]*[A-Za-z0-9./@+_-])?", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,15}\.[0-9]{1,15}", re.ASCII)
_WORDS = frozenset({"null", "true", "false"})


def read_outline(text: str) -> object:
    """Parse a text as nested lists and mappings; return the text itself if it is not of that form."""
    try:
        values = [document.value for document in documents(text, "", decimals_as_texts=True)]
    except (UnreadableYaml, RecursionError):
        return text
    return values[0] if len(values) == 1 else text


def write_outline(value: object) -> str:
    """Return a value as lines that `read_outline` parses."""
    return "\n".join(_lines(value))


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            if isinstance(inner, Mapping | list) and inner:
                yield f"{_scalar(name)}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{_scalar(name)}: {_scalar(inner)}"
    elif isinstance(value, list) and value:
        for inner in value:
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _scalar(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS and ": " not in value:
        return value
    signs = (sign if sign.isprintable() and sign not in '"\\' else f"\\U{ord(sign):08x}" for sign in value)
    return f'"{"".join(signs)}"'


def fit_to(model: type[BaseModel], name: str, value: object) -> object:
    """Convert a parsed value to the type of a model's field: numbers to texts and back, mappings to lists of pairs."""
    schema = model.model_json_schema()
    return _fit(value, schema["properties"].get(name, {}), schema)


def _fit(value: Any, part: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    shapes = list(_shapes(part, schema))
    if type(value) is int:
        kinds = {shape.get("type") for shape in shapes}
        return value if kinds & {"integer", "number"} or "string" not in kinds else str(value)
    if (
        isinstance(value, str)
        and _DECIMAL.fullmatch(value)
        and {shape.get("type") for shape in shapes} == {"number"}
    ):
        return float(value)
    for shape in shapes:
        if isinstance(value, Mapping) and shape.get("type") == "object":
            known, others = shape.get("properties", {}), shape.get("additionalProperties") or {}
            return {
                name: _fit(inner, known.get(name, others), schema) if known.get(name, others) else inner
                for name, inner in value.items()
            }
        if isinstance(value, Sequence) and not isinstance(value, str) and shape.get("type") == "array":
            return [_fit(inner, shape["items"], schema) for inner in value]
        if isinstance(value, Mapping) and shape.get("type") == "array":
            members = [item.get("properties", {}) for item in _shapes(shape["items"], schema)]
            pair = next((names for names in members if len(names) > 1), None)
            if pair and not any(isinstance(inner, Mapping | list) for inner in value.values()):
                first, second, *_ = pair
                return _fit([{first: item, second: value[item]} for item in value], shape, schema)
    return value


def _shapes(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternative schemas of a value, with references resolved."""
    if "$ref" in part:
        yield from _shapes(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    elif "properties" in part or not (options := part.get("anyOf") or part.get("oneOf")):
        yield part
    else:
        for option in options:
            yield from _shapes(option, schema)
