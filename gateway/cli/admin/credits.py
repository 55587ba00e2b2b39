"""`tollkeeper credits …`: credits given to organizations and taken back."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson, LimitRows, Newest, Since, Until
from gateway.cli.admin.output import admin, given, row, rows

app = typer.Typer(no_args_is_help=True, help="Credits: given and taken back.")

COLUMNS = (
    "id", "organization_id", "timestamp", "credits_added", "credits_remaining", "category", "priority",
    "expires_at", "unit_cost", "remark",
)  # fmt: skip
USE_COLUMNS = ("seq", "timestamp", "feature_id", "credits_used", "balance_after", "user_id", "request_id")

Organization = Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")]
Remark = Annotated[str | None, typer.Option("--remark", help="Why.")]


class Category(StrEnum):
    """What kind of credits."""

    PAID = "paid"
    PROMOTIONAL = "promotional"
    REFUND = "refund"
    CORRECTION = "correction"


@app.command("list")
def list_additions(
    *,
    organization: Annotated[str | None, typer.Option("--org", help="Only this one: id or name.")] = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List what was given and taken back."""
    with admin() as api:
        owner = api.named("organizations", organization) if organization else None
        rows(api.items("credit-additions", limit, organization_id=owner), COLUMNS, as_json=as_json)


@app.command()
def show(
    addition: Annotated[int, typer.Argument(metavar="ADDITION", help="Its id.")], *, as_json: AsJson = False
) -> None:
    """Show one addition, and what is left of it."""
    with admin() as api:
        row(api.get(f"credit-additions/{addition}"), as_json=as_json)


@app.command()
def uses(
    organization: Organization,
    *,
    newest: Newest = False,
    since: Since = None,
    until: Until = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List what an organization's credits were used for, in order."""
    with admin() as api:
        owner, order = api.named("organizations", organization), "desc" if newest else None
        query = {"organization_id": owner, "order": order, "from_": since, "to": until}
        rows(api.items("credit-transactions", limit, **query), USE_COLUMNS, as_json=as_json)


@app.command()
def add(
    organization: Organization,
    amount: Annotated[int, typer.Argument(help="Credits to give.", min=1)],
    *,
    category: Annotated[Category | None, typer.Option(help="paid unless said otherwise.")] = None,
    priority: Annotated[int | None, typer.Option(help="A lower number is used first (100).", min=0)] = None,
    expires_at: Annotated[str | None, typer.Option(help='Such as "2026-12-31T00:00:00Z".')] = None,
    unit_cost: Annotated[str | None, typer.Option(help='What one costs, such as "0.01".')] = None,
    remark: Remark = None,
    as_json: AsJson = False,
) -> None:
    """Give credits."""
    with admin() as api:
        body = given(
            organization_id=api.named("organizations", organization),
            credits_added=amount,
            category=category,
            priority=priority,
            expires_at=expires_at,
            unit_cost=unit_cost,
            remark=remark,
        )
        row(api.post("credit-additions", body), as_json=as_json)


@app.command()
def claw_back(
    organization: Organization,
    amount: Annotated[int, typer.Argument(help="Credits to take back.", min=1)],
    *,
    category: Annotated[Category | None, typer.Option(help="correction unless said otherwise.")] = None,
    unit_cost: Annotated[str | None, typer.Option(help="What one of paid ones had cost.")] = None,
    remark: Remark = None,
    as_json: AsJson = False,
) -> None:
    """Take credits back."""
    with admin() as api:
        body = given(
            organization_id=api.named("organizations", organization),
            credits_added=-amount,
            category=category,
            unit_cost=unit_cost,
            remark=remark,
        )
        row(api.post("credit-additions", body), as_json=as_json)
