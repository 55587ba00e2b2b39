"""The command line's description of the Admin API's resources, loaded without their models.

A wheel has it as `commands.json`. A checkout makes it at the first use and keeps it in `build/`. If the description is
of other features than are installed, it is created from the resources.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gateway.admin.resources.form_fields import FormField, IntegerParameter, Secret
from gateway.cli.admin.sections import CliReport, CliResource, CommandParts

GATEWAY = Path(__file__).resolve().parents[2]
FEATURES = GATEWAY / "features"
IN_WHEEL = Path(__file__).with_name("commands.json")
IN_CHECKOUT = GATEWAY.parent / "build" / "commands.json"
# Folders of `gateway` from which the description follows.
SOURCES = ("admin", "cli", "core", "features", "settings")


def installed() -> list[str]:
    """Return the names of the features that are installed."""
    return sorted(file.parent.name for file in FEATURES.glob("*/feature.py"))


@cache
def document() -> dict[str, Any]:
    """Return the description of all resources and commands as JSON, for the features that are installed."""
    with suppress(OSError):
        stored: dict[str, Any] = json.loads(IN_WHEEL.read_bytes())
        return stored if stored["features"] == installed() else _describe()
    return _read_description(IN_CHECKOUT) if (GATEWAY.parent / "pyproject.toml").exists() else _describe()


def _describe() -> dict[str, Any]:
    from gateway.cli.admin.describing import describe

    return describe()


def _read_description(file: Path) -> dict[str, Any]:
    """Return the description that `file` has of today's sources; write it if the file is of others."""
    sources = _hash_of_sources()
    with suppress(OSError, ValueError, KeyError):
        kept: dict[str, Any] = json.loads(file.read_bytes())
        if kept["sources"] == sources:
            return kept
    described = {"sources": sources, **_describe()}
    with suppress(OSError):  # it is made again next time
        file.parent.mkdir(exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(described))
        unfinished.replace(file)
    return described


def _hash_of_sources() -> str:
    """Return a hash of path, size and time of change of all source files."""
    states = [
        f"{path} {state.st_size} {state.st_mtime_ns}"
        for name in SOURCES
        for path in sorted((GATEWAY / name).rglob("*.py"))
        for state in (path.stat(),)
    ]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


@cache
def resource(name: str) -> CliResource:
    """Return the description of a resource; raise KeyError if there is none."""
    described = document()["resources"][name]
    commands = {verb: _parts(parts) for verb, parts in described["commands"].items()}
    secret = None if described["secret"] is None else Secret(**_tuples(described["secret"]))
    own = {"commands": commands, "secret": secret, "parts": _tuples(described["parts"])}
    return CliResource(**_tuples(described) | own)


def resources() -> list[str]:
    return list(document()["resources"])


def reports() -> list[CliReport]:
    return [
        CliReport(**report | {"numbers": _numbers(report["numbers"])}) for report in document()["reports"]
    ]


def _numbers(numbers: Mapping[str, Any]) -> dict[str, IntegerParameter]:
    return {name: IntegerParameter(**number) for name, number in numbers.items()}


def _parts(parts: dict[str, Any]) -> CommandParts:
    fields = tuple(FormField(**_tuples(field)) for field in parts["fields"])
    return CommandParts(**_tuples(parts) | {"fields": fields})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
