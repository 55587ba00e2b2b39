"""`tollkeeper quarantine …`: accounts whose movements contradict the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson, LimitRows
from gateway.cli.admin.output import admin, row, rows

app = typer.Typer(no_args_is_help=True, help="Accounts whose movements contradict the ledger.")

COLUMNS = ("id", "account", "kind", "stored_seq", "found_seq", "created_at", "resolution", "reason")

QuarantineId = Annotated[int, typer.Argument(help="Id of the quarantine.")]


@app.command("list")
def list_quarantined(
    *,
    organization: Annotated[str | None, typer.Option("--org", help="Only this organization's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Released ones as well.")] = False,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List accounts that are stopped."""
    with admin() as api:
        organization_id = api.named("organizations", organization) if organization else None
        released = None if every else "false"
        found = api.items("quarantine", limit, organization_id=organization_id, released=released)
        rows(found, COLUMNS, as_json=as_json)


@app.command()
def show(quarantine_id: QuarantineId, *, as_json: AsJson = False) -> None:
    """Show one: what PostgreSQL has, what came next."""
    with admin() as api:
        row(api.get(f"quarantine/{quarantine_id}"), as_json=as_json)


@app.command()
def release(
    quarantine_id: QuarantineId,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    accept: Annotated[
        bool,
        typer.Option(
            "--accept", help="Take a gap's movements as lost, or a contradiction's entries as dead letters."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let an account go on: its entries are judged again, or what is wrong is accepted."""
    with admin() as api:
        body = {"reason": reason, "accept": accept}
        row(api.post(f"quarantine/{quarantine_id}/release", body), as_json=as_json)
