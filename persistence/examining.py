"""What `tollkeeper doctor` asks of PostgreSQL, over connections that wait neither for locks nor for long.

It changes nothing, and needs no more rights than a keeper has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from gateway.core.credentials import UnreadableCertificate
from gateway.errors import SchemaUnavailable
from persistence.address import CONNECT, plain_url
from persistence.error_mapping import complaint, sqlstate
from persistence.keeper.sweeps import certificate_end

# How long a look waits for a lock, and how long a statement may take.
LOCK_S_MAX, STATEMENT_S_MAX = 2, 5
# For this transaction alone, because the next one may run in another session of a pooler.
_BOUNDS = f"""
SELECT set_config('lock_timeout', '{LOCK_S_MAX}s', true),
       set_config('statement_timeout', '{STATEMENT_S_MAX}s', true)"""
# A lock that rows wait for, once it is this old. A shorter one is that of a usual change.
LOCKED_S_MIN = 1
# The locks that keep a keeper from storing rows (PostgreSQL 18, 13.3, Table 13.2). Since when: others wait, or
# its transaction runs, which only its own role and monitors are told.
_LOCKS = """
SELECT array_agg(DISTINCT c.relname::text ORDER BY c.relname::text) FILTER (WHERE NOT c.relispartition),
       min(c.relname), l.pid,
       extract(epoch FROM clock_timestamp() - min(least(a.xact_start, w.waitstart)))::float8 AS seconds
  FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
  LEFT JOIN pg_locks AS w ON w.relation = l.relation AND w.database = l.database AND NOT w.granted
 WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
 GROUP BY l.pid
HAVING coalesce(clock_timestamp() - min(least(a.xact_start, w.waitstart)) >= make_interval(secs => %s), true)
 ORDER BY seconds DESC NULLS LAST"""
NAMED_MAX = 3
_STOPPED = """
SELECT DISTINCT account FROM quarantine WHERE released_at IS NULL ORDER BY account"""
_LETTERS = "SELECT count(*) FROM dead_letter WHERE resolved_at IS NULL"


class TableLock(NamedTuple):
    """The tables that a session has locked (pid None: a prepared transaction), and for how many seconds."""

    tables: str
    pid: int | None
    seconds: float | None


@contextmanager
def looked_at(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Yield a connection with one transaction, whose locks and statements have a time limit.

    Raise `SchemaUnavailable` with the first line of PostgreSQL's error.
    """
    try:
        with psycopg.connect(plain_url(url), **CONNECT) as connection:
            connection.execute(_BOUNDS)
            yield connection
    except psycopg.Error as error:
        message = complaint(error) + certificate_ended(str(error), url)
        raise SchemaUnavailable(message, sqlstate=sqlstate(error)) from error


def certificate_ended(message: str, url: str) -> str:
    """Return " (it ended on …)" if a connection failed because the server's certificate has expired, else "".

    `message` is the error, in which libpq does not give the date.
    """
    if "certificate verify failed" in message:
        with suppress(OSError, UnreadableCertificate):
            end = certificate_end(url)
            if end is not None and end < time.time():
                return f" (it ended on {datetime.fromtimestamp(end, UTC):%Y-%m-%d})"
    return ""


def table_locks(url: str) -> list[TableLock]:
    """Return the locks of tables that others wait for, the oldest first; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        locks = connection.execute(_LOCKS, (LOCKED_S_MIN,)).fetchall()
    return [TableLock(few(tables or [part]), pid, seconds) for tables, part, pid, seconds in locks]


def set_aside(url: str) -> tuple[list[str], int]:
    """Return the accounts in quarantine, and the number of dead letters; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        accounts = [str(account) for (account,) in connection.execute(_STOPPED).fetchall()]
        letters = connection.execute(_LETTERS).fetchone()
    assert letters is not None
    return accounts, int(letters[0])


def few(names: list[str]) -> str:
    """Return the first `NAMED_MAX` names, and the number of the others."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
