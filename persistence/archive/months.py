"""Months of ledgers for archiving: which are closed, and a month's contents in PostgreSQL.

A month leaves its ledger in one transaction. Its partition is detached, and replaced by one with the rows
that stay: each account's last row, token rows that are no use of a call with the row before each, and reports
of an ended plan. `archived_run` replaces the others and sums their allocations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Table

from gateway.errors import ArchiveFailed
from persistence.address import CONNECT, plain_url
from persistence.engine import ASK_OWNER, Engine
from persistence.error_mapping import complaint
from persistence.examining import looked_at
from persistence.ledger.checkpoints import INVARIANTS, MORE, VIOLATIONS_MAX
from persistence.poolers import shares_sessions
from persistence.queries import query
from persistence.schema import standing
from persistence.schema.partitions import UNBILLED, end_of, first_of, named
from persistence.tables import audit_log, call, credit_transaction, feature_usage, token_ledger

Connection = psycopg.Connection[tuple[Any, ...]]

# The earliest archiving of a month in days after its end, when late settlements have arrived.
GRACE_DAYS = 31
# Advisory lock class 7810: archiving, one at a time.
LOCK = "SELECT pg_try_advisory_lock(7810, 1)"
_UNLOCK = "SELECT pg_advisory_unlock(7810, 1)"
_HELD = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7810, 1) AND granted
   AND pid = pg_backend_pid()"""
# The contents of a month: its rows as text, and figures of each column to verify a copy.


# Figures of a column: the number of cells that are not null, and their sum.
Figure = tuple[int, int]
INTEGER, MOMENT, FLAG, TEXT = "integer", "moment", "flag", "text"
_NAMES = {BigInteger: INTEGER, DateTime: MOMENT, Boolean: FLAG}
# Times are in microseconds since 1970. Texts are summed by the first 60 bits of their digests.
_ADDED = {
    INTEGER: '"{name}"',
    MOMENT: '(extract(epoch FROM "{name}") * 1000000)::bigint',
    FLAG: '"{name}"::integer',
    TEXT: "('x' || substr(md5(\"{name}\"::text), 1, 15))::bit(60)::bigint",
}
_WRITTEN = {MOMENT: f'{_ADDED[MOMENT]} AS "{{name}}"'}


@dataclass(frozen=True, slots=True)
class MonthlyLedger:
    """A table with monthly partitions: the columns of a row's owner and time.

    `kind` is the kind of accounts that its rows move, or empty.
    """

    table: Table
    owner: str
    at: str
    kind: str = ""
    # The columns by which a file is sorted.
    order: str = ""

    @property
    def name(self) -> str:
        return str(self.table.name)

    def partition(self, month: date) -> str:
        return f"{self.name}_y{month:%Y}m{month:%m}"


TOKENS = MonthlyLedger(token_ledger, "tenant_id", "created_at", "tenant", "tenant_id, seq")
CREDITS = MonthlyLedger(
    credit_transaction, "organization_id", '"timestamp"', "credits", "organization_id, seq"
)
SPENDS = MonthlyLedger(feature_usage, "organization_id", '"timestamp"', "spend", "organization_id, seq")
CALLS = MonthlyLedger(call, "organization_id", "created_at", order="created_at, id")
# Ledgers for billing; each is archived separately, after its own retention.
LEDGERS = (TOKENS, CREDITS, SPENDS, CALLS)
# Not for billing.
AUDIT = MonthlyLedger(audit_log, "organization_id", "created_at", order="id")
BY_NAME = {ledger.name: ledger for ledger in (*LEDGERS, AUDIT)}

# Months of a ledger with a partition that are not archived.
_OPEN = r"""
SELECT make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE i.inhparent = %(ledger)s::text::regclass AND c.relname ~ '_y\d{4}m\d{2}$'
EXCEPT SELECT month FROM archived_month WHERE ledger = %(ledger)s
 ORDER BY 1"""


