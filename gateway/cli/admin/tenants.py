"""`tollkeeper tenant …`: tenants and their token quotas."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.client import Json
from gateway.cli.admin.options import (
    AsJson,
    AtOnce,
    LimitRows,
    NewAtOnce,
    Newest,
    NewRpm,
    NewTpm,
    Rpm,
    Since,
    TenantName,
    Tpm,
    Until,
    UserAtOnce,
    UserRpm,
    UserTpm,
)
from gateway.cli.admin.output import NOTHING, admin, deleted, given, limits, new_limits, row, rows, some

app = typer.Typer(no_args_is_help=True, help="Tenants and their token quotas.")

COLUMNS = ("id", "name", "organization_id", "plan_id", "limits", "user_limits")
LEDGER = ("seq", "created_at", "transaction_type", "direction", "amount", "total_remaining", "request_id")

Tokens = Annotated[int, typer.Argument(help="Tokens.", min=1)]
PlanName = Annotated[str, typer.Argument(metavar="PLAN", help=f"Id or name of a token plan, or {NOTHING!r}.")]


class Direction(StrEnum):
    """Which way an adjustment goes."""

    IN = "IN"
    OUT = "OUT"


@app.command("list")
def list_tenants(
    *,
    org: Annotated[str | None, typer.Option(help="Only this organization's: id or name.")] = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List tenants."""
    with admin() as api:
        organization_id = api.named("organizations", org) if org else None
        rows(api.items("tenants", limit, organization_id=organization_id), COLUMNS, as_json=as_json)


@app.command()
def create(
    name: str,
    *,
    org: Annotated[str | None, typer.Option(help="Id or name; without it one is made.")] = None,
    plan: Annotated[str | None, typer.Option(help="Token plan: id or name.")] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrency: AtOnce = None,
    user_rpm: UserRpm = None,
    user_tpm: UserTpm = None,
    user_concurrency: UserAtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Make a tenant."""
    with admin() as api:
        body = given(
            name=name,
            organization_id=api.named("organizations", org) if org else None,
            plan_id=api.named("token-plans", plan) if plan else None,
            limits=limits(rpm, tpm, concurrency),
            user_limits=new_limits({}, user_rpm, user_tpm, user_concurrency),
        )
        row(api.post("tenants", body), as_json=as_json)


@app.command()
def show(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """Show a tenant and its quota as it is now."""
    with admin() as api:
        tenant_id = api.named("tenants", tenant)
        found = api.get(f"tenants/{tenant_id}")
        quota = api.get(f"tenant-quotas/{tenant_id}")
        row({**found, "quota": quota} if as_json else {**found, **quota}, as_json=as_json)


@app.command()
def change(
    tenant: TenantName,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    rpm: NewRpm = None,
    tpm: NewTpm = None,
    concurrency: NewAtOnce = None,
    user_rpm: UserRpm = None,
    user_tpm: UserTpm = None,
    user_concurrency: UserAtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Change a tenant; what is not named stays. Its plan: `tenant plan`."""
    with admin() as api:
        where = f"tenants/{api.named('tenants', tenant)}"
        known = api.get(where)
        body = given(
            name=name,
            limits=new_limits(known["limits"], rpm, tpm, concurrency),
            user_limits=new_limits(known["user_limits"], user_rpm, user_tpm, user_concurrency),
        )
        row(api.patch(where, some(body)), as_json=as_json)


@app.command()
def recharge(tenant: TenantName, amount: Tokens, *, as_json: AsJson = False) -> None:
    """Add tokens to what remains of this cycle."""
    _act(tenant, "recharge", {"amount": amount}, as_json=as_json)


@app.command()
def reset(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """Begin a new cycle now."""
    _act(tenant, "reset", {}, as_json=as_json)


@app.command()
def adjust(
    tenant: TenantName,
    amount: Tokens,
    direction: Direction,
    *,
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")],
    as_json: AsJson = False,
) -> None:
    """Correct what remains: IN adds, OUT takes away."""
    body = {"amount": amount, "direction": direction.value, "reason": reason}
    _act(tenant, "adjust", body, as_json=as_json)


@app.command()
def block(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """Refuse the tenant's requests until unblocked."""
    _act(tenant, "block", {}, as_json=as_json)


@app.command()
def unblock(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """Take a block by hand away."""
    _act(tenant, "unblock", {}, as_json=as_json)


@app.command()
def plan(tenant: TenantName, plan: PlanName, *, as_json: AsJson = False) -> None:
    """Move a tenant to another token plan, now."""
    with admin() as api:
        plan_id = None if plan == NOTHING else api.named("token-plans", plan)
        quota = api.patch(f"tenant-quotas/{api.named('tenants', tenant)}", {"plan_id": plan_id})
        row(quota, as_json=as_json)


@app.command()
def ledger(
    tenant: TenantName,
    *,
    newest: Newest = False,
    since: Since = None,
    until: Until = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List the movements of a tenant's tokens, in order."""
    with admin() as api:
        query = {"tenant_id": api.named("tenants", tenant), "order": "desc" if newest else None}
        found = api.items("token-ledger", limit, **query, from_=since, to=until)
        rows(found, LEDGER, as_json=as_json)


@app.command()
def delete(tenant: TenantName, *, as_json: AsJson = False) -> None:
    """Delete a tenant that has no working API keys; its ledger stays."""
    with admin() as api:
        row_id = api.named("tenants", tenant)
        api.delete(f"tenants/{row_id}")
        deleted(row_id, as_json=as_json)


def _act(tenant: str, action: str, body: Json, *, as_json: bool) -> None:
    with admin() as api:
        row(api.post(f"tenants/{api.named('tenants', tenant)}/{action}", body), as_json=as_json)
