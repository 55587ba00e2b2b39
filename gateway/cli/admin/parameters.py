"""Fields of resources as the command line's options and arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from gateway.admin.resources import RESOURCES, Resource
from gateway.admin.resources.fields import Field
from gateway.cli.admin import sections, values
from gateway.cli.admin.client import CommandFailed, find

COMPLETION_ROWS_MAX = 50
COMPLETION_S_MAX = 2.0


def row_argument(resource: Resource, word: str) -> Any:
    """A row of a resource, by its id or what it is named by."""
    by = sections.named_by(resource.name)
    known = by in resource.filters or resource.name in sections.ID_OF
    said = f"Id or {by.removesuffix('_id')}." if known else "Its id."
    return typer.Argument(metavar=word, help=said, autocompletion=completion(resource.name))


def words_argument(fields: Sequence[Field]) -> Any:
    """Fields that are given in order, without their option's name."""
    shown = " ".join(f"[{values.spelled(each.name).upper()}]" for each in fields)
    return typer.Argument(metavar=shown, help="Or by option.", autocompletion=completion(fields[0].refers))


def option(field: Field) -> Any:
    """A field as an option: each of its names, what it is, what may be chosen."""
    long = values.spelled(field.name)
    outer, _, inner = field.name.partition(".")
    names = [f"--{long}"]
    if inner:
        prefix = outer.removesuffix("limits").replace("_", "-")
        names = [f"--{prefix}{sections.SHORT.get(values.spelled(inner), values.spelled(inner))}", *names]
    elif long in sections.SHORT:
        names.insert(0, f"--{sections.SHORT[long]}")
    says = [field.hint, "Id or name." if field.refers else "", "0 is no limit." if inner else ""]
    says += [
        f"By default {field.default}." if field.default else "",
        "NAME=VALUE or JSON." if field.kind == "json" else "",
    ]
    says += ["'none' is none." if field.nullable and not inner else ""]
    told = typer.Option(
        *(["/".join((names[0], names[0].replace("--", "--no-", 1)))] if field.kind == "flag" else names),
        help=" ".join(filter(None, says)),
        autocompletion=completion(field.refers),
        # What may be none is read as text; what else it may be is said all the same.
        metavar=f"<{'|'.join(field.choices)}>" if field.kind == "choice" and field.nullable else None,
    )
    kind: Any = str | None
    if field.kind == "flag":
        kind = bool | None
    elif field.kind in {"lines", "json"}:
        kind = list[str] | None
    elif field.kind == "many":
        kind = list[_choice(field)] | None  # type: ignore[misc]  # made here
    elif field.kind == "choice":
        kind = str | None if field.nullable else _choice(field) | None
    return Annotated[kind, told]


def usual(field: Field) -> Any:
    """The option that takes back what a flag says, which may say nothing."""
    long = values.spelled(field.name)
    return Annotated[bool, typer.Option(f"--usual-{long}", help=f"Neither --{long} nor --no-{long}.")]


def _choice(field: Field) -> Any:
    return StrEnum(field.label.title().replace(" ", ""), {name: name for name in field.choices})


def completion(resource: str) -> Callable[[str], list[str]] | None:
    """Names of a resource's rows for the shell; None where it has none."""
    if not resource:
        return None
    resource = sections.ID_OF.get(resource, resource)
    by = sections.named_by(resource)
    if by not in RESOURCES[resource].filters or by.endswith("_id"):
        return None

    def complete(incomplete: str) -> list[str]:
        with suppress(CommandFailed):  # no names where the Admin API does not answer
            rows = replace(find(), timeout_s=COMPLETION_S_MAX).items(resource, COMPLETION_ROWS_MAX)
            return [row[by] for row in rows if str(row[by] or "").startswith(incomplete)]
        return []

    return complete
