"""What the command line knows of the Admin API's resources, without loading their models.

`commands.json` is written from the resources by `make docs`. Where other features are installed than those it
was written with, the resources are asked themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gateway.admin.resources.form_fields import REFERS, FormField, IntegerParameter, Secret

FILE = Path(__file__).with_name("commands.json")
FEATURES = Path(__file__).resolve().parents[2] / "features"


@dataclass(frozen=True, slots=True)
class CommandParts:
    """One command of a resource: what it `does` to rows, its fields, and those that need no option's name."""

    does: str
    summary: str
    fields: tuple[FormField, ...] = ()
    positional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CliResource:
    """A resource of the Admin API.

    `filters` are those of its list, `columns` what a table shows of it. `parts` are lists within a row with
    their columns, `asks` its questions, `mints` the actions that make a secret, `batch` the name and summary
    of the command that sends a file of many. Rows of an `archived` one may be read elsewhere.
    """

    name: str
    description: str
    named_by: str
    filters: tuple[str, ...]
    refers: Mapping[str, str]
    columns: tuple[str, ...]
    commands: Mapping[str, CommandParts]
    parts: Mapping[str, tuple[str, ...]]
    asks: tuple[str, ...]
    mints: tuple[str, ...]
    secret: Secret | None = None
    batch: tuple[str, str] | None = None
    archived: bool = False

    def target(self, name: str) -> str:
        """The resource whose id a field of this one holds; empty if it holds none."""
        return self.refers.get(name) or REFERS.get(name, "")


@dataclass(frozen=True, slots=True)
class CliReport:
    """A report of the Admin API that has a command."""

    name: str
    description: str
    summary: str
    numbers: Mapping[str, IntegerParameter]


def installed() -> list[str]:
    """The names of the features that are installed."""
    return sorted(one.parent.name for one in FEATURES.glob("*/feature.py"))


@cache
def document() -> dict[str, Any]:
    """All that is known, as it is written."""
    found: dict[str, Any] = json.loads(FILE.read_bytes())
    if found["features"] != installed():
        from gateway.cli.admin.describing import describe  # noqa: PLC0415  # heavy

        return describe()
    return found


@cache
def resource(name: str) -> CliResource:
    """A resource by its name; KeyError where there is none."""
    said = document()["resources"][name]
    commands = {verb: _parts(one) for verb, one in said["commands"].items()}
    secret = None if said["secret"] is None else Secret(**_tuples(said["secret"]))
    batch = None if said["batch"] is None else (said["batch"][0], said["batch"][1])
    return CliResource(
        **_tuples(said) | {
            "commands": commands, "secret": secret, "batch": batch, "parts": _tuples(said["parts"]),
        }
    )  # fmt: skip


def resources() -> list[str]:
    return list(document()["resources"])


def reports() -> list[CliReport]:
    return [CliReport(**one | {"numbers": _numbers(one["numbers"])}) for one in document()["reports"]]


def _numbers(said: Mapping[str, Any]) -> dict[str, IntegerParameter]:
    return {name: IntegerParameter(**one) for name, one in said.items()}


def _parts(said: dict[str, Any]) -> CommandParts:
    fields = tuple(FormField(**_tuples(one)) for one in said["fields"])
    return CommandParts(**_tuples(said) | {"fields": fields})


def _tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in said.items()}
