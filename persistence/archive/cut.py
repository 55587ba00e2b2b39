"""Takes a month of a ledger out of it, in one transaction; what is asked of old rows stays.

The partition becomes a table by itself, and another takes its place with the rows that stay: of each account
the last one of the month, of tokens what is no use of a call, the row before it, and what was told of a plan
that has ended. `archived_run` stands for the rest, and what was allocated to it is added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import psycopg

from gateway.errors import ArchiveFailed
from persistence.archive.closed import MOVES, what_waits
from persistence.archive.months import BY_NAME, CALLS, CREDITS, Connection, Ledger, end_of, one
from persistence.archive.rows import Figure, figures

ARCHIVED = "_archived"
# A lock is waited for so long, below the second after which PostgreSQL looks for a deadlock; then again.
LOCK_TIMEOUT_MS = 900
TRIES_MAX = 20

# Whoever is last in a row without a gap stays, and what a later row is compared with. So does what was told
# of a plan that has ended: whether it was in time is asked by its row.
_STAYS = {
    "tenant": """
 OR transaction_type <> 'consume' OR direction <> 'OUT' OR lead(transaction_type) OVER w <> 'consume'
 OR lead(direction) OVER w <> 'OUT'
 OR request_id IN (SELECT request_id FROM use_event WHERE quota_tokens > 0)""",
    "credits": "",
    "spend": "",
}
_PLACED = """
SELECT *, (lead(seq) OVER w IS DISTINCT FROM seq + 1 OR lead(epoch) OVER w <> epoch {stays}) AS stays
  FROM {partition} WINDOW w AS (PARTITION BY {owner} ORDER BY seq)"""
_MAKE = """
CREATE TABLE {kept} (
    LIKE {ledger} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE)"""
_KEEP = "INSERT INTO {kept} ({columns}) SELECT {columns} FROM ({placed}) AS placed WHERE stays"
_RUNS = """
WITH placed AS ({placed}), span AS (
    SELECT {owner} AS id, min(seq) AS first_seq, max(seq) AS last_seq FROM {partition} GROUP BY 1
), added_up AS (
    SELECT s.id, c.first_seq, c.last_seq FROM span AS s JOIN checkpoint_in_force AS c
        ON c.account = '{kind}:' || s.id AND c.last_seq >= s.first_seq AND c.first_seq < s.last_seq
), gone AS (
    SELECT p.{owner} AS id, p.seq, p.epoch, {cycle} AS cycle, {delta} AS delta, {balance} AS balance,
           {carried} AS carried, {taken} AS taken, p.{at} AS at, a.last_seq AS added_up
      FROM placed AS p JOIN added_up AS a ON a.id = p.{owner} AND p.seq > a.first_seq AND p.seq <= a.last_seq
     WHERE NOT p.stays
), islands AS (
    SELECT *, seq - row_number() OVER (
               PARTITION BY id, epoch, cycle, added_up, balance IS NULL ORDER BY seq) AS island
      FROM gone
)
INSERT INTO archived_run (account, first_seq, last_seq, month, epoch, cycle, amount, balance, carried,
                          taken, at)
SELECT '{kind}:' || id, min(seq), max(seq), %(month)s, epoch, cycle, sum(delta),
       (max(ARRAY[seq, balance]))[2], sum(carried), sum(taken), max(at)
  FROM islands GROUP BY id, epoch, cycle, added_up, balance IS NULL, island
