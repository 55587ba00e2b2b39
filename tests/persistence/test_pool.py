"""The connections to PostgreSQL, as metrics tell of them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence import engine as engines
from persistence import engine as persistence_engine
from tests.conftest import free_port
from tests.waiting import eventually


def failures(engine: AsyncEngine) -> dict[str, int]:
    found = persistence_engine.pool_figures(engine)["postgresql_failures"]
    assert isinstance(found, list)
    return {str(cause): count for cause, count in found if count}


async def test_who_is_busy_and_who_waits_is_counted(database: str) -> None:
    engine = engines.create(database, connections_max=2)
    try:
        one, two = await engine.connect(), await engine.connect()
        waits = asyncio.create_task(engine.connect().start())
        await eventually(lambda: persistence_engine.pool_figures(engine)["postgresql_waiting"] == 1)
        assert persistence_engine.pool_figures(engine)["postgresql_connections"] == [["busy", 2], ["idle", 0]]
        assert persistence_engine.pool_figures(engine)["postgresql_connections_max"] == 2
        await one.close()
        three = await waits
        assert persistence_engine.pool_figures(engine)["postgresql_waiting"] == 0
        await two.close()
        await three.close()
        assert persistence_engine.pool_figures(engine)["postgresql_connections"] == [["busy", 0], ["idle", 2]]
        assert failures(engine) == {}
    finally:
        await engine.dispose()


async def test_a_pool_that_stays_empty_is_a_failure(database: str) -> None:
    engine = engines.create(database, connections_max=1, wait_s=0.05)
    try:
        async with engine.connect():
            with pytest.raises(NoneInTime):
                await engine.connect()
        assert failures(engine) == {"exhausted": 1}
        assert persistence_engine.pool_figures(engine)["postgresql_waiting"] == 0
    finally:
        await engine.dispose()


async def test_what_breaks_is_counted_by_its_cause_and_what_a_statement_says_wrong_is_not(
    database: str,
) -> None:
    engine = engines.create(database)
    away = engines.create(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    try:
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError):
                await connection.execute(text("SELECT nothing"))
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (n integer PRIMARY KEY)"))
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1), (1)"))
        assert failures(engine) == {}
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(text("SET statement_timeout = 1; SELECT pg_sleep(60)"))
        assert failures(engine) == {"statement": 1}
        async with engine.connect() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            with psycopg.connect(database, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1"))
        assert failures(engine) == {"statement": 1, "connection": 1}
        assert not await engines.answers(away)
        assert failures(away) == {"connection": 1}
    finally:
        await engine.dispose()
        await away.dispose()
