"""The words of configuration files: kinds, fields, and the order in which rows can be created.

All of it is derived from the resources. A file names another row instead of its id, so `plan_id` is `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import Field, create_model
from pydantic.json_schema import models_json_schema

from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import ConfigDeclaration, PartsDeclaration, Resource
from gateway.admin.resources.values import In
from gateway.core.accounts.administration import Row

Json = dict[str, Any]  # JSON schema: any shape

_ID = "_id"


def declared(resource: Resource) -> ConfigDeclaration:
    assert resource.declared is not None
    return resource.declared


@cache
def model(resource: Resource) -> type[In]:
    """Return the model of an object: that of a new row, with the parts that are no fields of the row."""
    assert resource.create is not None
    parts = declared(resource).parts
    further = parts.keys() - resource.create.model_fields.keys()
    fields: dict[str, Any] = {
        part.name: (list[part.form_of(part.put)], Field(default=[], max_length=parts[part.name].most))  # type: ignore[misc]  # made here
        for part in resource.parts
        if part.name in further and part.put is not None
    }
    if not fields:
        return resource.create
    made: type[In] = create_model(resource.create.__name__, __base__=resource.create, **fields)
    made.__doc__ = resource.create.__doc__
    return made


def parts_of(resource: Resource, row: Row, name: str) -> list[Any]:
    """Return the parts of a stored row as JSON, with ids where files have names."""
    stored: Any = row[name]
    part = next(part for part in resource.parts if part.name == name)
    return stored if part.out is None else [part.render({**row, **own}) for own in stored]


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A part of a list whose key names a row of `kind`, after the text `prefix`: the row with the id `row_id`."""

    index: int
    kind: str
    prefix: str
    row_id: int


def named_parts(resource: Resource, row: Row, name: str, parts: Sequence[Any]) -> Iterator[NamedPart]:
    """Yield those of a stored row's `parts` that name rows."""
    how = declared(resource).parts[name]
    for index, part in enumerate(parts):
        key = part[how.key] if how.key else part
        kind, prefix = how.names(row, key)
        if kind:
            yield NamedPart(index, kind, prefix, int(str(key).removeprefix(prefix)))


def with_keys(key: str, parts: Sequence[Any], keys: Mapping[int, object]) -> list[Any]:
    """Return parts with other keys in the field `key`, "" for the parts themselves; `keys` are by place."""

    def with_key(index: int, part: Any) -> Any:
        if index not in keys:
            return part
        return {**part, key: keys[index]} if key else keys[index]

    return [with_key(index, part) for index, part in enumerate(parts)]


def without_nulls(resource: Resource, name: str, part: Any) -> Any:
    """Return a part of a list without nulls in fields that may be left out."""
    if not isinstance(part, dict):
        return part
    [part_model] = get_args(model(resource).model_fields[name].annotation)
    return {
        field: value
        for field, value in part.items()
        if value is not None or part_model.model_fields[field].is_required()
    }


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


def schema() -> Json:
    """Return the JSON Schema of a configuration document."""
    _, made = models_json_schema(
        [(model(resource), "validation") for resource in KINDS.values()], ref_template="#/$defs/{model}"
    )
    defs: Json = made["$defs"]
    for resource in KINDS.values():
        _say(resource, defs)
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


def _say(resource: Resource, defs: Mapping[str, Json]) -> None:
    """Rename the fields of a model's schema to their words in files."""
    shape = defs[model(resource).__name__]
    how, ids = declared(resource), references(resource)
    shape["properties"] = {
        word(resource, name): _reference_schema(KINDS[ids[name]], part) if name in ids else part
        for name, part in shape["properties"].items()
    }
    for name, parts in how.parts.items():
        _say_keys(parts, shape["properties"][name]["items"], defs)
    required = {*shape.get("required", ()), *how.needs} - {how.since}
    shape["required"] = [field for field, name in words(resource).items() if name in required]


def _say_keys(how: PartsDeclaration, items: Json, defs: Mapping[str, Json]) -> None:
    """Allow objects of names as keys in the schema of parts."""
    if how.key:
        fields = defs[items["$ref"].rpartition("/")[2]]["properties"]
        fields[how.key] = {"anyOf": [fields[how.key], {"type": "object"}]}
    else:
        items["anyOf"].append({"type": "object"})


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
    if any(choice.get("type") == "null" for choice in part.get("anyOf", ())):
        options.append({"type": "null"})
    sentence = f"Of {target.name}, by {word(target, how.by[-1])}."
    return {"anyOf": options, "description": " ".join(filter(None, (part.get("description"), sentence)))}
