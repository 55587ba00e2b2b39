"""Usage, added up from its roll-ups: the largest that lie within the time asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Label,
    Select,
    Subquery,
    case,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.exc import DataError

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import (
    GROUPS,
    OTHER,
    OTHER_PROJECTS,
    SPANS,
    SUMS,
    Piece,
    UsageQuery,
    hours_asked,
    in_parts,
    pieces,
    span_of,
    start_of,
)
from gateway.errors import Unprocessable
from persistence.tables import (
    api_key,
    app_user,
    kept_since,
    money,
    organization,
    service,
    tenant,
    usage_rollup,
)

# A plan made for millions of rows takes longer to compile than these reports take. Tens of thousands of
# groups fit into this memory; into the usual one they do not, and are written to disk.
# What is read in the order of time is still added up by hashing: to sort it costs three times as much.
SETTINGS = {
    "jit": "off",
    "work_mem": "64MB",
    "enable_incremental_sort": "off",
    "max_parallel_workers_per_gather": "0",
}
PLAIN = text(
    "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in SETTINGS.items())
)

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
    span = f"usage_rollup_{span_of(asked, 'hour')}"
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
    parts, skip = in_parts(asked), asked.skip
    part = next(parts)
    with suppress(StopIteration):
        while len(found) < asked.rows_max:
            asking = replace(part, rows_max=asked.rows_max - len(found), skip=skip)
            rows = connection.execute(_question(asking, total)).mappings().all()
            found += map(dict, rows)
            # Rows are skipped here: the first interval's alone, which is in the first part.
            part = parts.send(len(rows) + skip)
            skip = 0
    return found


def _question(asked: UsageQuery, total: str) -> Select[tuple[object, ...]]:
    """Added up first, then put in order, and named last: names are looked up for what is told alone."""
    columns = [GROUPS[group] for group in asked.groups]
    apart = ["currency", *columns] if asked.interval == "none" else ["began", "currency", *columns]
    here = _rows(asked, apart).c
    told_apart = [here[name] for name in apart]
    added = (
        select(*told_apart, *(getattr(func, total)(here[name]).label(name) for name in SUMS))
        .group_by(*told_apart)
        .subquery("added")
    )
    began = literal(asked.since).label("began") if asked.interval == "none" else added.c.began
    order = ("began", "cost", "tokens", *columns, "currency")
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
        each.currency,
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


def _rows(asked: UsageQuery, apart: Sequence[str]) -> Subquery:
    """The roll-ups that make up a span, each hour of it once: every piece from the partition of its span.

    An "or" between the pieces, a join, or a column that is not used makes PostgreSQL take half as long again.
    """
    found = []
    for piece in pieces(asked):
        # By a label of its own: a name that a column has would be that column.
        began = _began(asked.interval, piece).label("began")
        found.append(
            select(*(began if name == "began" else _here[name] for name in (*apart, *SUMS))).where(
                _here.span == piece.span, _here.start >= piece.since, _here.start < piece.until,
                *(_here[name] == value for name, value in asked.filters.items()),
            )
        )  # fmt: skip
    return union_all(*found).subquery("rows")


def _began(interval: str, piece: Piece) -> ColumnElement[datetime]:
    """When the interval of a row began; seldom by a function of each row, as dear as adding it up."""
    if SPANS[piece.span].unit == interval:
        return _here.start
    if start_of(interval, piece.until - timedelta(hours=1)) == (since := start_of(interval, piece.since)):
        return literal(since, DateTime(timezone=True))
    return func.date_trunc(interval, _here.start, "UTC")
