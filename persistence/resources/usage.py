"""Usage, added up from its roll-ups: the largest that lie within the time asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Label,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.exc import DataError

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import (
    GROUPS,
    OTHER,
    OTHER_PROJECTS,
    SUMS,
    UsageQuery,
    hours_asked,
    pieces,
    windows,
)
from gateway.errors import Unprocessable
from persistence.tables.billing import service
from persistence.tables.ledgers import kept_since, money, usage_rollup
from persistence.tables.people import api_key, app_user, organization, tenant

# A plan made for millions of rows takes longer to compile than these reports take. Tens of thousands of
# groups fit into this memory; into the usual one they do not, and are written to disk.
WORK_MEM = "64MB"
PLAIN = text(f"SELECT set_config('jit', 'off', true), set_config('work_mem', '{WORK_MEM}', true)")

_here = usage_rollup.c
# What a group is called.
_NAMES = {
    "organization": (organization, organization.c.name),
    "tenant": (tenant, tenant.c.name),
    "user": (app_user, app_user.c.external_id),
    "api_key": (api_key, api_key.c.name),
    "service": (service, service.c.key),
}


def used(connection: Connection, asked: UsageQuery) -> Sequence[Row]:
    """What was used, in the order of time, the dearest of a time first."""
    connection.execute(PLAIN)
    try:
        with connection.begin_nested():
            found = _used(connection, asked, "usage_total")
    except DataError:
        # A sum beyond a column's largest number, which sum() widens.
        found = _used(connection, asked, "sum")
    # Last, because hours may be dropped while they are added up.
    _refuse_dropped(connection, asked)
    return found


def _refuse_dropped(connection: Connection, asked: UsageQuery) -> None:
    """`Unprocessable` names what asks for hours that are not kept."""
    asking = hours_asked(asked)
    if not asking:
        return
    span = f"usage_rollup_{'hour' if asked.people else 'team_hour'}"
    since = connection.scalar(select(kept_since.c.since).where(kept_since.c.ledger == span))
    if since is None:
        return
    reason = (
        f"asks for hours before {since.astimezone(UTC):%Y-%m-%dT%H:%MZ}, which are not kept:"
        " ask for whole days (UTC), by day, or for later hours"
    )
    if wrong := tuple((name, reason) for name, at in asking.items() if at < since):
        raise Unprocessable("Some query parameters are wrong.", wrong)


def _used(connection: Connection, asked: UsageQuery, total: str) -> Sequence[Row]:
    found: list[Row] = []
    skip = asked.skip
    for window in windows(asked):
        left = asked.rows_max - len(found)
        # Rows are skipped here: the first interval's alone, which is in the first window.
        rows = connection.execute(_question(replace(window, rows_max=left, skip=skip), total))
        found += [dict(row) for row in rows.mappings()]
        skip = 0
        if len(found) >= asked.rows_max:
            break
    return found


def _question(asked: UsageQuery, total: str) -> Select[tuple[object, ...]]:
    """Added up first, then put in order, and named last: names are looked up for what is told alone."""
    columns = [GROUPS[group] for group in asked.groups]
    # What had no price is in the organization's currency, as it would be with one.
    currency = case((_here.currency == "", organization.c.currency), else_=_here.currency)
    start = func.date_trunc(asked.interval, _here.start, "UTC")
    # By labels of their own: a name that a column has would be that column.
    apart = [currency.label("money"), *((start.label("began"),) if asked.interval != "none" else ())]
    told_apart = [_here[column] for column in columns]
    wanted = [
        (currency if name == "currency" else _here[name]) == value for name, value in asked.filters.items()
    ]
    added = (
        select(*apart, *told_apart, *(getattr(func, total)(_here[name]).label(name) for name in SUMS))
        .join_from(usage_rollup, organization, organization.c.id == _here.organization_id)
        .where(_within(asked), *wanted)
        .group_by(*(label.name for label in apart), *told_apart)
        .subquery("added")
    )
    began = literal(asked.since).label("began") if asked.interval == "none" else added.c.began
    order = ("began", "cost", "tokens", *columns, "money")
    page = (
        select(began, *(column for column in added.c if column.name != "began"))
        # What was taken out again is nothing.
        .where(or_(*(added.c[name] != 0 for name in SUMS)))
        .order_by(*(text(f"{name} DESC" if name in ("cost", "tokens") else name) for name in order))
        .limit(asked.rows_max)
        .offset(asked.skip)
        .subquery("page")
    )
    each = page.c
    shown = [
        each.began.label("start"),
        each.money.label("currency"),
        money(each.cost).label("cost"),
        *(each[name] for name in SUMS if name != "cost"),
        *(_id(each[column]) for column in columns),
        *(
            _name(group, each[GROUPS[group]])
            for group in asked.groups
            if group in _NAMES or group == "project"
        ),
    ]
    return select(*shown).order_by(
        *(each[name].desc() if name in ("cost", "tokens") else each[name] for name in order)
    )


def _id(column: ColumnElement[Any]) -> Label[Any]:
    """What is told of a column; nothing of what is nobody's, and of projects that are told together."""
    if column.name == "project_id":
        return case((column >= 0, column)).label(column.name)
    return func.nullif(column, "" if column.name == "model" else 0).label(column.name)


def _name(group: str, id_: ColumnElement[int]) -> Label[str]:
    if group == "project":
        return case((id_ == OTHER_PROJECTS, OTHER)).label(group)
    named, name = _NAMES[group]
    return select(name).where(named.c.id == id_).scalar_subquery().label(group)


def _within(asked: UsageQuery) -> ColumnElement[bool]:
    """The roll-ups that make up a span, each hour of it once."""
    return or_(
        *(
            and_(_here.span == piece.span, _here.start >= piece.since, _here.start < piece.until)
            for piece in pieces(asked)
        )
    )
