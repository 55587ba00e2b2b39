"""Lists of ledgers from an archive. They do not use the Admin API, so ids must be given as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from gateway.admin.resources.form_fields import FormField
from gateway.cli.admin import output
from gateway.cli.admin.client import ID_DIGITS_MAX, CommandFailed, Json
from gateway.cli.admin.commands import ListSource, read_option
from gateway.cli.admin.sections import CliResource

if TYPE_CHECKING:
    from gateway.admin.resources.resource import Resource

# The lists whose rows archives have, and the option that names an archive.
LISTS = frozenset({"token-ledger", "credit-transactions", "feature-usage", "calls", "audit-log"})
ARCHIVE = (
    Annotated[
        str | None,
        typer.Option("--archive", help="Of archived months: the archive, a directory or s3://bucket/…."),
    ],
    None,
)


def archived_rows(described: CliResource, fields: Sequence[FormField], typed: dict[str, Any]) -> list[Json]:
    """Return the rows of an archive that a list's options select, as the Admin API shows them."""
    from gateway.admin.resources.registry import RESOURCES  # heavy, and only rows need it
    from gateway.features.archive import reading  # its library is heavy to load
    from gateway.ops.storage import FileStore

    resource = RESOURCES[described.name]
    given = {field: typed[field.control] for field in fields if typed[field.control] not in (None, [])}
    if any(field.name not in resource.filters for field in given):
        raise CommandFailed("--tags: an archive is not searched by tags: ask by another option")
    filters = {
        field.name: read_option(field.name, text, _reader(resource, field)) for field, text in given.items()
    }
    since, until = (
        None if typed[name] is None else _moment(name, typed[name]) for name in ("since", "until")
    )
    asked = reading.RowFilter(filters, since, until, newest=typed["newest"], limit=typed["limit"])
    with output.waiting("Reading the archive"):
        rows = reading.rows(FileStore(typed["archive"]), resource.name, asked, _say, resource.render)
        return [dict(row) for row in rows]


def _say(text: str) -> None:
    output.say(output.escape(text))


def _reader(resource: Resource, field: FormField) -> Callable[[str], str | int]:
    if resource.filters[field.name].kind == "uuid":
        return lambda text: str(UUID(text))
    return _number if field.refers or field.kind == "whole" else str


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > ID_DIGITS_MAX:
        raise ValueError("must be a number: an archive has ids, and no names")
    return int(text)


def _moment(name: str, text: str) -> datetime:
    from gateway.admin.resources.values import read_instant  # heavy, as above

    option = read_option(name, text, read_instant)
    assert isinstance(option, datetime)
    return option


SOURCE = ListSource("archive", ARCHIVE, LISTS, archived_rows)
