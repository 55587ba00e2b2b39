"""Empty a migrated database in milliseconds: only what holds anything, which is few of its tables.

A connection of each database stays open, since one that is new reads the whole catalogue first. What was
emptied has no page left, so rows of the next test stand where they stood in a database that is new.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import suppress

import psycopg
from psycopg.sql import SQL, Identifier

from persistence.tables import metadata

# Whatever holds a row, or held one: what has no page never did. Partitions by their own name.
_HELD = """
SELECT relname FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND pg_relation_size(oid) > 0
   AND coalesce(pg_partition_root(oid), oid)::regclass::text = ANY(%s)"""
_kept: dict[str, psycopg.Connection] = {}

Work = Callable[[psycopg.Connection], object]


def clear(url: str, always_there: Collection[str], afterwards: Work = lambda _: None) -> None:
    """Delete every row but what is always there, and do `afterwards` in the same transaction."""
    try:
        _clear(connected(url), always_there, afterwards)
    except psycopg.OperationalError:  # a test ended every connection, this one as well
        leave(url)
        _clear(connected(url), always_there, afterwards)


def leave(url: str) -> None:
    """Have no connection there any more: only what nobody uses can be copied."""
    if url in _kept:
        with suppress(psycopg.OperationalError):
            _kept.pop(url).close()


def connected(url: str) -> psycopg.Connection:
    """Return the connection that stays open; another one, where a test ended it."""
    if url not in _kept or _kept[url].closed:
        # Tests change tables, so that no statement is prepared for the next time unless that is asked for.
        _kept[url] = psycopg.connect(url, autocommit=True, prepare_threshold=sys.maxsize)
    return _kept[url]


def planned_once(url: str, query: str) -> list[tuple[object, ...]]:
    """Return what a query without values answers: to plan all invariants takes ten times as long."""
    if url in _kept:
        with suppress(psycopg.OperationalError):  # the same
            return connected(url).execute(query, prepare=True).fetchall()
        leave(url)
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def _clear(connection: psycopg.Connection, always_there: Collection[str], afterwards: Work) -> None:
    names = [one.name for one in metadata.sorted_tables if one.name not in always_there]
    held = [Identifier(name) for (name,) in connection.execute(_HELD, [names])]
    with connection.transaction():
        # Ledgers refuse deletes: a superuser may have the triggers rest meanwhile.
        connection.execute("SET LOCAL session_replication_role = replica")
        for table in held:
            connection.execute(SQL("DELETE FROM {}").format(table))
        afterwards(connection)
    if held:
        connection.execute(SQL("VACUUM (INDEX_CLEANUP ON) {}").format(SQL(", ").join(held)))
