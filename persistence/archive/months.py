"""Which ledgers have months that can be archived, and what a month of a ledger is in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Table, text

from gateway.errors import ArchiveFailed
from persistence.engine import ASK_OWNER, CONNECT, Engine, plain_url, shares_sessions
from persistence.error_mapping import complaint
from persistence.schema import version as schema
from persistence.schema.partitions import UNBILLED, end_of, first_of, named
from persistence.tables import audit_log, call, credit_transaction, feature_usage, token_ledger

Connection = psycopg.Connection[tuple[Any, ...]]

# So many days after its end a month is archived at the earliest: what settles late has settled by then.
GRACE_DAYS = 31
# Advisory lock class 7810: archiving, one at a time.
LOCK = "SELECT pg_try_advisory_lock(7810, 1)"
_UNLOCK = "SELECT pg_advisory_unlock(7810, 1)"
_HELD = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (7810, 1) AND granted
   AND pid = pg_backend_pid()"""


@dataclass(frozen=True, slots=True)
class MonthlyLedger:
    """A table by month: whose its rows are and when they were. `kind` is of the accounts it moves, if any."""

    table: Table
    owner: str
    at: str
    kind: str = ""
    # By what a file is sorted.
    order: str = ""

    @property
    def name(self) -> str:
        """The table's name."""
        return str(self.table.name)

    def partition(self, month: date) -> str:
        """The table that has a month of it."""
        return f"{self.name}_y{month:%Y}m{month:%m}"


TOKENS = MonthlyLedger(token_ledger, "tenant_id", "created_at", "tenant", "tenant_id, seq")
CREDITS = MonthlyLedger(
    credit_transaction, "organization_id", '"timestamp"', "credits", "organization_id, seq"
)
SPENDS = MonthlyLedger(feature_usage, "organization_id", '"timestamp"', "spend", "organization_id, seq")
CALLS = MonthlyLedger(call, "organization_id", "created_at", order="created_at, id")
# What a month of these has is billed. Each goes by itself, as long as it is kept.
LEDGERS = (TOKENS, CREDITS, SPENDS, CALLS)
# By this nothing is owed.
AUDIT = MonthlyLedger(audit_log, "organization_id", "created_at", order="id")
BY_NAME = {ledger.name: ledger for ledger in (*LEDGERS, AUDIT)}

# Months of a ledger that have a partition and are in no archive.
_OPEN = r"""
SELECT make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE i.inhparent = %(ledger)s::text::regclass AND c.relname ~ '_y\d{4}m\d{2}$'
EXCEPT SELECT month FROM archived_month WHERE ledger = %(ledger)s
 ORDER BY 1"""


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection of the owner, who archives, one at a time; `ArchiveFailed` where it is another's."""
    try:
        if shares_sessions(url):
            raise ArchiveFailed(ASK_OWNER)
        with psycopg.connect(plain_url(url), autocommit=True, **CONNECT) as connection:
            connection.execute("SET timezone TO 'UTC'")
            _refuse_schema(connection)
            if not one(connection, LOCK)[0]:
                raise ArchiveFailed("another archive of this database is being written")
            owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'token_ledger'::regclass"
            if not one(connection, owner)[0]:
                raise ArchiveFailed("the owner of the database archives: set TOLLKEEPER_DATABASE_OWNER_URL")
            yield connection
            with suppress(psycopg.Error):  # its session may be over; if not, it ends a moment after this
                connection.execute(_UNLOCK)
    except psycopg.Error as error:
        raise ArchiveFailed(f"PostgreSQL: {complaint(error)}") from error


def refuse_unlocked(connection: Connection) -> None:
    """`ArchiveFailed` where this one archives no more: its session ended, and another may write since."""
    try:
        held = bool(one(connection, _HELD)[0])
    except psycopg.OperationalError:
        held = False
    if not held:
        raise ArchiveFailed(
            "the session in PostgreSQL ended, and another archive may be written since: nothing more is"
            " written by this one; run it again"
        )


def one(connection: Connection, statement: str, values: Any = None) -> tuple[Any, ...]:
    """The only row of a statement."""
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None
    return row


def months_before(connection: Connection, before: date, ledger: MonthlyLedger) -> list[date]:
    """The first days of months of a ledger that ended by a day and are in no archive, oldest first."""
    found = connection.execute(_OPEN.encode(), {"ledger": ledger.name})
    return [month for (month,) in found if end_of(month) <= before]