@contextmanager
def connect_as_owner(url: str) -> Iterator[Connection]:
    """Connect as the database's owner and lock the archive; raise `ArchiveFailed` if either is impossible."""
    try:
        if shares_sessions(url):
            raise ArchiveFailed(ASK_OWNER)
        with psycopg.connect(plain_url(url), autocommit=True, **CONNECT) as connection:
            connection.execute("SET timezone TO 'UTC'")
            _refuse_schema(connection)
            if not fetch_row(connection, LOCK)[0]:
                raise ArchiveFailed("another archive of this database is being written")
            owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'token_ledger'::regclass"
            if not fetch_row(connection, owner)[0]:
                raise ArchiveFailed("the owner of the database archives: set TOLLKEEPER_DATABASE_OWNER_URL")
            yield connection
            with suppress(psycopg.Error):  # the session may have ended; otherwise it ends right after this
                connection.execute(_UNLOCK)
    except psycopg.Error as error:
        raise ArchiveFailed(f"PostgreSQL: {complaint(error)}") from error


def refuse_unlocked(connection: Connection) -> None:
    """Raise `ArchiveFailed` if this session has lost the archive's lock: another run may be writing now."""
    try:
        held = bool(fetch_row(connection, _HELD)[0])
    except psycopg.OperationalError:
        held = False
    if not held:
        raise ArchiveFailed(
            "the session in PostgreSQL ended, and another archive may be written since: nothing more is"
            " written by this one; run it again"
        )


def fetch_row(connection: Connection, statement: str, values: Any = None) -> tuple[Any, ...]:
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None
    return row


def months_before(connection: Connection, before: date, ledger: MonthlyLedger) -> list[date]:
    """Return the first days of unarchived months of a ledger that ended by `before`, oldest first."""
    result = connection.execute(_OPEN.encode(), {"ledger": ledger.name})
    return [month for (month,) in result if end_of(month) <= before]


def latest(today: date) -> date:
    """Return the day by which a month must have ended to be archived today."""
    return (today - timedelta(days=GRACE_DAYS)).replace(day=1)


def identity(connection: Connection) -> UUID:
    """Return the id of this database's archive, which is the same after a restore from a backup."""
    connection.execute("INSERT INTO archive_identity DEFAULT VALUES ON CONFLICT DO NOTHING")
    return UUID(str(fetch_row(connection, "SELECT id FROM archive_identity")[0]))


def _refuse_schema(connection: Connection) -> None:
    there = fetch_row(connection, "SELECT to_regclass('alembic_version') IS NOT NULL")[0]
    found = fetch_row(connection, "SELECT version_num FROM alembic_version")[0] if there else None
    if found != standing.NEEDED:
        raise ArchiveFailed(
            f"the database has schema version {found or 'none'}, {standing.NEEDED} is needed:"
            " run tollkeeper migrate"
        )


# A month of a ledger is closed if nothing in it is still to be stored, billed or explained.

# Each query returns owner and reason for a month that ends at {end}; later objects cannot belong to it.
_UNSETTLED = {
    "is in quarantine": """
SELECT account, reason FROM quarantine
 WHERE released_at IS NULL AND created_at < %(late)s AND NOT starts_with(account, 'access:')""",
    "is a dead letter that nobody resolved": """
SELECT 'letter ' || id, reason FROM dead_letter WHERE resolved_at IS NULL AND created_at < %(late)s""",
    "is a change that is not applied": """
SELECT account, verb FROM control_write WHERE state IN ('pending', 'applied') AND created_at < %(end)s""",
    "does not agree, by the last reconciliation": """
SELECT i->>'account', i->>'kind' FROM (SELECT items FROM reconciliation WHERE finished_at IS NOT NULL
                                        ORDER BY id DESC LIMIT 1) AS r, jsonb_array_elements(r.items) AS i
 WHERE i->>'kind' <> 'lag'""",
}
_REASONS = {
    **_UNSETTLED,
    **UNBILLED,
    "has days of a subscription that are not charged": """
SELECT 'organization ' || organization_id, 'from ' || coalesce(charged_until, start_date)
  FROM subscription_segment
 WHERE start_date < least(end_date, %(end)s)
   AND (charged_until IS NULL OR charged_until < least(end_date, %(end)s))""",
}
_UNALLOCATED = """
SELECT 'organization ' || o.id, 'credits up to movement ' || m.seq FROM organization AS o
  JOIN (SELECT organization_id AS id, max(seq) AS seq FROM {partition} WHERE credits_used > 0 GROUP BY 1) AS m
 USING (id) WHERE o.allocated_seq < m.seq"""
