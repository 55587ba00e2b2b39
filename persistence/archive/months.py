"""Which ledgers have months that can be archived, and what a month of a ledger is in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Table

from gateway.errors import ArchiveFailed
from persistence.complaint import complaint
from persistence.engine import CONNECT, plain_url
from persistence.pooler import ASK_OWNER, shares_sessions
from persistence.schema import version as schema
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
class Ledger:
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


TOKENS = Ledger(token_ledger, "tenant_id", "created_at", "tenant", "tenant_id, seq")
CREDITS = Ledger(credit_transaction, "organization_id", '"timestamp"', "credits", "organization_id, seq")
SPENDS = Ledger(feature_usage, "organization_id", '"timestamp"', "spend", "organization_id, seq")
CALLS = Ledger(call, "organization_id", "created_at", order="created_at, id")
# What a month of these has is billed. Each goes by itself, as long as it is kept.
LEDGERS = (TOKENS, CREDITS, SPENDS, CALLS)
# By this nothing is owed.
AUDIT = Ledger(audit_log, "organization_id", "created_at", order="id")
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


def months_before(connection: Connection, before: date, ledger: Ledger) -> list[date]:
    """The first days of months of a ledger that ended by a day and are in no archive, oldest first."""
    found = connection.execute(_OPEN.encode(), {"ledger": ledger.name})
    return [month for (month,) in found if end_of(month) <= before]


def latest(today: date) -> date:
    """The day before which months are archived at the latest."""
    return (today - timedelta(days=GRACE_DAYS)).replace(day=1)


def end_of(month: date) -> date:
    """The first day of the month after it."""
    return (month + timedelta(days=31)).replace(day=1)


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
