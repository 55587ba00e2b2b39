"""`tollkeeper plan …`: token plans."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.options import AsJson, LimitRows
from gateway.cli.admin.output import NOTHING, admin, deleted, emptied, given, row, rows, some

app = typer.Typer(no_args_is_help=True, help="Token plans: how much, how often.")

COLUMNS = ("id", "name", "total_amount", "reset_interval", "overage_policy", "rollover_max", "admission")
UNLIMITED = "unlimited"


class Interval(StrEnum):
    """How often a plan resets."""

    MONTHLY = "monthly"
    WEEKLY = "weekly"
    DAILY = "daily"
    NONE = "none"


class Policy(StrEnum):
    """What happens beyond the total."""

    BLOCK = "block"
    CARRY = "carry"
    BILL = "bill"


class Admission(StrEnum):
    """Whether a hold is cut to what remains or refused."""

    AVAILABLE = "available"
    STRICT = "strict"


class Exhausted(StrEnum):
    """What happens to a stream that runs out."""

    FINISH = "finish"
    CUT = "cut"


class StoreFailure(StrEnum):
    """What happens while the counters are away."""

    DENY = "deny"
    ALLOW = "allow"


Plan = Annotated[str, typer.Argument(metavar="PLAN", help="Id or name.")]
Total = Annotated[str | None, typer.Option("--total", help=f"Tokens a cycle, or {UNLIMITED!r}.")]
Reset = Annotated[Interval | None, typer.Option("--reset", help="How often it begins anew.")]
Overage = Annotated[Policy | None, typer.Option("--overage", help="What happens beyond the total.")]
Price = Annotated[str | None, typer.Option("--overage-unit-price", help="A decimal.")]
NewPrice = Annotated[str | None, typer.Option("--overage-unit-price", help=f"A decimal, or {NOTHING!r}.")]
Rollover = Annotated[int | None, typer.Option("--rollover-max", help="Most tokens carried over.", min=0)]
Admit = Annotated[Admission | None, typer.Option("--admission")]
OnExhausted = Annotated[Exhausted | None, typer.Option("--on-exhausted")]
OnStoreFailure = Annotated[StoreFailure | None, typer.Option("--on-store-failure")]
Description = Annotated[str | None, typer.Option("--description")]


@app.command("list")
def list_plans(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List token plans."""
    with admin() as api:
        rows(api.items("token-plans", limit), COLUMNS, as_json=as_json)


@app.command()
def create(
    name: str,
    *,
    total: Total = UNLIMITED,
    reset: Reset = None,
    overage: Overage = None,
    overage_unit_price: Price = None,
    rollover_max: Rollover = None,
    admission: Admit = None,
    on_exhausted: OnExhausted = None,
    on_store_failure: OnStoreFailure = None,
    description: Description = None,
    as_json: AsJson = False,
) -> None:
    """Make a token plan."""
    with admin() as api:
        body = given(
            name=name,
            reset_interval=reset,
            overage_policy=overage,
            overage_unit_price=overage_unit_price,
            rollover_max=rollover_max,
            admission=admission,
            on_exhausted=on_exhausted,
            on_store_failure=on_store_failure,
            description=description,
        )
        body["total_amount"] = _total(total or UNLIMITED)
        row(api.post("token-plans", body), as_json=as_json)


@app.command()
def show(plan: Plan, *, as_json: AsJson = False) -> None:
    """Show one token plan."""
    with admin() as api:
        row(api.get(f"token-plans/{api.named('token-plans', plan)}"), as_json=as_json)


@app.command()
@app.command("update", hidden=True)
def change(
    plan: Plan,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    total: Total = None,
    reset: Reset = None,
    overage: Overage = None,
    overage_unit_price: NewPrice = None,
    rollover_max: Rollover = None,
    admission: Admit = None,
    on_exhausted: OnExhausted = None,
    on_store_failure: OnStoreFailure = None,
    description: Description = None,
    as_json: AsJson = False,
) -> None:
    """Change a token plan; a new total applies at each tenant's next reset."""
    with admin() as api:
        body = given(
            name=name,
            reset_interval=reset,
            overage_policy=overage,
            rollover_max=rollover_max,
            admission=admission,
            on_exhausted=on_exhausted,
            on_store_failure=on_store_failure,
            description=description,
        )
        if total is not None:
            body["total_amount"] = _total(total)
        body = some(body | emptied(overage_unit_price=overage_unit_price))
        row(api.patch(f"token-plans/{api.named('token-plans', plan)}", body), as_json=as_json)


@app.command()
def delete(plan: Plan, *, as_json: AsJson = False) -> None:
    """Delete a token plan that no tenant follows."""
    with admin() as api:
        row_id = api.named("token-plans", plan)
        api.delete(f"token-plans/{row_id}")
        deleted(row_id, as_json=as_json)


def _total(text: str) -> int | None:
    if text == UNLIMITED:
        return None
    digits = text.replace(",", "").replace("_", "")
    if not digits.isascii() or not digits.isdigit():
        raise CommandFailed(f"--total must be a number of tokens or {UNLIMITED!r}, not {text!r}.")
    return int(digits)