_NOT_ADDED_UP = """
SELECT m.account, 'movement ' || m.seq
  FROM (SELECT '{kind}:' || {owner} AS account, max(seq) AS seq FROM {partition} GROUP BY {owner}) AS m
 WHERE NOT EXISTS (SELECT FROM account_checkpoint AS c WHERE c.account = m.account AND c.last_seq >= m.seq)"""
_BROKEN = """
SELECT '{kind}:' || id, 'movement ' || seq
  FROM (SELECT {owner} AS id, seq, {delta} AS delta, {balance} AS balance, lag({balance}) OVER w AS before,
               lag(seq) OVER w AS previous
          FROM {partition} WINDOW w AS (PARTITION BY {owner} ORDER BY seq)) AS m
 WHERE previous = seq - 1 AND NOT (before IS NULL AND balance IS NULL)
   AND coalesce(balance, 0) <> coalesce(before, 0) + delta + coalesce(
       (SELECT difference FROM known_drift AS d WHERE d.account = '{kind}:' || id AND d.seq = previous), 0)"""
# The SQL expressions of a movement's amount, and of the balance after it.
MOVES = {
    "tenant": ("CASE direction WHEN 'IN' THEN amount ELSE -amount END", "total_remaining"),
    "credits": ("-credits_used", "balance_after"),
    "spend": ("spend", "spent_after"),
}


def why_open(connection: Connection, ledger: MonthlyLedger, month: date) -> list[str]:
    """Return the reasons why a month of a ledger is not closed; empty if the month is closed."""
    said = what_waits(connection, ledger, month)
    return said + _reasons_to_stay(connection, ledger, ledger.partition(month)) if ledger.kind else said


def what_waits(connection: Connection, ledger: MonthlyLedger, month: date) -> list[str]:
    """Return the reasons why a month cannot be archived yet, such as unbilled use; none for the audit log."""
    if ledger is AUDIT:
        return []
    values = {"end": end_of(month), "late": end_of(month) + timedelta(days=GRACE_DAYS)}
    said = []
    for what, statement in _REASONS.items():
        said += _name_reasons(connection, what, statement, values)
    return said


def _reasons_to_stay(connection: Connection, ledger: MonthlyLedger, partition: str) -> list[str]:
    """Return why a partition of a ledger cannot be archived yet."""
    delta, balance = MOVES[ledger.kind]
    names = {"kind": ledger.kind, "owner": ledger.owner, "partition": partition, "delta": delta}
    reasons = _name_reasons(
        connection,
        "has no checkpoint of it: a keeper makes them after a month's end",
        _NOT_ADDED_UP.format(**names),
    )
    reasons += _name_reasons(connection, "does not chain", _BROKEN.format(balance=balance, **names))
    if ledger.kind == "credits":
        reasons += _name_reasons(
            connection, "has credits that are not allocated", _UNALLOCATED.format(**names)
        )
    return reasons


def _name_reasons(
    connection: Connection, what: str, statement: str, values: Mapping[str, date] | None = None
) -> list[str]:
    return named(what, connection.execute(first_of(statement).encode(), values).fetchall())


# The delay of overdue months, to detect an archive that is no longer written.

_OUTSIDE = " UNION ALL ".join(
    f"SELECT '{ledger.name}', date_trunc('month', min({ledger.at}), 'UTC') FROM {ledger.name}_default"
    for ledger in BY_NAME.values()
)
# The oldest unarchived month of each ledger, if this database was ever archived; also months without a
# partition, whose rows are in the default one.
_OLDEST = query("archive.oldest", "Select the oldest month of each ledger that is not archived", rf"""
SELECT ledger, min(month) AS month
  FROM (SELECT p.relname::text AS ledger,
               make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
          JOIN pg_class AS p ON p.oid = i.inhparent
         WHERE i.inhparent = ANY (cast(cast(:ledgers AS text[]) AS regclass[]))
           AND c.relname ~ '_y\d{{4}}m\d{{2}}$'
        UNION ALL
        SELECT ledger, (month AT TIME ZONE 'UTC')::date FROM ({_OUTSIDE}) AS outside (ledger, month)
         WHERE month IS NOT NULL
        EXCEPT SELECT ledger, month FROM archived_month) AS open
 WHERE EXISTS (SELECT FROM archive_identity) GROUP BY 1""")  # fmt: skip

# Returns the day on which a month of a ledger is due for archiving, or None.
Due = Callable[[str, date], date | None]