RETURNING last_seq - first_seq + 1"""
_CELLS = {
    "tenant": {"cycle": "p.cycle", "carried": "0", "taken": "0"},
    "credits": {"cycle": "NULL::bigint", "carried": "p.carried", "taken": "p.credits_used"},
    "spend": {"cycle": "NULL::bigint", "carried": "0", "taken": "0"},
}
# Which additions a run's uses took is one row each: debt stays use by use, for what covers it finds it so.
_ALLOCATIONS = """
WITH taken AS (
    DELETE FROM credit_allocation AS a USING archived_run AS r
     WHERE r.month = %s AND split_part(r.account, ':', 1) = 'credits'
       AND a.organization_id = split_part(r.account, ':', 2)::bigint
       AND a.seq BETWEEN r.first_seq AND r.last_seq AND a.credit_addition_id IS NOT NULL
    RETURNING a.organization_id, r.last_seq, a.credit_addition_id, a.amount, a.created_at
)
INSERT INTO credit_allocation (organization_id, seq, credit_addition_id, amount, created_at)
SELECT organization_id, last_seq, credit_addition_id, sum(amount), max(created_at)
  FROM taken GROUP BY 1, 2, 3"""
_TAKE_OUT = "ALTER TABLE {ledger} DETACH PARTITION {partition}"
_SET_ASIDE = "ALTER TABLE {partition} RENAME TO {partition}{archived}"
_PUT_IN = """
ALTER TABLE {kept} RENAME TO {partition};
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON {partition} EXECUTE FUNCTION refuse_change();
ALTER TABLE {ledger} ATTACH PARTITION {partition} FOR VALUES FROM ('{since}') TO ('{until}')"""
_NOTE = """
INSERT INTO archived_month (ledger, month, url, file, rows, kept, bytes, sha256)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"""
_SINCE = """
INSERT INTO kept_since AS k VALUES (%s, %s)
ON CONFLICT (ledger) DO UPDATE SET since = excluded.since WHERE k.since < excluded.since"""
_FORGET_NAMES = "DELETE FROM usage_name WHERE day < %s"
_DROPPABLE = """
SELECT ledger, month, url, file, rows, bytes, sha256 FROM archived_month
 WHERE dropped_at IS NULL AND archived_at <= now() - make_interval(days => %s) ORDER BY month, ledger"""
_DROPPED = "UPDATE archived_month SET dropped_at = now() WHERE ledger = %s AND month = %s"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of an archive that has a whole month of a ledger: where, and what it holds."""

    ledger: str
    month: date
    url: str
    file: str
    rows: int
    bytes: int
    sha256: str
    figures: Mapping[str, Figure]


def cut(connection: Connection, stored: Stored) -> bool:
    """Take a month out of its ledger: False where it has other rows by now than those stored.

    `ArchiveFailed` where it is not closed any more, where it has fewer rows than those (a ledger only grows,
    so this database is older than the archive), or where somebody has what it needs for too long.
    """
    ledger, month = BY_NAME[stored.ledger], stored.month
    with connection.transaction():
        have_partitions(connection)
        have(connection, "SELECT pg_advisory_xact_lock(7807, 1)", "checkpoints are made")
        # Nothing of the month changes from here on; readers, and writers of other months, go on.
        lock(connection, ledger.partition(month), "SHARE ROW EXCLUSIVE")
        has, sums = figures(connection, ledger, month)
        if has < stored.rows:
            raise ArchiveFailed(
                f"{month:%Y-%m} of {ledger.name} has {has} rows here and {stored.rows} in {stored.url}: this"
                " database is older than its archive; archive into another place, and nothing is overwritten"
            )
        if (has, dict(sums)) != (stored.rows, dict(stored.figures)):
            return False
        if said := what_waits(connection, ledger, month):
            raise ArchiveFailed(f"{month:%Y-%m} is not closed: {said[0]}")
        kept = _stand_for(connection, ledger, month) if ledger.kind else 0
        # What takes long is done: the ledger is had for a moment.
        lock(connection, ledger.name, "ACCESS EXCLUSIVE")
        _replace(connection, ledger, month)
        _note(connection, stored, kept)
        connection.execute(_SINCE, (ledger.name, datetime.combine(end_of(month), time(), UTC)))
        if ledger is CALLS:
            connection.execute(_FORGET_NAMES, (end_of(month),))
    return True


def _note(connection: Connection, stored: Stored, kept: int) -> None:
    each = (stored.url, stored.file, stored.rows, kept, stored.bytes, stored.sha256)
    connection.execute(_NOTE, (stored.ledger, stored.month, *each))


