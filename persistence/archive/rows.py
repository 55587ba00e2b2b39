"""What a month of a ledger holds: its rows as text, and figures of each column to hold a copy against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date

from sqlalchemy import BigInteger, Boolean, Column, DateTime

from persistence.archive.months import Connection, Ledger, one

# Of a column: how many of its cells are not null, and what they come to.
Figure = tuple[int, int]
INTEGER, MOMENT, FLAG, TEXT = "integer", "moment", "flag", "text"
_NAMES = {BigInteger: INTEGER, DateTime: MOMENT, Boolean: FLAG}
# A moment is in microseconds since 1970. Texts come to the first 60 bits of their digests, added up.
_ADDED = {
    INTEGER: '"{name}"',
    MOMENT: '(extract(epoch FROM "{name}") * 1000000)::bigint',
    FLAG: '"{name}"::integer',
    TEXT: "('x' || substr(md5(\"{name}\"::text), 1, 15))::bit(60)::bigint",
}
_WRITTEN = {MOMENT: f'{_ADDED[MOMENT]} AS "{{name}}"'}


def columns_of(ledger: Ledger) -> Mapping[str, str]:
    """The columns of a ledger and what each holds."""
    return {column.name: _kind(column) for column in ledger.table.columns}


@contextmanager
def as_csv(connection: Connection, ledger: Ledger, month: date) -> Iterator[Iterator[bytes]]:
    """All rows of a month as CSV: an empty cell is null, an empty text is quoted."""
    cells = ", ".join(
        _WRITTEN.get(kind, '"{name}"').format(name=name) for name, kind in columns_of(ledger).items()
    )
    statement = (
        f"COPY (SELECT {cells} FROM {ledger.partition(month)} ORDER BY {ledger.order}) TO STDOUT (FORMAT csv)"  # noqa: S608  # our own words
    )
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copied:
        yield (bytes(piece) for piece in copied)


def about(connection: Connection, ledger: Ledger, month: date) -> int:
    """How many rows a month has, as the database last estimated it; 0 where it did not yet."""
    statement = (
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint"  # noqa: S608  # our own words
        f" FROM pg_partition_tree('{ledger.partition(month)}') AS t"
        " JOIN pg_class AS c ON c.oid = t.relid WHERE t.isleaf"
    )
    (found,) = one(connection, statement)
    return int(found)


def figures(connection: Connection, ledger: Ledger, month: date) -> tuple[int, Mapping[str, Figure]]:
    """How many rows a month has, and the figures of each column."""
    columns = columns_of(ledger)
    sums = ", ".join(
        f'count("{name}"), coalesce(sum({_ADDED[kind].format(name=name)}), 0)'
        for name, kind in columns.items()
    )
    statement = f"SELECT count(*), {sums} FROM {ledger.partition(month)}"  # noqa: S608  # our own words
    rows, *found = (int(value) for value in one(connection, statement))
    return rows, dict(zip(columns, zip(found[::2], found[1::2], strict=True), strict=True))


def _kind(column: Column[object]) -> str:
    return next((name for type_, name in _NAMES.items() if isinstance(column.type, type_)), TEXT)