async def behind(engine: Engine, due: Due, now: datetime | None = None) -> dict[str, object]:
    """Return, as a metric, by how many seconds the oldest month of each ledger is late for archiving.

    A ledger that is not late has 0. `due` returns the day on which a month must be archived, or None if it is
    kept.
    """
    async with engine.connect() as connection:
        rows = (await connection.execute(_OLDEST, {"ledgers": list(BY_NAME)})).all()
    at, waits = now or datetime.now(UTC), []
    for row in rows:
        since = due(row.ledger, row.month)
        if since is not None:
            late = at - datetime.combine(since, time(), UTC)
            waits.append((row.ledger, max(0.0, late.total_seconds())))
    return {"archive_behind_seconds": sorted(waits)} if waits else {}


def columns_of(ledger: MonthlyLedger) -> Mapping[str, str]:
    return {column.name: _kind(column) for column in ledger.table.columns}


@contextmanager
def as_csv(connection: Connection, ledger: MonthlyLedger, month: date) -> Iterator[Iterator[bytes]]:
    """Copy all rows of a month as CSV: an empty cell is null, an empty text is quoted."""
    cells = ", ".join(
        _WRITTEN.get(kind, '"{name}"').format(name=name) for name, kind in columns_of(ledger).items()
    )
    statement = (
        f"COPY (SELECT {cells} FROM {ledger.partition(month)} ORDER BY {ledger.order}) TO STDOUT (FORMAT csv)"
    )
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copied:
        yield (bytes(piece) for piece in copied)