def droppable(connection: Connection, days: int) -> list[Stored]:
    """Months that are archived since so many days and here as tables by themselves, each with its file."""
    found = connection.execute(_DROPPABLE, (days,))
    return [
        Stored(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in found
    ]


def drop(connection: Connection, name: str, month: date) -> None:
    """Drop the table that an archived month of a ledger became."""
    ledger = BY_NAME[name]
    with connection.transaction():
        connection.execute(f"DROP TABLE IF EXISTS {ledger.partition(month)}{ARCHIVED}".encode())
        connection.execute(_DROPPED, (name, month))


def _stand_for(connection: Connection, ledger: Ledger, month: date) -> int:
    """Keep what is asked for later, and what the rest comes to; answers how many rows are kept."""
    names = names_of(ledger, month)
    delta, balance = MOVES[ledger.kind]
    placed = _PLACED.format(stays=_STAYS[ledger.kind], **names)
    columns = ", ".join(f'"{column.name}"' for column in ledger.table.columns)
    make(connection, names)
    kept = connection.execute(_KEEP.format(placed=placed, columns=columns, **names).encode()).rowcount
    runs = _RUNS.format(
        placed=placed,
        kind=ledger.kind,
        at=ledger.at,
        delta=delta,
        balance=balance,
        **_CELLS[ledger.kind],
        **names,
    )
    stood = sum(int(row[0]) for row in connection.execute(runs.encode(), {"month": month}))
    rows = int(one(connection, f"SELECT count(*) FROM {names['partition']}")[0])  # noqa: S608  # our own words
    if kept + stood != rows:
        raise ArchiveFailed(
            f"{names['partition']} has {rows} rows, and {kept} kept ones and runs of {stood} stand for it:"
            " its checkpoints do not follow each other"
        )
    if ledger is CREDITS:
        connection.execute(_ALLOCATIONS, (month,))
    return kept


def lock(connection: Connection, table: str, mode: str) -> None:
    """Have a table, and what is of it."""
    have(connection, f"LOCK TABLE {table} IN {mode} MODE", f"a report reads {table}")


def have_partitions(connection: Connection) -> None:
    """Keep who makes and drops partitions waiting, until the transaction ends."""
    have(connection, "SELECT pg_advisory_xact_lock(7801, 2)", "the schema is changed")


def have(connection: Connection, statement: str, taken: str) -> None:
    """Have a lock, or `ArchiveFailed`; whoever has a part of it and waits for another is let go on first."""
    connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}".encode())
    for left in reversed(range(TRIES_MAX)):
        try:
            with connection.transaction():
                connection.execute(statement.encode())
                return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not left:
                raise ArchiveFailed(f"{taken} for too long: try again") from error


def _replace(connection: Connection, ledger: Ledger, month: date) -> None:
    names = names_of(ledger, month)
    connection.execute(_TAKE_OUT.format(**names).encode())
    connection.execute(_SET_ASIDE.format(archived=ARCHIVED, **names).encode())
    if ledger.kind:
        put_in(connection, ledger, month)


def make(connection: Connection, names: Mapping[str, str]) -> None:
    """Make the table that is to be a month of a ledger, by itself."""
    connection.execute(_MAKE.format(**names).encode())


def put_in(connection: Connection, ledger: Ledger, month: date) -> None:
    """Have it be that month."""
    since, until = bounds_of(month)
    connection.execute(_PUT_IN.format(**names_of(ledger, month), since=since, until=until).encode())


def bounds_of(month: date) -> tuple[str, str]:
    """A month's first moment, and the one behind its last."""
    return f"{month} 00:00:00+00", f"{end_of(month)} 00:00:00+00"


def names_of(ledger: Ledger, month: date) -> dict[str, str]:
    """The ledger, a month of it, and what is to be that; and the column of whose its rows are."""
    partition = ledger.partition(month)
    return {"ledger": ledger.name, "partition": partition, "kept": f"{partition}_kept", "owner": ledger.owner}
