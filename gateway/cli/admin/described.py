"""The command line's description of the Admin API's resources, loaded without their models.

`make docs` writes `commands.json` from the resources. If other features are installed than at that time, the
description is created from the resources instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gateway.admin.resources.form_fields import FormField, IntegerParameter, Secret
from gateway.cli.admin.sections import CliReport, CliResource, CommandParts

FILE = Path(__file__).with_name("commands.json")
FEATURES = Path(__file__).resolve().parents[2] / "features"


def installed() -> list[str]:
    """Return the names of the features that are installed."""
    return sorted(one.parent.name for one in FEATURES.glob("*/feature.py"))


@cache
def document() -> dict[str, Any]:
    """Return the description of all resources and commands as JSON, for the features that are installed."""
    found: dict[str, Any] = json.loads(FILE.read_bytes())
    if found["features"] != installed():
        from gateway.cli.admin.describing import describe  # noqa: PLC0415  # heavy

        return describe()
    return found


@cache
def resource(name: str) -> CliResource:
    """Return the description of a resource; raise KeyError if there is none."""
    said = document()["resources"][name]
    commands = {verb: _parts(one) for verb, one in said["commands"].items()}
    secret = None if said["secret"] is None else Secret(**_tuples(said["secret"]))
    own = {"commands": commands, "secret": secret, "parts": _tuples(said["parts"])}
    return CliResource(**_tuples(said) | own)


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
