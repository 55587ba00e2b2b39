"""`tollkeeper deadletter …`: entries that could not become rows."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.options import AsJson, LimitRows
from gateway.cli.admin.output import admin, given, row, rows

app = typer.Typer(no_args_is_help=True, help="Entries that could not become rows.")

COLUMNS = ("id", "organization_id", "tenant_id", "token_seq", "credit_seq", "spend_seq", "created_at",
           "resolution", "reason")  # fmt: skip
TEXTS = frozenset({"source", "user", "attribution"})

LetterId = Annotated[int, typer.Argument(help="Id of the dead letter.")]


@app.command("list")
def list_letters(
    *,
    organization: Annotated[str | None, typer.Option("--org", help="Only this organization's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Closed ones as well.")] = False,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List what waits for a decision."""
    with admin() as api:
        organization_id = api.named("organizations", organization) if organization else None
        resolved = None if every else "false"
        found = api.items("dead-letters", limit, organization_id=organization_id, resolved=resolved)
        rows(found, COLUMNS, as_json=as_json)


@app.command()
def show(letter_id: LetterId, *, as_json: AsJson = False) -> None:
    """Show one: what it says, and its bytes."""
    with admin() as api:
        row(api.get(f"dead-letters/{letter_id}"), as_json=as_json)


@app.command()
def redrive(
    letter_id: LetterId,
    *,
    change: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE to correct, such as amount=12; repeatable.")
    ] = None,
    raw: Annotated[str | None, typer.Option(help="The whole entry anew, base64.")] = None,
    reason: Annotated[str | None, typer.Option(help="Kept with it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store it where it belongs, once."""
    with admin() as api:
        body = given(changes=dict(map(_changed, change or ())) or None, raw=raw, reason=reason)
        row(api.post(f"dead-letters/{letter_id}/redrive", body), as_json=as_json)


@app.command()
def resolve(
    letter_id: LetterId,
    *,
    reason: Annotated[str, typer.Option(help="Why it stays as it is.")],
    as_json: AsJson = False,
) -> None:
    """Have it stay unbilled; it holds no invoice up any more."""
    with admin() as api:
        row(api.post(f"dead-letters/{letter_id}/resolve", {"reason": reason}), as_json=as_json)


def _changed(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"--change {text!r} must be FIELD=VALUE.")
    if name in TEXTS:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise CommandFailed(f"--change {text!r}: the value must be a number or JSON.") from error
