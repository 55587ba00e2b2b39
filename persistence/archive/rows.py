"""Takes a month of a ledger out of it, in one transaction; what is asked of old rows stays.

The partition becomes a table by itself, and another takes its place with the rows that stay: of each account
the last one of the month, of tokens other rows than use of a call, the row before it, and changes reported
of a plan that has ended. `archived_run` stands for the rest, and its allocations are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import psycopg
from sqlalchemy import BigInteger, Boolean, Column, DateTime

from gateway.errors import ArchiveFailed
from persistence.archive.months import (
    BY_NAME,
    CALLS,
    CREDITS,
    MOVES,
    Connection,
    MonthlyLedger,
    one,
    what_waits,
)
from persistence.engine import CONNECT, plain_url
from persistence.ledger.checkpoints import INVARIANTS, MORE, VIOLATIONS_MAX
from persistence.schema.partitions import end_of

# What a month of a ledger holds: its rows as text, and figures of each column to hold a copy against.


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


def columns_of(ledger: MonthlyLedger) -> Mapping[str, str]:
    """The columns of a ledger and what each holds."""
    return {column.name: _kind(column) for column in ledger.table.columns}


@contextmanager
def as_csv(connection: Connection, ledger: MonthlyLedger, month: date) -> Iterator[Iterator[bytes]]:
    """All rows of a month as CSV: an empty cell is null, an empty text is quoted."""
    cells = ", ".join(
        _WRITTEN.get(kind, '"{name}"').format(name=name) for name, kind in columns_of(ledger).items()
    )
    statement = (
        f"COPY (SELECT {cells} FROM {ledger.partition(month)} ORDER BY {ledger.order}) TO STDOUT (FORMAT csv)"  # noqa: S608  # our own words
    )
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copied:
        yield (bytes(piece) for piece in copied)


def about(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
    """How many rows a month has, as the database last estimated it; 0 where it did not yet."""
    statement = (
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint"  # noqa: S608  # our own words
        f" FROM pg_partition_tree('{ledger.partition(month)}') AS t"
        " JOIN pg_class AS c ON c.oid = t.relid WHERE t.isleaf"
    )
    (found,) = one(connection, statement)
    return int(found)


def figures(connection: Connection, ledger: MonthlyLedger, month: date) -> tuple[int, Mapping[str, Figure]]:
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


ARCHIVED = "_archived"
# A lock is waited for so long, less than PostgreSQL's second before it looks for a deadlock; then again.
LOCK_TIMEOUT_MS = 900
TRIES_MAX = 20

# The last one in a row without a gap stays, as does a later row's predecessor. Changes reported of a plan
# that has ended do too: whether one was in time is asked by its row.
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
class ArchivedMonth:
    """A file of an archive that has a whole month of a ledger: where, and what it holds."""

    ledger: str
    month: date
    url: str
    file: str
    rows: int
    bytes: int
    sha256: str
    figures: Mapping[str, Figure]


def cut_month(connection: Connection, stored: ArchivedMonth) -> bool:
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
        # Slow work is done first: the ledger is had for a moment.
        lock(connection, ledger.name, "ACCESS EXCLUSIVE")
        _replace(connection, ledger, month)
        _note(connection, stored, kept)
        connection.execute(_SINCE, (ledger.name, datetime.combine(end_of(month), time(), UTC)))
        if ledger is CALLS:
            connection.execute(_FORGET_NAMES, (end_of(month),))
    return True


def _note(connection: Connection, stored: ArchivedMonth, kept: int) -> None:
    each = (stored.url, stored.file, stored.rows, kept, stored.bytes, stored.sha256)
    connection.execute(_NOTE, (stored.ledger, stored.month, *each))


def droppable(connection: Connection, days: int) -> list[ArchivedMonth]:
    """Months that are archived since so many days and here as tables by themselves, each with its file."""
    found = connection.execute(_DROPPABLE, (days,))
    return [
        ArchivedMonth(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in found
    ]


def drop_month(connection: Connection, name: str, month: date) -> None:
    """Drop the table that an archived month of a ledger became."""
    ledger = BY_NAME[name]
    with connection.transaction():
        connection.execute(f"DROP TABLE IF EXISTS {ledger.partition(month)}{ARCHIVED}".encode())
        connection.execute(_DROPPED, (name, month))


def _stand_for(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
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
    """Have a table, and its objects."""
    have(connection, f"LOCK TABLE {table} IN {mode} MODE", f"a report reads {table}")


def have_partitions(connection: Connection) -> None:
    """Keep who makes and drops partitions waiting, until the transaction ends."""
    have(connection, "SELECT pg_advisory_xact_lock(7801, 2)", "the schema is changed")


def have(connection: Connection, statement: str, taken: str) -> None:
    """Have a lock, or `ArchiveFailed`; another holder of a part that waits for a second one is let go on
    first.
    """
    connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}".encode())
    for left in reversed(range(TRIES_MAX)):
        try:
            with connection.transaction():
                connection.execute(statement.encode())
                return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not left:
                raise ArchiveFailed(f"{taken} for too long: try again") from error


def _replace(connection: Connection, ledger: MonthlyLedger, month: date) -> None:
    names = names_of(ledger, month)
    connection.execute(_TAKE_OUT.format(**names).encode())
    connection.execute(_SET_ASIDE.format(archived=ARCHIVED, **names).encode())
    if ledger.kind:
        put_in(connection, ledger, month)


def make(connection: Connection, names: Mapping[str, str]) -> None:
    """Make the table that is to be a month of a ledger, by itself."""
    connection.execute(_MAKE.format(**names).encode())


def put_in(connection: Connection, ledger: MonthlyLedger, month: date) -> None:
    """Have it be that month."""
    since, until = bounds_of(month)
    connection.execute(_PUT_IN.format(**names_of(ledger, month), since=since, until=until).encode())


def bounds_of(month: date) -> tuple[str, str]:
    """A month's first moment, and the one behind its last."""
    return f"{month} 00:00:00+00", f"{end_of(month)} 00:00:00+00"


