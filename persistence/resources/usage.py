"""Usage reports, summed from roll-ups: the largest ones that lie within the requested time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Label,
    Select,
    Subquery,
    case,
    column,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError

from gateway.core.accounts.administration import Row
from gateway.core.accounts.tags import tag_in
from gateway.core.accounts.usage import (
    BY_CALL,
    DIMENSIONS,
    OTHER,
    OTHER_PROJECTS,
    SPANS,
    TAGS,
    ReportPiece,
    UsageQuery,
    column_of,
    hourly_parts,
    in_parts,
    pieces,
    span_of,
    start_of,
)
from gateway.core.accounts.usage_sums import MONEY_SUMS, SUMS
from gateway.errors import Unprocessable
from persistence.ledger.statements import SUMS_OF_CALL
from persistence.tables import (
    api_key,
    app_user,
    caller_group,
    kept_since,
    money,
    organization,
    service,
    tenant,
    usage_rollup,
    usage_tag,
)

# JIT compilation takes longer than these reports. Tens of thousands of groups fit into this memory; with the
# default they are written to disk. Rows read in the order of time are still summed by hashing: sorting them
# costs three times as much.
SETTINGS = {
    "jit": "off",
    "work_mem": "64MB",
    "enable_incremental_sort": "off",
    "max_parallel_workers_per_gather": "0",
}
PLAIN = text(
    "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in SETTINGS.items())
)

_here, _tagged = usage_rollup.c, usage_tag.c
# The name of a group's rows.
_NAMES = {
    "organization": (organization, organization.c.name),
    "tenant": (tenant, tenant.c.name),
    "user": (app_user, app_user.c.external_id),
    "api_key": (api_key, api_key.c.name),
    "service": (service, service.c.key),
    "group": (caller_group, caller_group.c.name),
}
# Columns of calls that the roll-ups have in another form.
_AS_ROLLED_UP = {
    "start": "to_timestamp(start / 1000) AS start",
    "currency": "coalesce(nullif(n.currency, ''), o.currency) AS currency",
    TAGS: "n.tags::jsonb AS tags",
}
# Calls of a time in the form of the roll-ups, once for each of their groups.
_OF_CALLS = f"""
SELECT {", ".join(_AS_ROLLED_UP.get(name, f"n.{name}") for name in (*DIMENSIONS, *SUMS, BY_CALL))}
  FROM (SELECT {
    SUMS_OF_CALL
}, member::bigint FROM call CROSS JOIN LATERAL jsonb_array_elements_text(groups) AS m (member)
         WHERE groups IS NOT NULL AND NOT refused AND created_at >= :since AND created_at < :until)
       AS n ({", ".join((*DIMENSIONS, *SUMS, "request_id", "used_ms", BY_CALL))})
  JOIN organization AS o ON o.id = n.organization_id"""


def read_use(connection: Connection, asked: UsageQuery) -> Sequence[Row]:
    """Return the use of a query in the order of time, the highest cost first within an interval."""
    _refuse_unknown(connection, asked)
    connection.execute(PLAIN)
    try:
        with connection.begin_nested():
            found = _read_usage(connection, asked, "usage_total")
    except DataError:
        # The sum exceeds a bigint; `sum` returns numeric.
        found = _read_usage(connection, asked, "sum")
    # Checked last, because hours may be dropped while they are summed.
    _refuse_dropped(connection, asked)
    return found


def tags_since(connection: Connection, asked: UsageQuery) -> Mapping[str, str]:
    """Return since when calls have each tag of a query, in the organization that it filters by or in any."""
    since = func.jsonb_each_text(organization.c.tags_since).table_valued("key", "value", name="t")
    query = select(since.c.key, func.min(since.c.value).label("since")).select_from(
        organization.join(since, true())
    )
    query = query.where(since.c.key.in_([tag_in(name) for name in asked.tags])).group_by(since.c.key)
    if "organization_id" in asked.filters:
        query = query.where(organization.c.id == asked.filters["organization_id"])
    return {row.key: row.since for row in connection.execute(query)}


def _refuse_unknown(connection: Connection, asked: UsageQuery) -> None:
    """Raise `Unprocessable`, naming the parameter, for a tag that is not declared or a group that does not exist."""
    lacking = sorted(name for name in asked.tags if tag_in(name))
    if lacking:
        declared = tags_since(connection, asked)
        lacking = [name for name in lacking if tag_in(name) not in declared]
    errors = [
        ("group_by" if name in asked.groups else name, f"{tag_in(name)} is not declared as a tag")
        for name in lacking
    ]
    if (group_id := asked.filters.get(BY_CALL)) is not None:
        query = select(caller_group.c.id).where(caller_group.c.id == group_id)
        if "organization_id" in asked.filters:
            query = query.where(caller_group.c.organization_id == asked.filters["organization_id"])
        if connection.scalar(query) is None:
            errors.append((BY_CALL, f"there is no group {group_id}"))
    if errors:
        raise Unprocessable("Some query parameters are wrong.", tuple(errors))


def _refuse_dropped(connection: Connection, asked: UsageQuery) -> None:
    """Raise `Unprocessable`, naming the field, if hours are requested that are no longer stored."""
    asking = {"from": asked.since} if asked.by_call else hourly_parts(asked)
    if not asking:
        return
    # Hours of calls with tags are kept as long as those of all groups.
    span = "call"
    if not asked.by_call:
        span = f"usage_rollup_{'hour' if asked.tags else span_of(asked, 'hour')}"
    since = connection.scalar(select(kept_since.c.since).where(kept_since.c.ledger == span))
    if since is None:
        return
    what, instead = (
        ("calls", "later ones")
        if asked.by_call
        else ("hours", "whole days (UTC), by day, or for later hours")
    )
    reason = f"asks for {what} before {since.astimezone(UTC):%Y-%m-%dT%H:%MZ}, which are not kept: ask for {instead}"
    if wrong := tuple((name, reason) for name, at in asking.items() if at < since):
        raise Unprocessable("Some query parameters are wrong.", wrong)


def _read_usage(connection: Connection, asked: UsageQuery, total: str) -> Sequence[Row]:
    """Return the rows of a usage query, read part by part until there are enough."""
    found: list[Row] = []
    parts, skip = in_parts(asked), asked.skip
    part = next(parts)
    with suppress(StopIteration):
        while len(found) < asked.rows_max:
            asking = replace(part, rows_max=asked.rows_max - len(found), skip=skip)
            rows = connection.execute(_question(asking, total)).mappings().all()
            found += map(dict, rows)
            # Rows are skipped in Python: only the first interval's, which the first part contains.
            part = parts.send(len(rows) + skip)
            skip = 0
    return found


def _question(asked: UsageQuery, total: str) -> Select[tuple[object, ...]]:
    """Return the query of a usage report: it sums, sorts, and reads names only for the rows it returns.

    `total` is the SQL function that sums.
    """
    columns = [column_of(group) for group in asked.groups]
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
        # Sums that are all zero are left out.
        .where(or_(*(added.c[name] != 0 for name in SUMS)))
        .order_by(
            *(
                text(f"{_quoted(name)} DESC" if name in ("cost", "tokens") else _quoted(name))
                for name in order
            )
        )
        .limit(asked.rows_max)
        .offset(asked.skip)
        .subquery("page")
    )
    each = page.c
    shown = [
        each.began.label("start"),
        each.currency,
        *(money(each[name]).label(name) if name in MONEY_SUMS else each[name] for name in SUMS),
        *(_id(each[column]) for column in columns),
        *(
            _name(group, each[column_of(group)])
            for group in asked.groups
            if group in _NAMES or group == "project"
        ),
    ]
    return select(*shown).order_by(
        *(each[name].desc() if name in ("cost", "tokens") else each[name] for name in order)
    )


def _id(column: ColumnElement[Any]) -> Label[Any]:
    """Return the report's column for an id; null for 0 (no owner), and for projects summed together."""
    if column.name == "project_id":
        return case((column >= 0, column)).label(column.name)
    if column.name == TAGS:
        return column.label(TAGS)
    is_text = column.name == "model" or tag_in(column.name)
    return func.nullif(column, "" if is_text else 0).label(column.name)


