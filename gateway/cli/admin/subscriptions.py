"""`tollkeeper subscription …`: what organizations are subscribed to."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.client import AdminClient, CommandFailed
from gateway.cli.admin.options import AsJson, LimitRows
from gateway.cli.admin.output import NOTHING, admin, deleted, given, row, rows, some

app = typer.Typer(no_args_is_help=True, help="Subscriptions of organizations.")

COLUMNS = (
    "id", "organization_id", "plan_id", "status", "billing_interval", "start_date", "end_date", "change_at",
    "cancel_at",
)  # fmt: skip
PLAN_COLUMNS = ("id", "name", "monthly_cost", "annual_cost", "token_plan_id", "feature_access")

Organization = Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")]
Plan = Annotated[str, typer.Argument(metavar="PLAN", help="A subscription plan: id or name.")]


class When(StrEnum):
    """When a change happens."""

    NOW = "now"
    PERIOD_END = "period_end"


class Interval(StrEnum):
    """How long a period is."""

    MONTHLY = "monthly"
    ANNUAL = "annual"


@app.command("list")
def list_subscriptions(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List subscriptions."""
    with admin() as api:
        rows(api.items("organization-subscriptions", limit), COLUMNS, as_json=as_json)


@app.command()
def plans(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List subscription plans on offer."""
    with admin() as api:
        rows(api.items("subscription-plans", limit), PLAN_COLUMNS, as_json=as_json)


@app.command()
def offer(
    name: str,
    *,
    monthly: Annotated[str, typer.Option(help='A month\'s cost, such as "29.00".')],
    annual: Annotated[str, typer.Option(help="A year's cost.")],
    feature: Annotated[list[str] | None, typer.Option(help="Key of a service it includes.")] = None,
    token_plan: Annotated[str | None, typer.Option(help="The token plan of its tenants: id or name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a subscription plan."""
    with admin() as api:
        body = given(
            name=name,
            monthly_cost=monthly,
            annual_cost=annual,
            feature_access=feature or [],
            token_plan_id=api.named("token-plans", token_plan) if token_plan else None,
        )
        row(api.post("subscription-plans", body), as_json=as_json)


@app.command()
def show_plan(plan: Plan, *, as_json: AsJson = False) -> None:
    """Show one subscription plan."""
    with admin() as api:
        row(api.get(f"subscription-plans/{api.named('subscription-plans', plan)}"), as_json=as_json)


@app.command()
def change_plan(
    plan: Plan,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    monthly: Annotated[str | None, typer.Option(help="A month's cost, for those who come.")] = None,
    annual: Annotated[str | None, typer.Option(help="A year's cost, for those who come.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="All it includes from now; repeatable.")] = None,
    token_plan: Annotated[
        str | None, typer.Option(help=f"The token plan of its tenants: id or name, or {NOTHING!r}.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a subscription plan; what is not named stays."""
    with admin() as api:
        body = given(name=name, monthly_cost=monthly, annual_cost=annual, feature_access=feature or None)
        if token_plan is not None:
            none = token_plan == NOTHING
            body["token_plan_id"] = None if none else api.named("token-plans", token_plan)
        where = f"subscription-plans/{api.named('subscription-plans', plan)}"
        row(api.patch(where, some(body)), as_json=as_json)


@app.command()
def withdraw(plan: Plan, *, as_json: AsJson = False) -> None:
    """Delete a subscription plan nobody subscribes to."""
    with admin() as api:
        row_id = api.named("subscription-plans", plan)
        api.delete(f"subscription-plans/{row_id}")
        deleted(row_id, as_json=as_json)


@app.command()
def create(
    organization: Organization,
    plan: Plan,
    *,
    start: Annotated[str, typer.Option(help="The first day, such as 2026-04-01.")],
    end: Annotated[str, typer.Option(help="The first day it is no longer in force.")],
    interval: Annotated[Interval | None, typer.Option(help="monthly unless said otherwise.")] = None,
    as_json: AsJson = False,
) -> None:
    """Subscribe an organization."""
    with admin() as api:
        body = given(
            organization_id=api.named("organizations", organization),
            plan_id=api.named("subscription-plans", plan),
            start_date=start,
            end_date=end,
            billing_interval=interval,
        )
        row(api.post("organization-subscriptions", body), as_json=as_json)


@app.command()
def show(organization: Organization, *, as_json: AsJson = False) -> None:
    """Show an organization's subscription with every plan it had."""
    with admin() as api:
        row(api.get(f"organization-subscriptions/{_of(api, organization)}"), as_json=as_json)


@app.command()
def change(
    organization: Organization,
    plan: Plan,
    *,
    when: Annotated[When, typer.Option(help="now, prorated by day, or when the period ends.")] = When.NOW,
    as_json: AsJson = False,
) -> None:
    """Move an organization to another plan."""
    with admin() as api:
        body = {"plan_id": api.named("subscription-plans", plan), "when": when}
        row(api.post(f"organization-subscriptions/{_of(api, organization)}/change", body), as_json=as_json)


@app.command()
def cancel(
    organization: Organization,
    *,
    when: Annotated[When, typer.Option(help="now, or when the period ends.")] = When.PERIOD_END,
    as_json: AsJson = False,
) -> None:
    """End an organization's subscription."""
    with admin() as api:
        answer = api.post(f"organization-subscriptions/{_of(api, organization)}/cancel", {"when": when})
        row(answer, as_json=as_json)


@app.command()
def extend(organization: Organization, end: str, *, as_json: AsJson = False) -> None:
    """Move the end of an organization's subscription; a cancellation is taken back."""
    with admin() as api:
        answer = api.patch(f"organization-subscriptions/{_of(api, organization)}", {"end_date": end})
        row(answer, as_json=as_json)


def _of(api: AdminClient, organization: str) -> int:
    owner = api.named("organizations", organization)
    found = api.get("organization-subscriptions", organization_id=owner)["items"]
    if not found:
        raise CommandFailed("The organization never had a subscription.")
    return int(found[0]["id"])
