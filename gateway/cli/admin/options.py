"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LimitRows = Annotated[int, typer.Option("--limit", help="Most rows to print.", min=1, max=100_000)]
Newest = Annotated[bool, typer.Option(help="Newest first.")]
Since = Annotated[str | None, typer.Option(help="RFC 3339, such as 2026-01-31T00:00:00Z.")]
Until = Annotated[str | None, typer.Option(help="RFC 3339; not included.")]
Rpm = Annotated[int | None, typer.Option("--rpm", help="Requests a minute.", min=1)]
Tpm = Annotated[int | None, typer.Option("--tpm", help="Tokens a minute.", min=1)]
AtOnce = Annotated[int | None, typer.Option("--concurrency", help="Requests at once.", min=1)]
NewRpm = Annotated[int | None, typer.Option("--rpm", help="Requests a minute; 0 is no limit.", min=0)]
NewTpm = Annotated[int | None, typer.Option("--tpm", help="Tokens a minute; 0 is no limit.", min=0)]
NewAtOnce = Annotated[
    int | None, typer.Option("--concurrency", help="Requests at once; 0 is no limit.", min=0)
]
UserRpm = Annotated[
    int | None, typer.Option("--user-rpm", help="Each user's requests a minute; 0 is no limit.", min=0)
]
UserTpm = Annotated[
    int | None, typer.Option("--user-tpm", help="Each user's tokens a minute; 0 is no limit.", min=0)
]
UserAtOnce = Annotated[
    int | None, typer.Option("--user-concurrency", help="Each user's requests at once; 0 is no limit.", min=0)
]
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Id or name.")]
