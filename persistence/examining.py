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
from psycopg.rows import dict_row

from gateway.core.billing.stand_ins import StandIns, find_unpriced
from gateway.core.certificates import UnreadableCertificate
from gateway.errors import SchemaUnavailable
from persistence.address import CONNECT, plain_url
from persistence.error_mapping import complaint, sqlstate
from persistence.ledger.quarantine import OPENS
from persistence.server_certificate import certificate_end

# How long a look waits for a lock, and how long a statement may take.
LOCK_S_MAX, STATEMENT_S_MAX = 2, 5
# For this transaction alone, because the next one may run in another session of a pooler.
_BOUNDS = f"""
SELECT set_config('lock_timeout', '{LOCK_S_MAX}s', true),
       set_config('statement_timeout', '{STATEMENT_S_MAX}s', true)"""
# A lock that rows wait for, once it is this old. A shorter one is that of a usual change.
LOCKED_S_MIN = 1
# Who keeps a keeper from storing rows: sessions that wait for nobody, and that others wait for or that have such
# a lock of a table (PostgreSQL 18, 13.3, Table 13.2). Who waits for a row waits for a transaction, and has a lock
# of the tuple. Since when: others wait, or the transaction runs, which only its own role and monitors are told.
# A wait for an advisory lock is usual, and only followed.
_LOCKS = """
WITH RECURSIVE waits AS MATERIALIZED (
    SELECT l.pid, l.locktype, l.waitstart, unnest(pg_blocking_pids(l.pid)) AS blocker
      FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
     WHERE NOT l.granted AND a.datname = current_database()
), chain AS (
    SELECT blocker, pid, locktype <> 'relation' AS of_rows, waitstart
      FROM waits WHERE locktype IN ('relation', 'transactionid', 'tuple')
     UNION
    SELECT w.blocker, chain.pid, chain.of_rows, chain.waitstart
      FROM chain JOIN waits AS w ON w.pid = chain.blocker
), held AS (
    SELECT chain.blocker AS pid, l.relation, chain.of_rows, chain.waitstart
      FROM chain LEFT JOIN pg_locks AS l
        ON l.pid = chain.pid AND (l.locktype = 'tuple' OR NOT l.granted) AND l.relation IS NOT NULL
     UNION ALL
    SELECT coalesce(pid, 0), relation, false, NULL
      FROM pg_locks
     WHERE granted AND locktype = 'relation'
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
)
SELECT array_agg(DISTINCT c.relname::text ORDER BY c.relname::text) FILTER (WHERE NOT c.relispartition),
       coalesce(min(c.relname), ''), h.of_rows, nullif(h.pid, 0),
       extract(epoch FROM clock_timestamp() - min(least(a.xact_start, h.waitstart)))::float8 AS seconds
  FROM held AS h
  LEFT JOIN pg_class AS c ON c.oid = h.relation
   AND c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_stat_activity AS a ON a.pid = h.pid
 WHERE h.pid NOT IN (SELECT pid FROM waits) AND (c.oid IS NOT NULL OR h.relation IS NULL)
 GROUP BY h.pid, h.of_rows
HAVING coalesce(clock_timestamp() - min(least(a.xact_start, h.waitstart)) >= make_interval(secs => %s), true)
 ORDER BY seconds DESC NULLS LAST"""
NAMED_MAX = 3
_STOPPED = f"""
SELECT account, {OPENS} FROM quarantine WHERE released_at IS NULL ORDER BY account"""
_LETTERS = "SELECT count(*) FROM dead_letter WHERE resolved_at IS NULL"


# The bundled prices that no later one has replaced.
_BUNDLED = """
SELECT * FROM (
    SELECT *, lead(effective_from) OVER (
               PARTITION BY lower(provider COLLATE "C"), lower(model COLLATE "C"), match, currency
                   ORDER BY effective_from) AS following
      FROM price WHERE source = 'bundled') AS p
 WHERE following IS NULL OR following > now()"""


# Names that have a price, and stored models with their targets.
PRICED_NAMES = """SELECT DISTINCT lower(model COLLATE "C"), match FROM price"""
STORED_MODELS = "SELECT name, targets FROM model"
_STEPS_BY_MONEY = """
SELECT organization_id, name, steps FROM budget
 WHERE unit = 'money' AND steps <> '[]' AND deleted_at IS NULL ORDER BY organization_id, name"""


class TableLock(NamedTuple):
    """The tables that a session has locked, or rows of them, and for how many seconds.

    `pid` is None for a prepared transaction. `tables` is "" if only the rows' transaction is known.
    """

    tables: str
    of_rows: bool
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
    """Return the locks of tables and rows that others wait for, the oldest first; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        locks = connection.execute(_LOCKS, (LOCKED_S_MIN,)).fetchall()
    return [TableLock(few(tables or [part]), *facts) for tables, part, *facts in locks]


class SetAside(NamedTuple):
    """Accounts in quarantine, and the numbers of dead letters, and of keys and overrides that are held."""

    accounts: list[str]
    letters: int
    keys: int
    overrides: int


def set_aside(url: str) -> SetAside:
    """Return what waits for a person to decide; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        stopped = connection.execute(_STOPPED).fetchall()
        letters = connection.execute(_LETTERS).fetchone()
    assert letters is not None
    held = [opens for _, opens in stopped if opens is not None]
    keys, overrides = (sum(len(opens[name]) for opens in held) for name in ("keys", "overrides"))
    return SetAside(
        [account for account, opens in stopped if opens is None], int(letters[0]), keys, overrides
    )


def few(names: list[str]) -> str:
    """Return the first `NAMED_MAX` names, and the number of the others."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def bundled_prices(url: str) -> list[dict[str, Any]]:
    """Return the stored prices of the bundled list that are in force or will be."""
    with looked_at(url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_BUNDLED).fetchall()


def unpriced_steps(url: str, stand_ins: StandIns) -> list[str]:
    """Return the budgets of money with a step to a model that has no price; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        prices, models, budgets = [
            connection.execute(sql).fetchall() for sql in (PRICED_NAMES, STORED_MODELS, _STEPS_BY_MONEY)
        ]
    named = {
        (organization, name): {other for step in steps for other in step["models"].values()}
        for organization, name, steps in budgets
    }
    lacking = {
        *find_unpriced({other for others in named.values() for other in others}, prices, models, stand_ins)
    }
    return [
        f'"{name}" of organization {organization}: {few(sorted(others & lacking))}'
        for (organization, name), others in named.items()
        if others & lacking
    ]
