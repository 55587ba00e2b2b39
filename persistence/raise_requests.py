"""Raise requests: people ask for a larger budget; approving a request raises the budget."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_amounts import counted, read_budget
from gateway.core.accounts.budget_balances import window_of
from gateway.core.accounts.budgets import APPROVED, DENIED, KEY, MONEY, OPEN, TENANT, USER
from gateway.core.times import moment_of, ms_of
from gateway.errors import Conflict, NotFound, Unprocessable
from persistence.entity import Entity, EntityWrite, add, alter, delete, id_in, live, lock, require
from persistence.keeper.occasions import data_of, message_query
from persistence.resources.budgets import BUDGET_SUBJECT, raise_amount, refuse_organizations, wrong_raise_of
from persistence.tables import api_key, app_user, budget, organization, raise_request

_DATA = data_of(
    "raise.requested",
    raise_request_id="r.id", organization_id="o.id", organization="o.name", budget_id="b.id", budget="b.name",
    each="b.each", account="r.who", amount="trim_scale(r.amount)::text", unit="b.unit",
    currency="CASE WHEN b.unit = 'money' THEN o.currency END", until="r.until", reason="r.reason",
    requested_by="r.requested_by",
)  # fmt: skip
_TELL = message_query(
    "raise_requests",
    "Create messages about a request for more of a budget",
    f"""
WITH news AS (
    SELECT 'raise.requested' AS event, 'raise:' || r.id AS occasion, {_DATA} AS data
      FROM raise_request AS r JOIN budget AS b ON b.id = r.budget_id
      JOIN organization AS o ON o.id = r.organization_id WHERE r.id = :id
)""",
)
OPEN_MAX = 100  # requests of one budget that nobody has decided yet


def create(change: EntityWrite) -> Row:
    """Store a request for a larger budget, by default until the end of the budget's interval."""
    require(change)
    values = change.command.values
    query = live(budget, budget).where(budget.c.id == id_in(values, "budget_id"))
    row = dict(change.connection.execute(query.with_for_update()).mappings().one())
    here, until = read_budget(row), values.get("until")
    if until is None:
        ends_ms = 0 if here.length_ms else window_of(here, ms_of(change.now))[1]
        until = moment_of(ends_ms) if ends_ms else None
    if not isinstance(until, datetime):
        raise Unprocessable(errors=(("until", "is required: this budget never resets"),))
    who = values.get("who")
    if who is None and here.each and (who := _asker(change, row)) is None:
        raise Unprocessable(errors=(("who", f"is required: this token has no {here.each} of its own"),))
    if errors := wrong_raise_of(change, row, values["amount"], until, who):
        raise Unprocessable(errors=errors)
    if who is None:
        _refuse_less(change, row, values["amount"])
    open_ = (raise_request.c.budget_id == here.id) & (raise_request.c.status == OPEN)
    waiting = change.connection.execute(select(func.count()).where(open_)).scalar_one()
    if waiting >= OPEN_MAX:
        raise Conflict(f"{OPEN_MAX} requests of this budget wait to be decided.")
    amount = Decimal(str(values["amount"]))
    more = {"organization_id": row["organization_id"], "amount": amount, "until": until, "who": who}
    made = add(change, **more, requested_by=change.command.actor.scope)
    change.connection.execute(_TELL, {"id": made})
    return change.fetch(made)


def _asker(change: EntityWrite, row: Row) -> str | None:
    """Return the user, key or tenant that asks, as `each` is; None if there is none."""
    actor = change.command.actor
    kind, _, number = actor.scope.partition(":")
    key_id = int(number) if kind == "key" else None
    if row["each"] == KEY and key_id is not None:
        return number
    if row["each"] == TENANT:
        own = actor.tenant_id
        if key_id is not None:
            own = change.connection.scalar(select(api_key.c.tenant_id).where(api_key.c.id == key_id))
        return None if own is None else str(own)
    if row["each"] != USER:
        return None
    theirs = app_user.c.organization_id == row["organization_id"]
    if key_id is not None:
        return change.connection.scalar(select(api_key.c.user).where(api_key.c.id == key_id))
    named = select(app_user.c.external_id).where(app_user.c.id == actor.user_id, theirs)
    return change.connection.scalar(named)


def approve(change: EntityWrite) -> Row:
    """Raise the budget, or one owner of it; raise `Conflict` if the request is decided or has expired."""
    row = _undecided(change)
    wanted = {name: row[name] for name in ("amount", "until", "reason", "who")}
    if row["each"] is not None and row["who"] is None:  # an older keeper stored it
        raise Conflict("The request does not say whom to raise: deny it, and ask again.")
    if row["unit"] != MONEY:
        wanted["amount"] = int(Decimal(str(row["amount"])))  # whole, as it was asked
    command = replace(change.command, id=id_in(row, "budget_id"), values=wanted)
    try:
        # The budget may have been deleted or changed since.
        of_budget = replace(change, subject=BUDGET_SUBJECT, command=command, before=None)
        if wanted["who"] is None:
            _refuse_less(change, lock(of_budget), wanted["amount"])
        raise_amount(of_budget)
    except Unprocessable as error:
        why = "; ".join(f"{field} {said}" for field, said in error.errors)
        raise Conflict(f"The budget cannot be raised as it was asked: {why}.") from error
    except NotFound as error:
        raise Conflict("The budget of this request was deleted.") from error
    return _decided(change, APPROVED)


def _refuse_less(change: EntityWrite, row: Row, amount: object) -> None:
    """Raise `Unprocessable` for an amount below the limit that the budget has now, its raise included."""
    current = read_budget(row)
    if counted(current.unit, amount) < current.limit_at(ms_of(change.now)):
        raise Unprocessable(errors=(("amount", "must not be below what the budget has now"),))


def deny(change: EntityWrite) -> Row:
    """Deny the request without changing the budget; raise `Conflict` if the request is decided."""
    _undecided(change)
    return _decided(change, DENIED)


def _undecided(change: EntityWrite) -> Row:
    row = lock(change)
    asked = select(budget.c.of_team).where(budget.c.id == row["budget_id"])
    refuse_organizations(change, {"of_team": change.connection.execute(asked).scalar_one()})
    if row["status"] != OPEN:
        raise Conflict(f"The request is {row['status']} already.")
    return row


def _decided(change: EntityWrite, status: str) -> Row:
    alter(change, {"status": status, "decided_by": change.command.actor.scope, "decided_at": change.now})
    return change.fetch()


RAISE_REQUESTS = Entity(
    raise_request,
    source=select(
        raise_request, budget.c.name.label("budget"), budget.c.unit, budget.c.each, organization.c.currency
    )
    .join(budget, budget.c.id == raise_request.c.budget_id)
    .join(organization, organization.c.id == raise_request.c.organization_id),
    verbs={"create": create, "delete": delete, "approve": approve, "deny": deny},
    refers={"budget_id": budget},
)
