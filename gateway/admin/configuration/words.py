"""The words of configuration files: kinds, fields, and the order in which rows can be created.

All of it is derived from the resources. A file names another row instead of its id, so `plan_id` is `plan`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import ConfigDeclaration, Resource
from gateway.admin.resources.values import DECIMAL, In

Json = dict[str, Any]  # JSON schema: any shape

_ID = "_id"


def declared(resource: Resource) -> ConfigDeclaration:
    assert resource.declared is not None
    return resource.declared


def model(resource: Resource) -> type[In]:
    assert resource.create is not None
    return resource.create


@cache
def references(resource: Resource) -> Mapping[str, str]:
    """Return the fields with ids of rows, and the resource of each; the widest owner comes first."""
    fields = ((name, resource.target(name)) for name in model(resource).model_fields if name.endswith(_ID))
    return {name: target for name, target in fields if target}


@cache
def words(resource: Resource) -> Mapping[str, str]:
    """Return the resource's fields by their names in files, without `_id` at the end of a reference."""
    ids = references(resource)
    return {name.removesuffix(_ID) if name in ids else name: name for name in model(resource).model_fields}


def word(resource: Resource, field: str) -> str:
    return field.removesuffix(_ID) if field in references(resource) else field


def _ordered() -> Iterator[Resource]:
    """Yield the resources of files, each after all resources that it refers to."""
    left = {name: resource for name, resource in RESOURCES.items() if resource.declared is not None}
    while left:
        for name, resource in left.items():
            if not {*references(resource).values(), *declared(resource).after} & left.keys():
                yield left.pop(name)
                break
        else:
            raise AssertionError(f"{', '.join(left)} refer to each other")


KINDS: Mapping[str, Resource] = {resource.name: resource for resource in _ordered()}


def near(said: str, known: Collection[str]) -> str:
    """Return a hint with the most similar known word, or with all known words if none is similar."""
    found = difflib.get_close_matches(said, known, 1)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(known)}"


def schema() -> Json:
    _, made = models_json_schema(
        [(model(resource), "validation") for resource in KINDS.values()], ref_template="#/$defs/{model}"
    )
    defs: Json = made["$defs"]
    for resource in KINDS.values():
        _say(resource, defs[model(resource).__name__])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tollkeeper configuration",
        "description": "A document of `tollkeeper apply`: objects by their kind.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {
                "type": "array",
                "description": resource.description,
                "items": {"$ref": f"#/$defs/{model(resource).__name__}"},
            }
            for name, resource in KINDS.items()
        },
        "$defs": defs,
    }


def _say(resource: Resource, shape: Json) -> None:
    """Rename the fields of a model's schema to their words in files."""
    how, ids = declared(resource), references(resource)
    shape["properties"] = {
        word(resource, name): _reference_schema(KINDS[ids[name]], part) if name in ids else part
        for name, part in shape["properties"].items()
    }
    required = {*shape.get("required", ()), *how.needs} - {how.since}
    shape["required"] = [said for said, name in words(resource).items() if name in required]


def _reference_schema(target: Resource, part: Json) -> Json:
    """Return the schema of a reference: a name, or an object if a name alone is not unique."""
    how = declared(target)
    says = {
        "type": "object",
        "additionalProperties": False,
        "properties": {word(target, name): {"type": ["string", "object", "null"]} for name in how.by},
        "required": [word(target, how.by[-1])],
    }
    options: list[Json] = [{"type": "string"}, *([says] if len(how.by) > 1 else [])]
    if any(each.get("type") == "null" for each in part.get("anyOf", ())):
        options.append({"type": "null"})
    told = f"Of {target.name}, by {word(target, how.by[-1])}."
    return {"anyOf": options, "description": " ".join(filter(None, (part.get("description"), told)))}


# Compares wanted and stored values, regardless of their notation.
def same(wanted: object, stored: object) -> bool:
    """Return whether two values are equal: numbers by value, and an empty document equals null."""
    if isinstance(wanted, dict) or isinstance(stored, dict):
        return _document(wanted or {}) == _document(stored or {})
    if isinstance(wanted, str) and isinstance(stored, Decimal):
        return _document(wanted) == stored
    if isinstance(wanted, list) and isinstance(stored, list):
        return _document(wanted) == _document(stored)
    return wanted == stored


def _document(value: object) -> object:
    """Return a JSON value in a form for comparisons: decimal texts become numbers, nulls are removed."""
    if isinstance(value, dict):
        return {name: _document(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_document(each) for each in value]
    if isinstance(value, str) and DECIMAL.fullmatch(value):
        return Decimal(value)
    return value


# Suggestions for unknown names. The number of comparisons is bounded.

# Maxima of suggestions: of unknown names, of candidates, and of a name's length.
SUGGESTED_MAX = 5
CANDIDATES_MAX = 200
CHARS_MAX = 64


def suggestion(name: object, known: Iterable[object]) -> str | None:
    """Return the most similar of the first `CANDIDATES_MAX` known names; None if none is similar."""
    said = str(name)
    if len(said) > CHARS_MAX:
        return None
    some = (str(each) for each in islice(known, CANDIDATES_MAX) if each)
    near = difflib.get_close_matches(said, [each for each in some if len(each) <= CHARS_MAX], 1)
    return near[0] if near else None
