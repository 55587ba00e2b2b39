"""Connections of tests to PostgreSQL, which stay open: a new one reads the whole catalogue first.

`connected` stands where `psycopg.connect` would. It lends a connection that nobody else has meanwhile, and
takes it back as it was. A test that is about a session (its user, its process, its server that ends or
freezes) connects by `psycopg.connect`, and says why.
"""

from __future__ import annotations

import select
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

Connection = psycopg.Connection[Any]

# By address: those that nobody has now; those for statements that stand alone, one for each use.
_SPARE: Final = defaultdict[str, list[Connection]](list)
_KEPT: Final = defaultdict[str, dict[str, Connection]](dict)
# DISCARD ALL without DISCARD PLANS: what functions and triggers have planned is dear.
_AS_NEW: Final = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)


@contextmanager
def connected(url: str, *, autocommit: bool = False, row_factory: Any = tuple_row) -> Iterator[Connection]:
    """Lend a connection; commit behind the block, or roll back what it did where it raises."""
    connection = _take(url)
    connection.autocommit, connection.row_factory = autocommit, row_factory
    try:
        yield connection
        if not connection.closed:
            connection.commit()
    finally:
        with suppress(psycopg.OperationalError):  # a test ended it: nobody has it again
            connection.rollback()
            connection.autocommit = True
            connection.execute(_AS_NEW)
            _SPARE[url].append(connection)


def kept(url: str, use: str = "statements") -> Connection:
    """Return the connection for statements that stand alone: each commits, and leaves nothing behind."""
    by_use = _KEPT[url]
    if use not in by_use or not _is_open(by_use[use]):
        by_use[use] = _connect(url)
    return by_use[use]


def rows_of(
    url: str, statement: str, values: Sequence[object] = (), *, prepare: bool | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of a statement that stands alone; `prepare` has it planned once."""
    cursor = kept(url).execute(statement.encode(), values, prepare=prepare)
    return [] if cursor.rownumber is None else cursor.fetchall()  # also of rows without columns


def leave(url: str) -> None:
    """Close what any user has open there: only a database without sessions can be copied, or renamed."""
    for known in {*_SPARE, *_KEPT}:
        if known.rpartition("@")[2] == url.rpartition("@")[2]:
            for connection in (*_SPARE.pop(known, ()), *_KEPT.pop(known, {}).values()):
                connection.close()


def _connect(url: str) -> Connection:
    # Tests change tables, so that no statement is prepared for the next time unless that is asked for.
    return psycopg.connect(url, autocommit=True, prepare_threshold=sys.maxsize)


def _take(url: str) -> Connection:
    while _SPARE[url]:
        if _is_open(connection := _SPARE[url].pop()):
            return connection
    return _connect(url)


def _is_open(connection: Connection) -> bool:
    """Return whether a session that nobody uses is there: the socket of one that ended can be read."""
    if connection.closed:
        return False
    poll = select.poll()  # select() takes no descriptor above 1,023
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)