def about(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
    """Return PostgreSQL's estimate of the number of rows in a month; 0 before the first estimate."""
    statement = (
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint"
        f" FROM pg_partition_tree('{ledger.partition(month)}') AS t"
        " JOIN pg_class AS c ON c.oid = t.relid WHERE t.isleaf"
    )
    (found,) = fetch_row(connection, statement)
    return int(found)


def figures(connection: Connection, ledger: MonthlyLedger, month: date) -> tuple[int, Mapping[str, Figure]]:
    """Return the number of rows in a month, and the number and sum of each column's non-null values."""
    columns = columns_of(ledger)
    sums = ", ".join(
        f'count("{name}"), coalesce(sum({_ADDED[kind].format(name=name)}), 0)'
        for name, kind in columns.items()
    )
    statement = f"SELECT count(*), {sums} FROM {ledger.partition(month)}"
    rows, *found = (int(value) for value in fetch_row(connection, statement))
    return rows, dict(zip(columns, zip(found[::2], found[1::2], strict=True), strict=True))


def _kind(column: Column[object]) -> str:
    return next((name for type_, name in _NAMES.items() if isinstance(column.type, type_)), TEXT)


ARCHIVED = "_archived"
# Maximum wait for a lock before the next try; below PostgreSQL's second for deadlock detection.
LOCK_TIMEOUT_MS = 900
TRIES_MAX = 20

# The last row before a gap stays, and the row before another kind of row. Reported changes of an ended plan
# stay, too: their row shows whether they were in time.
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
# Allocations of a run's uses are summed by credit addition; debt keeps one row a use, as later additions look
# for these.
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
    """An archive's file with a whole month of a ledger: its place, size and checksum."""

    ledger: str
    month: date
    url: str
    file: str
    rows: int
    bytes: int
    sha256: str
    figures: Mapping[str, Figure]


def cut_month(connection: Connection, stored: ArchivedMonth) -> bool:
    """Remove an archived month from its ledger.

    Return False if the ledger's rows differ from the archived ones. Raise `ArchiveFailed` if the month is no
    longer closed, if a lock is not acquired in time, or if the ledger has fewer rows than the archive: a
    ledger only grows, so the database is then the older one.
    """
    ledger, month = BY_NAME[stored.ledger], stored.month
    with connection.transaction():
        have_partitions(connection)
        have(connection, "SELECT pg_advisory_xact_lock(7807, 1)", "checkpoints are made")
        # From here on the month does not change; readers, and writers of other months, continue.
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
        # Slow work is done first, so that the ledger is locked only for a moment.
        lock(connection, ledger.name, "ACCESS EXCLUSIVE")
        _replace(connection, ledger, month)
        each = (stored.url, stored.file, stored.rows, kept, stored.bytes, stored.sha256)
        connection.execute(_NOTE, (stored.ledger, stored.month, *each))
        connection.execute(_SINCE, (ledger.name, datetime.combine(end_of(month), time(), UTC)))
        if ledger is CALLS:
            connection.execute(_FORGET_NAMES, (end_of(month),))
    return True


def droppable(connection: Connection, days: int) -> list[ArchivedMonth]:
    """Return the months archived at least `days` days ago whose detached tables still exist.

    A detached table is no longer part of its ledger.
    """
    result = connection.execute(_DROPPABLE, (days,))
    return [
        ArchivedMonth(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in result
    ]


def drop_month(connection: Connection, name: str, month: date) -> None:
    ledger = BY_NAME[name]
    with connection.transaction():
        connection.execute(f"DROP TABLE IF EXISTS {ledger.partition(month)}{ARCHIVED}".encode())
        connection.execute(_DROPPED, (name, month))


def _stand_for(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
    """Store the rows of a month that must stay, and sums (runs) of the others; return the number stored."""
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
    rows = int(fetch_row(connection, f"SELECT count(*) FROM {names['partition']}")[0])
    if kept + stood != rows:
        raise ArchiveFailed(
            f"{names['partition']} has {rows} rows, and {kept} kept ones and runs of {stood} stand for it:"
            " its checkpoints do not follow each other"
        )
    if ledger is CREDITS:
        connection.execute(_ALLOCATIONS, (month,))
    return kept


def lock(connection: Connection, table: str, mode: str) -> None:
    have(connection, f"LOCK TABLE {table} IN {mode} MODE", f"a report reads {table}")


def have_partitions(connection: Connection) -> None:
    """Lock out other sessions that create and drop partitions, until the transaction ends."""
    have(connection, "SELECT pg_advisory_xact_lock(7801, 2)", "the schema is changed")


def have(connection: Connection, statement: str, taken: str) -> None:
    """Acquire a lock by `statement`; raise `ArchiveFailed` after `TRIES_MAX` tries.

    A deadlocked session may continue between tries. `taken` says in the message why the lock is not free.
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
    """Create the table for the rows that stay of an archived month; `names` are those of `names_of`."""
    connection.execute(_MAKE.format(**names).encode())


def put_in(connection: Connection, ledger: MonthlyLedger, month: date) -> None:
    since, until = bounds_of(month)
    connection.execute(_PUT_IN.format(**names_of(ledger, month), since=since, until=until).encode())


def bounds_of(month: date) -> tuple[str, str]:
    """Return the first moment of a month, and of the next month."""
    return f"{month} 00:00:00+00", f"{end_of(month)} 00:00:00+00"


def names_of(ledger: MonthlyLedger, month: date) -> dict[str, str]:
    """Return names for SQL: the ledger, its partition, the table for rows that stay, the owner's column."""
    partition = ledger.partition(month)
    return {"ledger": ledger.name, "partition": partition, "kept": f"{partition}_kept", "owner": ledger.owner}


# Replacements in PostgreSQL for archived months: rows that stayed, and runs for the others.

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
    """Consecutive movements of an account in PostgreSQL: one row, or an archived run."""

    owner: int
    first_seq: int
    last_seq: int
    epoch: int
    amount: int
    balance: int | None


def archived(connection: Connection) -> list[ArchivedMonth]:
    result = connection.execute(_ARCHIVED)
    return [
        ArchivedMonth(ledger, month, url, file, rows, size, sha256, {})
        for ledger, month, url, file, rows, size, sha256 in result
    ]


def read_kept_runs(connection: Connection, ledger: MonthlyLedger, month: date) -> Iterator[MovementRun]:
    """Yield the rows that stay of an archived month, and sums (runs) of the others; within a transaction."""
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
    """Return violated invariants of rows and runs: at most `VIOLATIONS_MAX`, then a note if more exist."""
    views = " UNION ALL ".join(
        f"SELECT '{name}', account, seq, detail FROM invariant_{name}" for name in INVARIANTS
    )
    result = connection.execute(f"{views} LIMIT {VIOLATIONS_MAX + 1}".encode())
    told = [f"{account} at {seq} breaks {name}: {detail}" for name, account, seq, detail in result]
    return [*told[:VIOLATIONS_MAX], MORE.detail] if len(told) > VIOLATIONS_MAX else told


# Rows of months without a partition are stored in the default partition; here they get monthly partitions.
#
# They exist after a wrong clock, or a time without keepers. A month that had a partition before was archived:
# its late rows stay where they are.

# Maximum of rows moved at a time: readers and writers of the ledger wait in that time.
ROWS_MAX = 1_000_000
# Maximum of months in one run, the oldest first.
MONTHS_MAX = 120
# Maximum of rows counted for a report.
ROWS_TOLD_MAX = 10_000

_ROWS = """
SELECT date_trunc('month', {at}, 'UTC')::date AS month FROM {ledger}_default
 WHERE date_trunc('month', {at}, 'UTC')::date NOT IN (
       SELECT month FROM archived_month WHERE ledger = '{ledger}')"""
_MONTHS = f"SELECT month, count(*) FROM ({_ROWS}) AS found GROUP BY 1 ORDER BY 1 LIMIT {{most}}"
_TOLD = f"SELECT min(month), max(month), count(*) FROM ({_ROWS} LIMIT {{most}}) AS found"
_MOVE = """
WITH gone AS (DELETE FROM {ledger}_default WHERE {at} >= '{since}' AND {at} < '{until}' RETURNING {columns})
INSERT INTO {kept} ({columns}) SELECT {columns} FROM gone"""


@dataclass(frozen=True, slots=True)
class PartitionedMonth:
    ledger: str
    month: date
    rows: int


def bring_in_rows(connection: Connection, rows_max: int = ROWS_MAX) -> list[PartitionedMonth]:
    """Create the missing monthly partitions of each ledger, and move the rows of these months into them.

    Each ledger has a transaction of its own, and at most `rows_max` rows are moved.
    """
    return [moved for ledger in BY_NAME.values() for moved in _bring_in(connection, ledger, rows_max)]


class RowsOutside(NamedTuple):
    """Rows of a ledger that are in no monthly partition: their first month, last month and number."""

    ledger: str
    first: date
    last: date
    rows: int


def months_outside(url: str, rows_max: int = ROWS_TOLD_MAX) -> list[RowsOutside]:
    """Return the ledgers that have rows outside of monthly partitions, and these rows.

    At most `rows_max` rows of a ledger are counted. Raise `SchemaUnavailable` if PostgreSQL does not say so.
    """
    outside = []
    with looked_at(url) as connection:
        for name, ledger in BY_NAME.items():
            statement = _TOLD.format(ledger=name, at=ledger.at, most=rows_max)
            first, last, rows = connection.execute(statement.encode()).fetchall()[0]
            if rows:
                outside.append(RowsOutside(name, first, last, int(rows)))
    return outside


def _bring_in(connection: Connection, ledger: MonthlyLedger, room: int) -> list[PartitionedMonth]:
    """Move rows of the default partition to partitions of their months, at most `room` rows."""
    if not _read_months(connection, ledger):
        return []
    moved = []
    with connection.transaction():
        have_partitions(connection)
        lock(connection, ledger.name, "ACCESS EXCLUSIVE")
        months = _read_months(connection, ledger)
        # Rows can be deleted only from a detached table.
        connection.execute(f"ALTER TABLE {ledger.name} DETACH PARTITION {ledger.name}_default".encode())
        for month, rows in months:
            if rows <= room:
                room -= rows
                moved.append(PartitionedMonth(ledger.name, month, _move(connection, ledger, month)))
        connection.execute(
            f"ALTER TABLE {ledger.name} ATTACH PARTITION {ledger.name}_default DEFAULT".encode()
        )
    return moved


def _read_months(connection: Connection, ledger: MonthlyLedger) -> list[tuple[date, int]]:
    result = connection.execute(_MONTHS.format(ledger=ledger.name, at=ledger.at, most=MONTHS_MAX).encode())
    return [(month, int(rows)) for month, rows in result]


def _move(connection: Connection, ledger: MonthlyLedger, month: date) -> int:
    """Move a month's rows from the default partition to their own; return their number."""
    names, (since, until) = names_of(ledger, month), bounds_of(month)
    make(connection, names)
    columns = ", ".join(f'"{column.name}"' for column in ledger.table.columns)
    moved = connection.execute(
        _MOVE.format(at=ledger.at, since=since, until=until, columns=columns, **names).encode()
    )
    put_in(connection, ledger, month)
    return moved.rowcount
