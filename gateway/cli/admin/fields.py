"""From what people type to what the Admin API takes, field by field."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.admin.resources import resource as resources_resource
from gateway.admin.resources.resource import BatchEndpoint, FormField, Resource
from gateway.cli.admin import output
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.output import AsJson
from gateway.core.text import read_json

NOTHING = ("none", "unlimited")


def number(text: str) -> int:
    """Read a whole number as people write it."""
    found = resources_resource.whole(text)
    if found is None:
        raise ValueError(f"must be a whole number such as 250000, 250,000 or 5M, not {text!r}")
    return found


def value(api: AdminClient, field: FormField, said: str | bool | Sequence[str]) -> object:
    """What a field is sent as; `CommandFailed` names the option."""
    try:
        if isinstance(said, bool):
            return said
        if isinstance(said, str):
            return None if field.nullable and said in NOTHING else _one(api, field, said)
        if field.nullable and len(said) == 1 and said[0] in NOTHING:
            return None
        return _document(said, field) if field.kind == "json" else [_item(each) for each in said]
    except ValueError as error:
        raise CommandFailed(f"--{spelled(field.name)} {error}.") from error


def spelled(name: str) -> str:
    """An option's long name: that of its field, an id by what it is of."""
    return name.removesuffix("_id").replace(".", "-").replace("_", "-")


def in_query(body: Json) -> Json:
    """A body as a query: what is in a document by its name and the inner one."""
    inner = {
        f"{name}.{key}": each
        for name, value in body.items()
        if isinstance(value, dict)
        for key, each in value.items()
    }
    return {name: value for name, value in body.items() if not isinstance(value, dict)} | inner


def with_limits(body: Json, known: Callable[[], Json]) -> Json:
    """A body whose limits are put over those of the row as it is; 0 takes one away."""
    given = [name for name in body if name.endswith("limits")]
    row = known() if given else {}
    merged = {name: {**row.get(name, {}), **body[name]} for name in given}
    return body | {name: {key: most for key, most in each.items() if most} for name, each in merged.items()}


def with_amounts(fields: Sequence[FormField], body: Json, known: Callable[[], Json]) -> Json:
    """A body whose amounts are of its row's unit."""
    names = resources_resource.amounts(fields, body)
    if not names:
        return body
    unit = str(body["unit"] if "unit" in body else known()["unit"])
    return body | {name: resources_resource.amount(unit, body[name]) for name in names}


def with_names(
    api: AdminClient, resource: Resource, rows: Sequence[Json], columns: Sequence[str]
) -> list[Json]:
    """Rows for people: beside an id stands the name behind it."""
    named = {
        column: api.names(target, {row[column] for row in rows} - {None})
        for column in columns
        if (target := resource.target(column))
    }
    return [
        row | {name: f"{row[name]} {known[row[name]]}" for name, known in named.items() if row[name] in known}
        for row in rows
    ]


def _one(api: AdminClient, field: FormField, said: str) -> object:
    if field.refers:
        return api.id_of(field.refers, said)
    if field.kind == "numbers":
        return [] if said in NOTHING else resources_resource.numbers(said)
    return number(said) if field.kind == "whole" else said


def _item(said: str) -> object:
    return read_json(said) if said.startswith("{") else said


def _document(said: Sequence[str], field: FormField) -> object:
    """One JSON document, or NAME=VALUE as often as there are facts."""
    if len(said) == 1 and said[0].lstrip().startswith(("{", "[")):
        try:
            return read_json(said[0])
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from error
    facts = dict(each.partition("=")[::2] for each in said if "=" in each)
    if len(facts) < len(said):
        raise ValueError("must be JSON, or NAME=VALUE such as amount=12, each NAME once")
    return facts if field.of_texts else {name: _fact(text) for name, text in facts.items()}


def _fact(text: str) -> object:
    with suppress(ValueError):
        return read_json(text)
    return text


@dataclass(frozen=True, slots=True)
class ListSource:
    """Another place that has rows of some lists: an option names it, `rows` reads what the others ask for."""

    name: str
    option: Any
    resources: frozenset[str]
    rows: Callable[[Resource, Sequence[FormField], dict[str, Any]], list[Json]]


def read_option(name: str, said: Any, reader: Callable[[str], Any]) -> Any:
    """What an option says, by `reader`; a `ValueError` of it names the option."""
    try:
        return reader(said)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{spelled(name)}") from error


# `tollkeeper event send FILE`, and its like: a file of many; some may be refused.


File = Annotated[
    str,
    typer.Argument(help="A JSON file of one or a list, or a JSON object a line; - is what comes in."),
]


def sends(resource: Resource, batch: BatchEndpoint) -> Callable[..., None]:
    """The command that sends a file of many; its status is 1 where some are refused."""

    def send(file: File, as_json: AsJson = False) -> None:
        with output.admin() as api:
            answer = api.post(resource.name, _read_file(file))
            output.report(answer, "Rejected", inner="rejected", as_json=as_json)
        if answer["rejected"]:
            raise typer.Exit(1)

    send.__doc__ = f"{batch.summary}."
    return send


def _read_file(name: str) -> Json | list[Json]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CommandFailed(f"{name} cannot be read: {error}.") from error
    try:
        found: Json | list[Json] = read_json(text)
    except ValueError:
        try:
            found = [read_json(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise CommandFailed(f"{name} is no JSON: {error}.") from error
    return found
