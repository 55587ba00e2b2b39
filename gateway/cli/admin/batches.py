"""`tollkeeper event send FILE`, and its like: a file of many, of which some may be refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.admin.resources.resource import Batch, Resource
from gateway.cli.admin import output
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.options import AsJson
from gateway.core.json_reader import read_json

File = Annotated[
    str,
    typer.Argument(help="A JSON file of one or a list, or a JSON object a line; - is what comes in."),
]


def sends(resource: Resource, batch: Batch) -> Callable[..., None]:
    """The command that sends a file of many; its status is 1 where some are refused."""

    def send(file: File, as_json: AsJson = False) -> None:
        with output.admin() as api:
            answer = api.post(resource.name, _read(file))
            output.report(answer, "Rejected", inner="rejected", as_json=as_json)
        if answer["rejected"]:
            raise typer.Exit(1)

    send.__doc__ = f"{batch.summary}."
    return send


def _read(name: str) -> Json | list[Json]:
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