def latest(today: date) -> date:
    """The first day that is too late to archive."""
    return (today - timedelta(days=GRACE_DAYS)).replace(day=1)


def identity(connection: Connection) -> UUID:
    """Whose archive it is: the same for a database's life, and in what is restored from a backup."""
    connection.execute("INSERT INTO archive_identity DEFAULT VALUES ON CONFLICT DO NOTHING")
    return UUID(str(one(connection, "SELECT id FROM archive_identity")[0]))


def _refuse_schema(connection: Connection) -> None:
    there = one(connection, "SELECT to_regclass('alembic_version') IS NOT NULL")[0]
    found = one(connection, "SELECT version_num FROM alembic_version")[0] if there else None
    if found != schema.NEEDED:
        raise ArchiveFailed(
            f"the database has schema version {found or 'none'}, {schema.NEEDED} is needed:"
            " run tollkeeper migrate"
        )


# Whether a month of a ledger is closed: nothing of it is still to be stored, billed or explained.


# Each answers whose it is and what it is, of a month that ends at {end}. What began later cannot be of it.
_UNSETTLED = {
    "is in quarantine": """
SELECT account, reason FROM quarantine WHERE released_at IS NULL AND created_at < %(late)s""",
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
# What a movement moves its account by, and where the account stands after it.
MOVES = {
    "tenant": ("CASE direction WHEN 'IN' THEN amount ELSE -amount END", "total_remaining"),
    "credits": ("-credits_used", "balance_after"),
    "spend": ("spend", "spent_after"),
}


def why_open(connection: Connection, ledger: MonthlyLedger, month: date) -> list[str]:
    """Why a month of a ledger is not closed, in words; empty where it is, whatever other ledgers lack."""
    said = what_waits(connection, ledger, month)
    return said + _of_ledger(connection, ledger, ledger.partition(month)) if ledger.kind else said


def what_waits(connection: Connection, ledger: MonthlyLedger, month: date) -> list[str]:
    """The same of objects beside its rows. Nothing is owed by the audit log: what is over is closed."""
    if ledger is AUDIT:
        return []
    values = {"end": end_of(month), "late": end_of(month) + timedelta(days=GRACE_DAYS)}
    said = []
    for what, statement in _REASONS.items():
        said += _said(connection, what, statement, values)
    return said


def _of_ledger(connection: Connection, ledger: MonthlyLedger, partition: str) -> list[str]:
    delta, balance = MOVES[ledger.kind]
    names = {"kind": ledger.kind, "owner": ledger.owner, "partition": partition, "delta": delta}
    said = _said(
        connection,
        "has no checkpoint of it: a keeper makes them after a month's end",
        _NOT_ADDED_UP.format(**names),
    )
    said += _said(connection, "does not chain", _BROKEN.format(balance=balance, **names))
    if ledger.kind == "credits":
        said += _said(connection, "has credits that are not allocated", _UNALLOCATED.format(**names))
    return said


def _said(
    connection: Connection, what: str, statement: str, values: Mapping[str, date] | None = None
) -> list[str]:
    return named(what, connection.execute(first_of(statement).encode(), values).fetchall())


# For how long months should be archived, where any are: so one hears of an archive that nobody writes.


_OUTSIDE = " UNION ALL ".join(
    f"SELECT '{ledger.name}', date_trunc('month', min({ledger.at}), 'UTC') FROM {ledger.name}_default"  # noqa: S608  # our own words
    for ledger in BY_NAME.values()
)
# Of each ledger the oldest month that is in no archive, where this database was ever archived; months
# without a partition too, whose rows are in the default one.
_OLDEST = text(rf"""
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
 WHERE EXISTS (SELECT FROM archive_identity) GROUP BY 1""")  # noqa: S608  # our own words

# From when on a month of a ledger, by its name, is not kept any more.
Due = Callable[[str, date], date | None]


async def behind(engine: Engine, due: Due, now: datetime | None = None) -> dict[str, object]:
    """For how long the oldest month of each ledger should be archived, in seconds; 0 where none should."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_OLDEST, {"ledgers": list(BY_NAME)})).all()
    at, waits = now or datetime.now(UTC), []
    for row in rows:
        since = due(row.ledger, row.month)
        if since is not None:
            late = at - datetime.combine(since, time(), UTC)
            waits.append((row.ledger, max(0.0, late.total_seconds())))
    return {"archive_behind_seconds": sorted(waits)} if waits else {}
