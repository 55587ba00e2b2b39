"""`tollkeeper org …`: who is billed."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson, AtOnce, LimitRows, NewAtOnce, NewRpm, NewTpm, Rpm, Tpm
from gateway.cli.admin.output import (
    NOTHING,
    admin,
    deleted,
    emptied,
    given,
    limits,
    new_limits,
    row,
    rows,
    some,
)

app = typer.Typer(no_args_is_help=True, help="Organizations: who is billed.")

COLUMNS = ("id", "name", "currency", "credit_balance", "credit_limit", "spend_cap", "limits")

Organization = Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")]


@app.command("list")
def list_organizations(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List organizations."""
    with admin() as api:
        rows(api.items("organizations", limit), COLUMNS, as_json=as_json)


@app.command()
def create(
    name: str,
    *,
    currency: Annotated[str | None, typer.Option(help='ISO 4217, such as "EUR".')] = None,
    credit_limit: Annotated[int | None, typer.Option(help="Credits beyond the balance.")] = None,
    spend_cap: Annotated[str | None, typer.Option(help='Pay-Per-Use a month, such as "100.00".')] = None,
    tax_rate: Annotated[str | None, typer.Option(help='A fraction, such as "0.20".')] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrency: AtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Make an organization."""
    body = given(
        name=name,
        currency=currency,
        credit_limit=credit_limit,
        spend_cap=spend_cap,
        tax_rate=tax_rate,
        limits=limits(rpm, tpm, concurrency),
    )
    with admin() as api:
        row(api.post("organizations", body), as_json=as_json)


@app.command()
def show(organization: Organization, *, as_json: AsJson = False) -> None:
    """Show one organization."""
    with admin() as api:
        found = api.get(f"organizations/{api.named('organizations', organization)}")
        row(found, as_json=as_json)


@app.command()
def change(
    organization: Organization,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    currency: Annotated[str | None, typer.Option(help='ISO 4217, such as "EUR".')] = None,
    credit_limit: Annotated[int | None, typer.Option(help="Credits beyond the balance.", min=0)] = None,
    spend_cap: Annotated[str | None, typer.Option(help=f"Pay-Per-Use a month, or {NOTHING!r}.")] = None,
    tax_rate: Annotated[str | None, typer.Option(help='A fraction, such as "0.20".')] = None,
    rpm: NewRpm = None,
    tpm: NewTpm = None,
    concurrency: NewAtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Change an organization; what is not named stays."""
    with admin() as api:
        where = f"organizations/{api.named('organizations', organization)}"
        body = given(
            name=name,
            currency=currency,
            credit_limit=credit_limit,
            tax_rate=tax_rate,
            limits=new_limits(api.get(where)["limits"], rpm, tpm, concurrency),
        )
        row(api.patch(where, some(body | emptied(spend_cap=spend_cap))), as_json=as_json)


@app.command()
def delete(organization: Organization, *, as_json: AsJson = False) -> None:
    """Delete an organization that has no tenants and no users."""
    with admin() as api:
        row_id = api.named("organizations", organization)
        api.delete(f"organizations/{row_id}")
        deleted(row_id, as_json=as_json)
