"""Whom doctor names as the holder of locks that others wait for, on a PostgreSQL of two small tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from persistence.address import plain_url
from persistence.examining import table_locks
from tests.waiting import wait_until

Session = Callable[[], psycopg.Connection]
WAITING = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid = ANY(%s)"
OF_ROW = "SELECT 1 FROM quota WHERE id = 1 FOR UPDATE"
CHANGE = "UPDATE quota SET id = id WHERE id = 1"


@pytest.fixture
def sessions(database: str) -> Iterator[Session]:
    """Open sessions of the database, with tables `plan` and `quota` of a row each."""
    with ExitStack() as opened:
        own = opened.enter_context(psycopg.connect(plain_url(database), autocommit=True))
        for table in ("plan", "quota"):
            own.execute(f"CREATE TABLE {table} AS SELECT 1 AS id")
        yield lambda: opened.enter_context(psycopg.connect(plain_url(database)))


def change(session: psycopg.Connection, statement: str) -> None:
    session.execute(statement)
    session.rollback()


@pytest.mark.parametrize(
    ("statement", "of_rows"), [(OF_ROW, True), (CHANGE, True), ("LOCK TABLE quota", False)]
)
def test_table_locks_name_the_holder_and_no_session_that_waits(
    database: str, sessions: Session, statement: str, of_rows: bool
) -> None:
    holder, *waiting = (sessions() for _ in range(3))
    holder.execute(statement)
    with ThreadPoolExecutor() as threads:
        for session in waiting:  # the first waits for the transaction, the second for the tuple
            threads.submit(change, session, CHANGE)
        try:
            pids = [session.info.backend_pid for session in waiting]
            with psycopg.connect(plain_url(database), autocommit=True) as own:
                wait_until(lambda: own.execute(WAITING, (pids,)).fetchone() == (2,))
            (found,) = wait_until(lambda: table_locks(database))
        finally:
            holder.rollback()
    assert found[:3] == ("quota", of_rows, holder.info.backend_pid)
    assert found.seconds is not None
    assert found.seconds >= 1


def test_table_locks_name_the_first_of_a_chain(database: str, sessions: Session) -> None:
    holder, middle, keeper = (sessions() for _ in range(3))
    holder.execute("SELECT 1 FROM plan FOR UPDATE")
    middle.execute(OF_ROW)
    with ThreadPoolExecutor() as threads:
        threads.submit(change, middle, "UPDATE plan SET id = 2")
        threads.submit(change, keeper, CHANGE)
        try:
            found = wait_until(lambda: [lock for lock in table_locks(database) if "quota" in lock.tables])
        finally:
            holder.rollback()
    assert [lock[:3] for lock in found] == [("plan, quota", True, holder.info.backend_pid)]
