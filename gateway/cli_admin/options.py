"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LimitRows = Annotated[int, typer.Option("--limit", help="Most rows to print.", min=1, max=100_000)]
Rpm = Annotated[int | None, typer.Option("--rpm", help="Requests a minute.", min=1)]
Tpm = Annotated[int | None, typer.Option("--tpm", help="Tokens a minute.", min=1)]
AtOnce = Annotated[int | None, typer.Option("--concurrency", help="Requests at once.", min=1)]
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Id or name.")]