def _name(group: str, id_: ColumnElement[int]) -> Label[str]:
    if group == "project":
        return case((id_ == OTHER_PROJECTS, OTHER)).label(group)
    named, name = _NAMES[group]
    return select(name).where(named.c["id"] == id_).scalar_subquery().label(group)


def _quoted(name: str) -> str:
    """Return the name of an output column, which may be a tag's, as SQL of a statement's text."""
    return '"{}"'.format(name.replace(":", r"\:"))


def _rows(asked: UsageQuery, apart: Sequence[str]) -> Subquery:
    """Return the roll-ups that cover the requested time, each hour exactly once.

    Longer spans, such as months, are read where they fit. An "or" between the pieces, a join, or an unused
    column makes PostgreSQL take half as long again.
    """
    if asked.by_call:
        return _rows_of_calls(asked, apart)
    selects = [
        _rows_of_source(asked, apart, piece, source)
        for piece in pieces(asked)
        for source in _sources(asked, piece)
    ]
    return union_all(*selects).subquery("rows")


def _rows_of_source(
    asked: UsageQuery, apart: Sequence[str], piece: ReportPiece, source: _Source
) -> Select[Any]:
    """Return the SELECT of a roll-up's rows in a piece of the requested time."""
    columns, value = source.columns, partial(_column, source)
    # Labelled, since a column's name in GROUP BY would mean the column.
    began = _began(asked.interval, piece, columns.start).label("began")
    parts = [began if name == "began" else value(name).label(name) for name in apart]
    sums = [(-columns[name]).label(name) if source.is_off else columns[name] for name in SUMS]
    return select(*parts, *sums).where(
        columns.span == source.span, columns.start >= piece.since, columns.start < piece.until,
        *(value(name) == wanted for name, wanted in asked.filters.items()), *_among(asked, value),
    )  # fmt: skip


