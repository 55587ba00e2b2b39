"""Budgets, with their raises, resets, and overrides of single owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    null,
    select,
    text,
    true,
    update,
)

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_amounts import (
    read_budget,
    wrong_amount,
    wrong_carry,
    wrong_override,
    wrong_raise,
    wrong_window,
)
from gateway.core.accounts.budget_selectors import selector_of, too_many
from gateway.core.accounts.budgets import (
    ENFORCE,
    FINISH,
    KEY,
    MONEY,
    OF_GROUP,
    ORGANIZATION_OVERRIDES_MAX,
    ORGANIZATION_RAISES_MAX,
    OVERRIDES_MAX,
    RAISES_MAX,
    TENANT,
    Budget,
    account_of,
    override_owner,
    owner_of,
)
from gateway.core.accounts.tags import tag_in
from gateway.core.accounts.windows import WHOLE_PARTS
from gateway.core.billing.stand_ins import find_unpriced
from gateway.core.times import ms_of
from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, Verb, alter, id_in, live, lock
from persistence.examining import PRICED_NAMES, STORED_MODELS
from persistence.ids import is_comparing
from persistence.queries import insert_rows, query
from persistence.resources import people
from persistence.resources.budget_uses import account_uses, stored_uses
from persistence.resources.groups import OVERRIDE_IS_IN_FORCE, overrides_of_members
from persistence.resources.tags import fixed_tags, group_sets, lock_budgets, selectors_of, undeclared
from persistence.tables import (
    api_key,
    budget,
    budget_override,
    budget_raise,
    budget_use,
    caller_group,
    organization,
    service,
    tenant,
)

# Errors of a list of overrides that are named.
OVERRIDE_ERRORS_MAX = 50
# The raise and the override of one owner. They may be over.
_OWN = [
    select(of).where(of.c.budget_id == bindparam("id"), of.c.value == bindparam("value"))
    for of in (budget_raise, budget_override)
]
# How many raises or overrides of single owners are in force, of one budget and of its organization.
_COUNT = """
SELECT count(*) FILTER (WHERE r.budget_id = :budget_id) AS of_budget, count(*) AS of_all
  FROM budget AS b JOIN {} AS r ON r.budget_id = b.id
 WHERE b.organization_id = :organization AND b.deleted_at IS NULL AND coalesce(r.until > :now, true)"""

# A person's override is newer than one that Redis knows and a database that was set back lacks.
_LET_GO = """
UPDATE quarantine SET stood = jsonb_set(stood, cast(:path AS text[]), CASE
       WHEN cast(:owners AS text[]) IS NULL THEN '{}' ELSE (stood #> cast(:path AS text[])) - cast(:owners AS text[]) END)
 WHERE account = :account AND released_at IS NULL AND stood #> cast(:path AS text[]) IS NOT NULL
   AND coalesce(jsonb_exists_any(stood #> cast(:path AS text[]), cast(:owners AS text[])), true) RETURNING id"""


def check_values(change: EntityWrite) -> None:
    """Raise `Unprocessable` if a new budget is invalid, names another owner's object, or is one too many."""
    values = change.command.values
    owner = id_in(values, "organization_id")
    lock_budgets(change.connection, owner)
    errors = wrong_values(change)
    others, fixed = selectors_of(change.connection, owner), fixed_tags(change.connection, owner)
    groups = group_sets(change.connection, owner, values.get("group_id"))
    beyond = [*too_many(others, selector_of(values), fixed, groups)]
    if beyond and change.by_team:
        # The names of other budgets are not disclosed.
        beyond = [("tenant_id", "its organization has as many budgets as may be of such calls")]
    if errors or beyond:
        raise Unprocessable(errors=(*errors, *beyond))


def wrong_values(change: EntityWrite) -> list[tuple[str, str]]:
    """Return (field, fault) for each error in the values of a new budget, whatever other budgets there are."""
    values = change.command.values
    return [
        *wrong_window(values),
        *_foreign(change.connection, values),
        *_undeclared(change.connection, values),
        *_check_steps(change, values, values.get("steps")),
    ]


def wrong_replayed(change: EntityWrite) -> list[tuple[str, str]]:
    """Return (field, fault) for each error in a budget of a replay and its overrides, which may have ended."""
    values = change.command.values
    errors = wrong_values(change)
    errors += [
        (name, "has no calls in a replay: the journal does not say which tools a call used")
        for name in ("tool", "server")
        if values.get(name) is not None
    ]
    if errors:
        return errors
    overrides: Any = values.get("overrides") or ()
    budget_, named = read_budget({**_UNSAVED, **values, "overrides": None}), set[str]()
    for place, own in enumerate(overrides):
        who = own["who"]
        faults = [
            *wrong_override(
                budget_, own["amount"], None, change.now, who, kind=_kind_of(change, values, who)
            ),
            *_unknown_owner(change, values, budget_, who),
        ]
        if override_owner(who) in named:
            faults.append(("who", "has another override in this budget"))
        named.add(override_owner(who))
        errors += [(f"overrides.{place}.{name}", fault) for name, fault in faults]
    return errors


def create_budget(change: EntityWrite) -> Row:
    """Create a budget; one created with a token of one tenant belongs to that tenant."""
    if change.by_team:
        change.command = replace(change.command, values={**change.command.values, "of_team": True})
    return entity.create(change)


def refuse_organizations(change: EntityWrite, row: Row) -> None:
    """Raise `Forbidden` if a token of one tenant would change a budget that is not the tenant's own."""
    if change.by_team and not row["of_team"]:
        raise Forbidden(
            "This budget is the organization's: ask for more by a raise request, or make one below it."
        )


def _unless_organizations(verb: Verb) -> Verb:
    def do(change: EntityWrite) -> Row:
        refuse_organizations(change, change.fetch())
        return verb(change)

    return do


def change_budget(change: EntityWrite) -> Row:
    """Change fields of a budget other than its window: name, amount, effect on calls, notices."""
    values, row = change.command.values, lock(change)
    if errors := (*_check_steps(change, row, values.get("steps")),):
        raise Unprocessable(errors=errors)
    alter(change, _changed(row, values))
    if "amount" in values:
        covered = (budget_raise.c.budget_id == change.row_id, budget_raise.c.amount <= values["amount"])
        # A raise of an override may be below the budget's amount.
        overridden = exists().where(
            budget_override.c.budget_id == change.row_id,
            budget_override.c.value.startswith(OF_GROUP) | (budget_override.c.value == budget_raise.c.value),
        )
        change.connection.execute(delete(budget_raise).where(*covered, ~overridden))
    return _defined(change)


def _changed(row: Row, said: Row) -> Row:
    """Return the values to store for a budget; `said` are the changes.

    Raise `Unprocessable` if the amount or the carry-over does not fit. A raise of no more than that amount is removed.
    """
    unit, errors = str(row["unit"]), list[tuple[str, str]]()
    if "amount" in said:
        errors += wrong_amount(unit, said["amount"], "amount")
    if isinstance(carry := said.get("carry"), dict):
        errors += wrong_carry(unit, row["interval"], carry)
    if errors:
        raise Unprocessable(errors=tuple(errors))
    raised_to = row["raised_to"] if "amount" in said else None
    if raised_to is not None and raised_to <= said["amount"]:  # type: ignore[operator]  # numbers
        return {**said, **_NOT_RAISED}
    return said


def raise_amount(change: EntityWrite) -> Row:
    """Raise the amount of a budget until a time, or with `who` that of one owner alone."""
    row, values = lock(change), change.command.values
    amount, until, who = values["amount"], values["until"], values.get("who")
    assert isinstance(until, datetime)
    errors = wrong_raise_of(change, row, amount, until, who)
    if errors:
        raise Unprocessable(errors=errors)
    if who is None:
        alter(change, {"raised_to": amount, "raised_until": until, "raise_reason": values["reason"]})
    else:
        _raise_one(change, row, str(who), {"amount": amount, "until": until, "reason": values["reason"]})
    return _defined(change)


def wrong_raise_of(
    change: EntityWrite, row: Row, amount: object, until: datetime, who: object
) -> tuple[tuple[str, str], ...]:
    """Return (field, fault) for each error in a raise of a budget, or with `who` of one owner."""
    if who is None:
        return tuple(wrong_raise(read_budget(row), amount, until, change.now))
    own = {"id": row["id"], "value": owner_of(str(who))}
    raises, overrides = [
        {one.value: (one.amount, ms_of(one.until)) for one in change.connection.execute(query, own)}
        for query in _OWN
    ]
    within = []
    for group in change.connection.execute(overrides_of_members([id_in(row, "id")], [str(who)])):
        within.append(group.group_id)
        overrides[group.value] = group.amount, ms_of(group.until)
    current = read_budget({**row, "raises": raises, "overrides": overrides})
    return (
        *wrong_raise(current, amount, until, change.now, str(who), within=within),
        *_unknown_owner(change, row, current, str(who)),
    )


# Kinds of `each` whose values are ids of rows, with the field that names such a row.
_ROWS_OF_EACH = {KEY: "api_key_id", TENANT: "tenant_id"}


def _unknown_owner(change: EntityWrite, row: Row, current: Budget, who: str) -> Iterator[tuple[str, str]]:
    """Yield the fault of an owner that is an id of no row, or of one that the budget does not apply to."""
    kind = _ROWS_OF_EACH.get(current.each)
    if kind is None or not who.isdecimal():
        return
    owner = change.connection.execute(_OWNERS[kind], {"id": int(who)}).first()
    is_in = owner is not None and owner.organization_id == row["organization_id"]
    if owner is None or not is_in or current.tenant_id not in {0, owner.tenant_id}:
        yield (
            "who",
            f"there is no {kind.removesuffix('_id').replace('_', ' ')} {who} that this budget applies to",
        )


def _raise_one(change: EntityWrite, row: Row, who: str, values: dict[str, object]) -> None:
    """Store the raise of one owner in place of a former one."""
    own = {"value": owner_of(who), "name": who, **values}
    _store_own(change, row, budget_raise, [own], budget_raise.c.value == own["value"])


# How raises and overrides are called, and the most of a budget and of all budgets of an organization.
_MOST: Mapping[Table, tuple[str, int, int]] = {
    budget_raise: ("raised", RAISES_MAX, ORGANIZATION_RAISES_MAX),
    budget_override: ("overridden", OVERRIDES_MAX, ORGANIZATION_OVERRIDES_MAX),
}


def _store_own(
    change: EntityWrite, row: Row, table: Table, own: Sequence[Row], replaced: ColumnElement[bool]
) -> None:
    """Store raises or overrides of single owners; `replaced` and those that are over are deleted."""
    connection, columns, (word, most, most_of_all) = change.connection, table.c, _MOST[table]
    counting = {"organization": row["organization_id"], "budget_id": change.row_id, "now": change.now}
    lock_budgets(connection, id_in(row, "organization_id"))
    connection.execute(
        delete(table).where(
            columns["budget_id"] == change.row_id, (columns["until"] <= change.now) | replaced
        )
    )
    count = connection.execute(text(_COUNT.format(table.name)), counting).one()
    if count.of_budget + len(own) > most or count.of_all + len(own) > most_of_all:
        bound = f"{most} of a budget, and {most_of_all} of all budgets"
        raise Unprocessable(errors=(("who", f"{bound} are {word} at most: there cannot be more"),))
    if own:
        rows = [{"budget_id": change.row_id, **values} for values in own]
        connection.execute(insert_rows(table, rows))
    _touch(change)


def _touch(change: EntityWrite) -> None:
    """Note that amounts of a budget change now: what an interval leaves goes by those at its end."""
    touched = update(budget).where(budget.c.id == change.row_id)
    change.connection.execute(touched.values(updated_at=func.now()))


def override(change: EntityWrite) -> Row:
    """Store the amount of one owner in place of the budget's; with a token of one tenant in its budgets alone.

    Raise `NotFound` if its address names a group that the budget's organization does not have.
    """
    row, values = lock(change), change.command.values
    change.before = None
    if str(values["who"]).startswith(OF_GROUP) and not _kind_of(change, row, str(values["who"])):
        raise NotFound
    if errors := tuple(_wrong_override(change, row, values)):
        raise Unprocessable(errors=errors)
    own = _own_of(values)
    _let_go(change, row, [str(own["value"])])
    _store_own(change, row, budget_override, [own], budget_override.c.value == own["value"])
    _defined(change)
    return {**row, **own}


def set_overrides(change: EntityWrite) -> Row:
    """Store all overrides of a budget in place of the former ones."""
    row, overrides = lock(change), change.command.values["overrides"]
    change.before = None
    assert isinstance(overrides, list)
    own = {str(values["value"]): values for values in map(_own_of, overrides)}
    errors = [
        (f"overrides.{index}.{name}", message)
        for index, values in enumerate(overrides)
        for name, message in _wrong_override(change, row, values)
    ]
    if len(own) < len(overrides):
        errors.append(("overrides", "must have each who once"))
    if errors:
        raise Unprocessable(errors=tuple(errors[:OVERRIDE_ERRORS_MAX]))
    _let_go(change, row, None)
    _store_own(change, row, budget_override, [*own.values()], true())
    return _defined(change)


def _own_of(values: Row) -> dict[str, object]:
    """Return the row of an override without its budget."""
    who = str(values["who"])
    return {
        "value": override_owner(who), "name": who,
        **{name: values.get(name) for name in ("amount", "until", "reason")},
    }  # fmt: skip


def _wrong_override(change: EntityWrite, row: Row, values: Row) -> Iterator[tuple[str, str]]:
    """Yield (field, fault) for each error in an override of a budget, whose row is `row`."""
    current, who, until = read_budget(row), str(values["who"]), values.get("until")
    assert until is None or isinstance(until, datetime)
    yield from wrong_override(
        current, values["amount"], until, change.now, who, kind=_kind_of(change, row, who)
    )
    yield from _unknown_owner(change, row, current, who)


def _kind_of(change: EntityWrite, row: Row, who: str) -> str:
    """Return the kind of the group `who`, `group:ID`, of a budget's organization; empty if there is none."""
    if not who.startswith(OF_GROUP):
        return ""
    lock_budgets(change.connection, id_in(row, "organization_id"))
    columns = caller_group.c
    is_group = (
        columns.organization_id == row["organization_id"],
        cast(columns.id, Text) == who.removeprefix(OF_GROUP),
    )
    return change.connection.scalar(live(caller_group, columns.kind).where(*is_group)) or ""


def remove_override(change: EntityWrite) -> Row:
    """Remove the override of one owner; raise `NotFound` if none is in force."""
    row, who = lock(change), str(change.command.values["who"])
    change.before = None
    columns = budget_override.c
    is_owner = (
        columns.budget_id == change.row_id,
        columns.value == override_owner(who),
        OVERRIDE_IS_IN_FORCE,
    )
    removed = (
        delete(budget_override).where(*is_owner).returning(columns.amount, columns.until, columns.reason)
    )
    own = change.connection.execute(removed).mappings().first()
    if not _let_go(change, row, [override_owner(who)]) and own is None:
        raise NotFound
    _touch(change)
    _defined(change)
    return {**row, **(own or {"amount": None, "until": None, "reason": None}), "name": who}


def _let_go(change: EntityWrite, row: Row, owners: Sequence[str] | None) -> bool:
    """End the hold of owners' overrides, of all for None; return whether any was held.

    Raise `Conflict` before the rows of a database that was set back are compared: a newer override would be held too.
    """
    if is_comparing(change.connection):
        raise Conflict(
            "PostgreSQL was set back, and overrides are compared with those in Redis: try again in a minute."
        )
    path = ["overrides", str(change.row_id)]
    held = {"account": f"access:{row['organization_id']}", "path": path, "owners": owners}
    return change.connection.execute(text(_LET_GO), held).first() is not None


def reset(change: EntityWrite) -> Row:
    """Reset the use in a budget's current window to 0, in all accounts of the budget."""
    row = lock(change)
    change.before = None
    organization_id = id_in(row, "organization_id")
    account = account_of(organization_id, read_budget(row))
    payload = {"budget_id": change.row_id, "account": account}
    change.intend([f"organization:{organization_id}"], "budget", payload, organization_id=organization_id)
    return row


def forget_key(change: EntityWrite, key_id: int) -> None:
    """Remove a deleted API key from deleted budgets, which are kept for the record."""
    gone = (budget.c.api_key_id == key_id, budget.c.deleted_at.is_not(None))
    change.connection.execute(update(budget).where(*gone).values(api_key_id=None))


def _defined(change: EntityWrite) -> Row:
    row = change.fetch()
    people.define_organization(change, row)
    return row


def _undeclared(connection: Connection, values: Row) -> Iterator[tuple[str, str]]:
    """Yield the fields of a budget that name a tag which its organization does not declare."""
    owner, tags = id_in(values, "organization_id"), values.get("tags") or {}
    assert isinstance(tags, dict)
    named = {"tags": [*tags], "each": [tag] if (tag := tag_in(str(values.get("each") or ""))) else []}
    for name, names in named.items():
        if names and (why := undeclared(connection, owner, names)):
            yield name, why


def _check_steps(change: EntityWrite, values: Row, steps: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields of steps of a budget of money whose model has no price, at any provider or time."""
    named = {
        f"steps.{place}.models.{pattern}": other
        for place, step in enumerate(steps or ())
        for pattern, other in step["models"].items()
    }
    if values.get("unit") != MONEY or not named:
        return
    owner = {"organization": values["organization_id"]}
    # Tuples, which the compiled function asks for.
    prices, models = [[*map(tuple, change.connection.execute(known, owner))] for known in (_PRICED, _MODELS)]
    lacking = {*find_unpriced(named.values(), prices, models, change.rules.stand_ins)}
    mend = "store one first, let another's stand in (TOLLKEEPER_PRICE_AS), or name a model that has one"
    yield from (
        (field, f"names {other}, which has no price: {mend}")
        for field, other in named.items()
        if other in lacking
    )


def _foreign(connection: Connection, values: Row) -> Iterator[tuple[str, str]]:
    """Yield the fields of a budget that name another owner's object; `require` reports missing objects."""
    for name, owner in _OWNERS.items():
        value = values.get(name)
        found = None if value is None else connection.execute(owner, {"id": value}).first()
        if found is None:
            continue
        if found.organization_id != values["organization_id"]:
            yield name, "is of another organization"
        elif values.get("tenant_id") not in {None, found.tenant_id} and found.tenant_id is not None:
            yield name, f"is not of tenant {values['tenant_id']}"


_PRICED = query("steps.prices", "Select the names that have a price", PRICED_NAMES)
_MODELS = query(
    "steps.models", "Select an organization's models with their targets",
    f"{STORED_MODELS} WHERE coalesce(organization_id, :organization) = :organization",
)  # fmt: skip
# Objects that a budget may name, with their owners.
_TENANTS = select(tenant.c.organization_id, tenant.c.id.label("tenant_id"))
_KEYS = select(tenant.c.organization_id, api_key.c.tenant_id).join(tenant, tenant.c.id == api_key.c.tenant_id)
_OWNERS = {
    "tenant_id": _TENANTS.where(tenant.c.id == bindparam("id")),
    "api_key_id": _KEYS.where(api_key.c.id == bindparam("id")),
    "group_id": select(caller_group.c.organization_id, null().label("tenant_id")).where(
        caller_group.c.id == bindparam("id")
    ),
}
# What a row has that a new budget has not yet.
_UNSAVED: Row = {
    "id": 0, "created_at": None, "raised_until": None, "mode": ENFORCE, "on_exhausted": FINISH,
}  # fmt: skip
_NOT_RAISED = {"raised_to": None, "raised_until": None, "raise_reason": None}
_is_raised = budget.c.raised_until > func.now()
# The last stored uses, as `stored_uses` says: all parts of a rolling window; the counters have newer values.
_last = (
    select(*(budget_use.c[name] for name in ("start", "used", "carried", "limit_at_end", "changed")))
    .where(budget_use.c.budget_id == budget.c.id)
    .order_by(budget_use.c.start.desc())
    .limit(WHOLE_PARTS + 1)
    .correlate(budget)
    .lateral("last")
)
_uses = select(stored_uses(_last.c).label("uses")).select_from(_last).correlate(budget).lateral("uses")

_own = budget_override.c
_overrides = select(
    _own.budget_id.label("row_id"), _own.name, _own.amount, _own.until, _own.reason
).where(OVERRIDE_IS_IN_FORCE)  # fmt: skip
_columns = (
    *(column for column in budget.c if column.name not in {*_NOT_RAISED, "deleted_at"}),
    *(case((_is_raised, budget.c[name])).label(name) for name in _NOT_RAISED),
    organization.c.currency,
    case((budget.c.each.is_(None), _uses.c.uses)).label("stored_uses"),
)
_here = budget.join(organization, organization.c.id == budget.c.organization_id).outerjoin(_uses, true())

BUDGET_SUBJECT = Entity(
    budget,
    source=select(*_columns).select_from(_here).where(budget.c.deleted_at.is_(None)),
    verbs={
        "create": create_budget,
        "change": _unless_organizations(change_budget),
        "delete": _unless_organizations(entity.delete),
        "raise": _unless_organizations(raise_amount),
        "reset": _unless_organizations(reset),
        "override": override,
        "remove-override": remove_override,
        "set-overrides": set_overrides,
    },
    of_owner=frozenset({"override", "remove-override", "set-overrides"}),
    parts={"overrides": _overrides.order_by(budget_override.c.name)},
    partitioned=True,
    refers={
        "organization_id": organization,
        "tenant_id": tenant,
        "api_key_id": api_key,
        "service_id": service,
        "group_id": caller_group,
    },
    check_values=check_values,
    define=people.define_organization,
)
# The accounts of a budget with use that began to count at `start`, or at `since` or later. Accounts by the calendar have one
# start, so that PostgreSQL reads no more of them than a page has.
BUDGET_ACCOUNTS = Entity(
    budget_use,
    source=account_uses(),
    conditions={"since": lambda since: budget_use.c.start >= since},
    order=("value",),
)
BUDGET_OVERRIDES = Entity(
    budget_override, source=select(budget_override).where(OVERRIDE_IS_IN_FORCE), order=("name",)
)
