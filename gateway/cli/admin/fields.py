"""From what people type to what the Admin API takes, field by field."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from gateway.admin.resources import resource as resources_resource
from gateway.admin.resources.resource import Batch, Field, Resource
from gateway.admin.resources.values import read_instant
from gateway.cli.admin import output
from gateway.cli.admin.client import ID_DIGITS_MAX, AdminClient, CommandFailed, Json
from gateway.cli.admin.output import AsJson
from gateway.core.text import read_json

NOTHING = ("none", "unlimited")


def number(text: str) -> int:
    """Read a whole number as people write it."""
    found = resources_resource.whole(text)
    if found is None:
        raise ValueError(f"must be a whole number such as 250000, 250,000 or 5M, not {text!r}")
    return found


def value(api: AdminClient, field: Field, said: str | bool | Sequence[str]) -> object:
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


def with_amounts(fields: Sequence[Field], body: Json, known: Callable[[], Json]) -> Json:
    """A body whose amounts are of its row's unit."""
    names = resources_resource.amounts(fields, body)
    if not names:
        return body
    unit = str(body["unit"] if "unit" in body else known()["unit"])
    return body | {name: resources_resource.amount(unit, body[name]) for name in names}


def with_names(
    api: AdminClient, resource: Resource, rows: Sequence[Json], columns: Sequence[str]
) -> list[Json]:
    """Rows for people: beside an id stands the name of what it refers to."""
    named = {
        column: api.names(target, {row[column] for row in rows} - {None})
        for column in columns
        if (target := resource.target(column))
    }
    return [
        row | {name: f"{row[name]} {known[row[name]]}" for name, known in named.items() if row[name] in known}
        for row in rows
    ]


def _one(api: AdminClient, field: Field, said: str) -> object:
    if field.refers:
        return api.id_of(field.refers, said)
    if field.kind == "numbers":
        return [] if said in NOTHING else resources_resource.numbers(said)
    return number(said) if field.kind == "whole" else said


def _item(said: str) -> object:
    return read_json(said) if said.startswith("{") else said


def _document(said: Sequence[str], field: Field) -> object:
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


# Lists of ledgers as an archive has them: nobody's Admin API is asked, so that ids are given as numbers.


# Lists of which archives have rows, and the option that asks one.
ARCHIVED_LISTS = frozenset({"token-ledger", "credit-transactions", "feature-usage", "calls", "audit-log"})
ARCHIVE = (
    Annotated[
        str | None,
        typer.Option("--archive", help="Of archived months: the archive, a directory or s3://bucket/…."),
    ],
    None,
)


def archived_rows(resource: Resource, fields: Sequence[Field], typed: dict[str, Any]) -> list[Json]:
    """The rows of an archive that a list's options ask for, as the Admin API shows them."""
    from gateway.ops.archive import reading  # noqa: PLC0415  # its library is heavy to load
    from gateway.ops.storage import Place  # noqa: PLC0415  # loaded where it is needed

    given = {field: typed[field.control] for field in fields if typed[field.control] not in (None, [])}
    filters = {field.name: _read(field.name, said, _reader(resource, field)) for field, said in given.items()}
    since, until = (
        None if typed[name] is None else _moment(name, typed[name]) for name in ("since", "until")
    )
    asked = reading.Asked(filters, since, until, newest=typed["newest"], limit=typed["limit"])
    with output.waiting("Reading the archive"):
        found = reading.rows(Place(typed["archive"]), resource.name, asked, _say, resource.render)
        return [dict(row) for row in found]


def _say(text: str) -> None:
    output.say(output.escape(text))


def _reader(resource: Resource, field: Field) -> Callable[[str], str | int]:
    if resource.filters[field.name].kind == "uuid":
        return lambda said: str(UUID(said))
    return _number if field.refers or field.kind == "whole" else str


def _number(said: str) -> int:
    if not said.isascii() or not said.isdigit() or len(said) > ID_DIGITS_MAX:
        raise ValueError("must be a number: an archive has ids, and no names")
    return int(said)


def _moment(name: str, said: str) -> datetime:
    found = _read(name, said, read_instant)
    assert isinstance(found, datetime)
    return found


def _read(name: str, said: Any, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(said)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{spelled(name)}") from error


# `tollkeeper event send FILE`, and its like: a file of many, of which some may be refused.


File = Annotated[
    str,
    typer.Argument(help="A JSON file of one or a list, or a JSON object a line; - is what comes in."),
]


def sends(resource: Resource, batch: Batch) -> Callable[..., None]:
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