class _Source(NamedTuple):
    """Roll-ups of a span. With `has_tags` their rows are read by tag; if it `is_off`, sums are subtracted."""

    columns: Any
    span: str
    has_tags: bool = False
    is_off: bool = False


def _sources(asked: UsageQuery, piece: ReportPiece) -> list[_Source]:
    """Return the roll-ups to read for a piece of a report.

    Where tags matter, calls that have some are added with them and taken off those without.
    """
    everything = _Source(_here, piece.span)
    if not asked.tags:
        return [everything]
    unit = SPANS[piece.span].unit
    tagged = _Source(_tagged, unit, has_tags=True)
    if any(asked.filters.get(name) for name in asked.tags):
        return [tagged]
    return [everything, tagged, _Source(_tagged, unit, is_off=True)]


def _column(source: _Source, name: str) -> Any:
    """Return a column of roll-ups; those that are not read by tag are of calls without."""
    if name == TAGS:
        return source.columns.tags if source.has_tags else literal({}, JSONB)
    if tag := tag_in(name):
        return func.coalesce(source.columns.tags[tag].astext, "") if source.has_tags else literal("")
    return source.columns[name]


def _rows_of_calls(asked: UsageQuery, apart: Sequence[str]) -> Subquery:
    """Return the calls of the requested time in the form of the roll-ups, once for each of their groups."""
    names = (*DIMENSIONS, *SUMS, BY_CALL)
    calls = text(_OF_CALLS).bindparams(since=asked.since, until=asked.until)
    here = (
        calls.columns(*(column(name, JSONB if name == TAGS else None) for name in names)).subquery("calls").c
    )
    began = func.date_trunc(asked.interval, here.start, "UTC").label("began")
    value = partial(_column, _Source(here, "", has_tags=True))
    return (
        select(
            *(began if name == "began" else value(name).label(name) for name in apart),
            *(here[name] for name in SUMS),
        )
        .where(*(value(name) == wanted for name, wanted in asked.filters.items()), *_among(asked, value))
        .subquery("rows")
    )


def _among(asked: UsageQuery, value: Callable[[str], Any]) -> list[ColumnElement[bool]]:
    """Return the condition of a report that is limited to some values of its groups; `value` returns a column."""
    groups = tuple_(*(value(column_of(group)) for group in asked.groups))
    return [groups.in_(asked.only)] if asked.only else []


def _began(interval: str, piece: ReportPiece, start: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return SQL for the start of the report's interval that a row belongs to.

    It is a constant or a column where possible, because a function for each row costs as much as summing it.
    """
    if SPANS[piece.span].unit == interval:
        return start
    if start_of(interval, piece.until - timedelta(hours=1)) == (since := start_of(interval, piece.since)):
        return literal(since, DateTime(timezone=True))
    return func.date_trunc(interval, start, "UTC")
