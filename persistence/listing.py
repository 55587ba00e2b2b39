"""Rows of a subject as lists show them: a page after a cursor, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal, select, text, tuple_
from sqlalchemy.exc import DBAPIError

from gateway.core.accounts.administration import Page, Place, Query
from gateway.errors import Unprocessable
from persistence.refusals import QUERY_CANCELED
from persistence.subject import Subject


def page(connection: Connection, subject: Subject, query: Query) -> Page:
    """Read the rows after a cursor, in order."""
    found = _matching(subject, query)
    columns = [subject.table.c[name] for name in subject.order]
    if query.after is not None:
        here, there = tuple_(*columns), tuple_(*_literals(query.after, columns))
        found = found.where(here < there if query.descending else here > there)
    found = found.order_by(*(column.desc() if query.descending else column for column in columns))
    rows = [dict(row) for row in connection.execute(found.limit(query.limit + 1)).mappings()]
    more, rows = len(rows) > query.limit, rows[: query.limit]
    last: Any = tuple(_part(rows[-1][name]) for name in subject.order) if more else None
    return Page(tuple(rows), last)


def _part(value: Any) -> Any:
    """A value as a cursor has it: a moment as its text."""
    return value.isoformat() if isinstance(value, datetime) else value


def _literals(after: Place, columns: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """The place that a cursor names; `Unprocessable` if it is none of these columns."""
    try:
        found = [
            datetime.fromisoformat(str(part)) if column.type.python_type is datetime else part
            for part, column in zip(after, columns, strict=True)
        ]
    except ValueError:
        found = []
    if [type(part) for part in found] != [column.type.python_type for column in columns]:
        raise Unprocessable(errors=(("cursor", "is not a cursor of this list"),))
    return [literal(part, column.type) for part, column in zip(found, columns, strict=True)]


def count(connection: Connection, subject: Subject, query: Query, most: int, within_ms: int) -> int | None:
    """Count rows, one more than `most` at most; None where that takes longer than `within_ms`."""
    some = _matching(subject, query).with_only_columns(literal(1), maintain_column_froms=True)
    counted = select(func.count()).select_from(some.limit(most + 1).subquery())
    try:
        with connection.begin_nested():
            connection.execute(text(f"SET LOCAL statement_timeout = {within_ms:d}"))
            return int(connection.execute(counted).scalar_one())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != QUERY_CANCELED:
            raise
        return None


def _matching(subject: Subject, query: Query) -> Select[Any]:
    """The rows that a list's filters and its span of time let through."""
    found = subject.rows.where(*(subject.condition(name, value) for name, value in query.filters.items()))
    if query.since is not None:
        found = found.where(subject.table.c[subject.time] >= query.since)
    if query.until is not None:
        found = found.where(subject.table.c[subject.time] < query.until)
    return found
