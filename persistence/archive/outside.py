"""Rows of months that nobody made: the default partition took them, and here they get months of their own.

They are there after a clock that was wrong, or a time without keepers. A month of which there was a partition
once, and is none any more, was archived: what comes for it stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import psycopg

from persistence.archive.cut import bounds_of, have_partitions, lock, make, names_of, put_in
from persistence.archive.months import BY_NAME, Connection, Ledger
from persistence.engine import CONNECT, plain_url

# So many rows are moved at once at most: whoever reads or writes the ledger waits meanwhile.
ROWS_MAX = 1_000_000
# Of the oldest so many months; the next time others.
MONTHS_MAX = 120
# Whoever only asks is told of so many rows of a ledger.
ROWS_TOLD_MAX = 10_000

_ROWS = """
SELECT date_trunc('month', {at}, 'UTC')::date AS month FROM {ledger}_default
 WHERE date_trunc('month', {at}, 'UTC')::date NOT IN (
       SELECT month FROM archived_month WHERE ledger = '{ledger}')"""
_MONTHS = f"SELECT month, count(*) FROM ({_ROWS}) AS found GROUP BY 1 ORDER BY 1 LIMIT {{most}}"  # noqa: S608  # our own words
_TOLD = f"SELECT min(month), max(month), count(*) FROM ({_ROWS} LIMIT {{most}}) AS found"  # noqa: S608  # our own words
_MOVE = """
WITH gone AS (DELETE FROM {ledger}_default WHERE {at} >= '{since}' AND {at} < '{until}' RETURNING {columns})
INSERT INTO {kept} ({columns}) SELECT {columns} FROM gone"""


@dataclass(frozen=True, slots=True)
class Moved:
    """A month of a ledger that has its partition now, and how many rows came into it."""

    ledger: str
    month: date
    rows: int


def bring_in(connection: Connection, rows_max: int = ROWS_MAX) -> list[Moved]:
    """Give a partition to each month that has rows and none, each ledger in one transaction."""
    return [moved for ledger in BY_NAME.values() for moved in _bring_in(connection, ledger, rows_max)]


def told(url: str, rows_max: int = ROWS_TOLD_MAX) -> list[tuple[str, date, date, int]]:
    """Each ledger that has such rows: of which months, and how many; nothing where nobody answers."""
    found = []
    try:
        with psycopg.connect(plain_url(url), autocommit=True, **CONNECT) as connection:
            for name, ledger in BY_NAME.items():
                asked = _TOLD.format(ledger=name, at=ledger.at, most=rows_max)
                first, last, rows = connection.execute(asked.encode()).fetchall()[0]
                if rows:
                    found.append((name, first, last, int(rows)))
    except psycopg.Error:
        return []
    return found


def _bring_in(connection: Connection, ledger: Ledger, room: int) -> list[Moved]:
    if not _asked(connection, ledger):
        return []
    moved = []
    with connection.transaction():
        have_partitions(connection)
        lock(connection, ledger.name, "ACCESS EXCLUSIVE")
        months = _asked(connection, ledger)
        # By itself it may be deleted from.
        connection.execute(f"ALTER TABLE {ledger.name} DETACH PARTITION {ledger.name}_default".encode())
        for month, rows in months:
            if rows <= room:
                room -= rows
                moved.append(Moved(ledger.name, month, _move(connection, ledger, month)))
        connection.execute(
            f"ALTER TABLE {ledger.name} ATTACH PARTITION {ledger.name}_default DEFAULT".encode()
        )
    return moved


def _asked(connection: Connection, ledger: Ledger) -> list[tuple[date, int]]:
    found = connection.execute(_MONTHS.format(ledger=ledger.name, at=ledger.at, most=MONTHS_MAX).encode())
    return [(month, int(rows)) for month, rows in found]


def _move(connection: Connection, ledger: Ledger, month: date) -> int:
    names, (since, until) = names_of(ledger, month), bounds_of(month)
    make(connection, names)
    columns = ", ".join(f'"{column.name}"' for column in ledger.table.columns)
    moved = connection.execute(
        _MOVE.format(at=ledger.at, since=since, until=until, columns=columns, **names).encode()
    )
    put_in(connection, ledger, month)
    return moved.rowcount