def names_of(ledger: MonthlyLedger, month: date) -> dict[str, str]:
    """The ledger, a month of it, and its coming name; and the column of whose its rows are."""
    partition = ledger.partition(month)
    return {"ledger": ledger.name, "partition": partition, "kept": f"{partition}_kept", "owner": ledger.owner}


# Stand-ins in PostgreSQL for months that were archived: rows that stayed, and runs for the others.


FETCHED_AT_ONCE = 10_000

_ARCHIVED = "SELECT ledger, month, url, file, rows, bytes, sha256 FROM archived_month ORDER BY month, ledger"
_KEPT = """
SELECT owner, first_seq, last_seq, epoch, amount, balance FROM (
    SELECT {owner} AS owner, seq AS first_seq, seq AS last_seq, epoch, {delta} AS amount, {balance} AS balance
      FROM {partition}
    UNION ALL
    SELECT split_part(account, ':', 2)::bigint, first_seq, last_seq, epoch, amount, balance
      FROM archived_run WHERE month = %(month)s AND account LIKE %(accounts)s) AS kept
 ORDER BY owner, first_seq"""


@dataclass(frozen=True, slots=True)
class MovementRun:
    """Movements of an account that follow each other, as PostgreSQL has them: one row, or a run."""

    owner: int
    first_seq: int
    last_seq: int
    epoch: int
    amount: int
    balance: int | None


def archived(connection: Connection) -> list[ArchivedMonth]:
    """Archived months in any place, month by month and ledger by ledger."""
    found = connection.execute(_ARCHIVED)
    return [
        ArchivedMonth(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in found
    ]


def kept(connection: Connection, ledger: MonthlyLedger, month: date) -> Iterator[MovementRun]:
    """The stand-in for a month of a ledger, by account and number; to be read in a transaction."""
    delta, balance = MOVES[ledger.kind]
    statement = _KEPT.format(
        owner=ledger.owner, partition=ledger.partition(month), delta=delta, balance=balance
    )
    with connection.cursor("kept") as cursor:
        cursor.itersize = FETCHED_AT_ONCE
        cursor.execute(statement.encode(), {"month": month, "accounts": f"{ledger.kind}:%"})
        for owner, first, last, epoch, amount, left in cursor:
            yield MovementRun(owner, first, last, epoch, int(amount), None if left is None else int(left))


def contradictions(connection: Connection) -> list[str]:
    """What PostgreSQL's rows and runs contradict each other in; behind `VIOLATIONS_MAX`, that more do."""
    views = " UNION ALL ".join(
        f"SELECT '{name}', account, seq, detail FROM invariant_{name}"  # noqa: S608  # our own words
        for name in INVARIANTS
    )
    found = connection.execute(f"{views} LIMIT {VIOLATIONS_MAX + 1}".encode())
    told = [f"{account} at {seq} breaks {name}: {detail}" for name, account, seq, detail in found]
    return [*told[:VIOLATIONS_MAX], MORE.detail] if len(told) > VIOLATIONS_MAX else told


# Rows of months that nobody made: the default partition took them, and here they get months of their own.
#
# They are there after a clock that was wrong, or a time without keepers. A month with a partition
# once, and none any more, was archived: late rows of it stay where they are.


# So many rows are moved at once at most: readers and writers of the ledger wait meanwhile.
ROWS_MAX = 1_000_000
# Of the oldest so many months; the next time others.
MONTHS_MAX = 120
# A mere question gets so many rows of a ledger.
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
class PartitionedMonth:
    """A month of a ledger that has its partition now, and how many rows came into it."""

    ledger: str
    month: date
    rows: int


def bring_in_rows(connection: Connection, rows_max: int = ROWS_MAX) -> list[PartitionedMonth]:
    """Give a partition to each month that has rows and none, each ledger in one transaction."""
    return [moved for ledger in BY_NAME.values() for moved in _bring_in(connection, ledger, rows_max)]


def told(url: str, rows_max: int = ROWS_TOLD_MAX) -> list[tuple[str, date, date, int]]:
    """Each ledger that has such rows: the months, and how many; nothing where nobody answers."""
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


def _bring_in(connection: Connection, ledger: MonthlyLedger, room: int) -> list[PartitionedMonth]:
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
                moved.append(PartitionedMonth(ledger.name, month, _move(connection, ledger, month)))
        connection.execute(
            f"ALTER TABLE {ledger.name} ATTACH PARTITION {ledger.name}_default DEFAULT".encode()
        )
    return moved


def _asked(connection: Connection, ledger: MonthlyLedger) -> list[tuple[date, int]]:
    found = connection.execute(_MONTHS.format(ledger=ledger.name, at=ledger.at, most=MONTHS_MAX).encode())
    return [(month, int(rows)) for month, rows in found]


def _move(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
    names, (since, until) = names_of(ledger, month), bounds_of(month)
    make(connection, names)
    columns = ", ".join(f'"{column.name}"' for column in ledger.table.columns)
    moved = connection.execute(
        _MOVE.format(at=ledger.at, since=since, until=until, columns=columns, **names).encode()
    )
    put_in(connection, ledger, month)
    return moved.rowcount
