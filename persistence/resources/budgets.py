"""Budgets: what is right of one, what it is raised to for a while, and that gateways are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, bindparam, case, func, select, text, true, update

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_terms import read_budget, wrong_amount, wrong_raise, wrong_window
from gateway.core.accounts.budgets import account_of
from gateway.core.accounts.selectors import Selector, selector_of, too_many
from gateway.errors import Unprocessable
from persistence import crud
from persistence.resources import organizations
from persistence.subject import Change, Subject, alter, id_in, live, lock
from persistence.tables import api_key, budget, budget_use, organization, service, tenant

# Advisory lock class 7806: whoever adds to the budgets of an organization, so that they stay within bounds.
# A lock is of some organizations: PostgreSQL has room for a few thousand locks in all.
_LOCK = text("SELECT pg_advisory_xact_lock(7806, (CAST(:organization AS bigint) % 1024)::integer)")
_SELECTING = [budget.c[name] for name in Selector._fields]


def check_values(change: Change) -> None:
    """`Unprocessable` where a new budget is wrong, is of somebody else's, or is one too many."""
    values = change.command.values
    owner = id_in(values, "organization_id")
    change.connection.execute(_LOCK, {"organization": owner})
    errors = [*wrong_window(values), *_foreign(change.connection, values)]
    errors += too_many(_others(change.connection, owner), selector_of(values))
    if errors:
        raise Unprocessable(errors=tuple(errors))


def change_budget(change: Change) -> Row:
    """Change what is not the window's: its name, its amount, what becomes of calls, what is told."""
    alter(change, _changed(lock(change), change.command.values))
    return _defined(change)


def _changed(row: Row, said: Row) -> Row:
    """What a budget gets; `Unprocessable` for an amount that its unit has not."""
    if "amount" not in said:
        return said
    errors = tuple(wrong_amount(str(row["unit"]), said["amount"], "amount"))
    if errors:
        raise Unprocessable(errors=errors)
    if row["raised_to"] is not None and row["raised_to"] <= said["amount"]:  # type: ignore[operator]  # numbers
        return {**said, **_NOT_RAISED}
    return said


def raise_amount(change: Change) -> Row:
    """Have another amount stand for a budget's own until a time."""
    row, values = lock(change), change.command.values
    amount, until = values["amount"], values["until"]
    assert isinstance(until, datetime)
    errors = tuple(wrong_raise(read_budget(row), amount, until, change.now))
    if errors:
        raise Unprocessable(errors=errors)
    alter(change, {"raised_to": amount, "raised_until": until, "raise_reason": values["reason"]})
    return _defined(change)


def reset(change: Change) -> Row:
    """Have the use of the window that runs begin at 0 again, in all accounts."""
    row = lock(change)
    change.before = None
    organization_id = id_in(row, "organization_id")
    account = account_of(organization_id, read_budget(row))
    payload = {"budget_id": change.row_id, "account": account}
    change.intend([f"organization:{organization_id}"], "budget", payload, organization_id=organization_id)
    return row


def forget_key(change: Change, key_id: int) -> None:
    """Let go of a key that is deleted: budgets that were of it are deleted, and only kept."""
    gone = (budget.c.api_key_id == key_id, budget.c.deleted_at.is_not(None))
    change.connection.execute(update(budget).where(*gone).values(api_key_id=None))


def _defined(change: Change) -> Row:
    row = change.fetch()
    organizations.define(change, row)
    return row


def _others(connection: Connection, owner: int) -> dict[str, Selector]:
    """The budgets that an organization has, by their names."""
    there = live(budget, budget.c.name, *_SELECTING).where(budget.c.organization_id == owner)
    return {row["name"]: selector_of(dict(row)) for row in connection.execute(there).mappings()}


def _foreign(connection: Connection, values: Row) -> Iterator[tuple[str, str]]:
    """What a budget names of somebody else's. What is not there at all is told by `require`."""
    for name, owner in _OWNERS.items():
        said = values.get(name)
        found = None if said is None else connection.execute(owner, {"id": said}).first()
        if found is None:
            continue
        if found.organization_id != values["organization_id"]:
            yield name, "is of another organization"
        elif values.get("tenant_id") not in {None, found.tenant_id}:
            yield name, f"is not of tenant {values['tenant_id']}"


# What a budget may name of somebody's, and whose that is.
_TENANTS = select(tenant.c.organization_id, tenant.c.id.label("tenant_id"))
_KEYS = select(tenant.c.organization_id, api_key.c.tenant_id).join(tenant, tenant.c.id == api_key.c.tenant_id)
_OWNERS = {
    "tenant_id": _TENANTS.where(tenant.c.id == bindparam("id")),
    "api_key_id": _KEYS.where(api_key.c.id == bindparam("id")),
}
_NOT_RAISED = {"raised_to": None, "raised_until": None, "raise_reason": None}
_is_raised = budget.c.raised_until > func.now()
# What was last stored as used, of which window: what the counters know better.
_last = (
    select(budget_use.c.start, budget_use.c.used)
    .where(budget_use.c.budget_id == budget.c.id)
    .order_by(budget_use.c.start.desc())
    .limit(1)
    .lateral("last")
)

_columns = (
    *(column for column in budget.c if column.name not in {*_NOT_RAISED, "deleted_at", "updated_at"}),
    *(case((_is_raised, budget.c[name])).label(name) for name in _NOT_RAISED),
    organization.c.currency,
    case((budget.c.each.is_(None), _last.c.used)).label("stored_used"),
    _last.c.start.label("stored_start"),
)
_here = budget.join(organization, organization.c.id == budget.c.organization_id).outerjoin(_last, true())

SUBJECT = Subject(
    budget,
    source=select(*_columns).select_from(_here).where(budget.c.deleted_at.is_(None)),
    verbs={
        "create": crud.create,
        "change": change_budget,
        "delete": crud.delete,
        "raise": raise_amount,
        "reset": reset,
    },
    partitioned=True,
    refers={
        "organization_id": organization,
        "tenant_id": tenant,
        "api_key_id": api_key,
        "service_id": service,
    },
    check_values=check_values,
    define=organizations.define,
)
ACCOUNTS = Subject(budget_use, time="start", order=("value",))
