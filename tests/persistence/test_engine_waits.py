"""Nobody waits for a PostgreSQL that does not answer, and everybody for one that is only slow."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from io import StringIO
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Command
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict, StoreUnavailable
from gateway.telemetry import logs
from persistence import engine
from persistence import engine as engines
from persistence import engine as persistence_engine
from persistence.engine import alive, create, plain_url
from persistence.error_mapping import complaint, is_away, refuses_values
from persistence.store import Store
from persistence.tables import api_key
from tests.conftest import free_port
from tests.connections import connected
from tests.persistence.scenario import plain, settle_in

SHORT_S = 0.02
answered = partial(persistence_engine.answered, silent_s_max=SHORT_S, probe_s_max=SHORT_S)


async def yes() -> bool:
    return True


async def never() -> bool:
    await asyncio.Event().wait()
    return True


async def broken() -> bool:
    raise OSError("refused")


async def test_work_that_does_not_end_though_it_is_cancelled_is_left_behind() -> None:
    ended = asyncio.Event()

    async def stubborn() -> bool:
        while not ended.is_set():
            with suppress(asyncio.CancelledError):
                await ended.wait()
        return True

    with pytest.raises(TimeoutError):
        await persistence_engine.within(stubborn(), SHORT_S)
    ended.set()
    assert await persistence_engine.within(yes(), 30)
    with pytest.raises(OSError, match="refused"):
        await persistence_engine.within(broken(), 30)


async def test_slow_work_is_waited_for() -> None:
    asked = 0
    slow = asyncio.Event()

    async def often() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            slow.set()
        return True

    async def work() -> int:
        await slow.wait()
        return 7

    assert await answered(work(), often) == 7
    assert asked >= 5


async def test_what_goes_wrong_in_the_work_is_said() -> None:
    async def work() -> int:
        raise Conflict("no")

    with pytest.raises(Conflict):
        await answered(work(), yes)


@pytest.mark.parametrize("alive", [never, broken])
async def test_work_on_a_silent_server_is_left_behind(alive: Callable[[], Awaitable[bool]]) -> None:
    left = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
            # As a query whose cancellation waits for the server's word.
            await asyncio.Event().wait()
        return 0

    with pytest.raises(StoreUnavailable):
        await answered(work(), alive)
    await left.wait()


async def test_a_server_that_accepts_and_says_nothing_is_not_alive(postgres: str) -> None:
    there = create(postgres)
    assert await alive(there)
    await there.dispose()
    silent = await asyncio.start_server(lambda _, __: asyncio.Event().wait(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    engine = create(f"postgresql://u@127.0.0.1:{port}/d")
    assert not await persistence_engine._answers(lambda: alive(engine), SHORT_S)
    await engine.dispose()
    silent.close()


async def test_a_password_with_blanks_does_not_make_slow_work_look_like_a_dead_server() -> None:
    password = "a keeper's 100 % + password"
    engine = create("postgresql://keeper@127.0.0.1:5432/ledger")
    shown = engine.url.set(password=password).render_as_string(hide_password=False)
    assert conninfo_to_dict(plain_url(shown))["password"] == password
    await engine.dispose()


# --- away -------------------------------------------------------------------------------
# Which errors of a real PostgreSQL concern everybody who asks, and which the values of one alone.


async def error_of(url: str, *statements: str) -> Exception:
    engine = engines.create(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is looked at
        return error
    finally:
        await engine.dispose()
    raise AssertionError("it went well")


@pytest.mark.parametrize(
    ("statements", "away", "refused"),
    [
        (["SET LOCAL statement_timeout = 20", "SELECT pg_sleep(60)"], False, False),
        (["SELECT pg_terminate_backend(pg_backend_pid())"], True, False),
        (["SELECT 'x'::text::integer"], False, True),
        (["SELECT 40000::integer::smallint"], False, True),
        (["CREATE TEMP TABLE one (n integer CHECK (n > 0))", "INSERT INTO one VALUES (0)"], False, True),
        (["SELECT * FROM nobody_made_this"], False, False),
    ],
)
async def test_what_an_error_is_about(
    database: str, statements: list[str], *, away: bool, refused: bool
) -> None:
    error = await error_of(database, *statements)
    assert (is_away(error), refuses_values(error)) == (away, refused), error


async def test_a_server_that_is_not_there_is_away() -> None:
    error = await error_of(f"postgresql://nobody@127.0.0.1:{free_port()}/none", "SELECT 1")
    assert (is_away(error), refuses_values(error)) == (True, False), error


# --- complaint --------------------------------------------------------------------------
# Errors of PostgreSQL are told by code, constraint and table: no row, no digest, nothing a caller wrote.


DIGEST = "d19e57ab" * 8


def key(tenant_id: int) -> Any:
    return insert(api_key).values(tenant_id=tenant_id, name="twin", digest=DIGEST, prefix="tk_twin")


async def test_a_conflicting_digest_reaches_no_log(migrated: str) -> None:
    [account] = settle_in(migrated, 1000)
    pool, stream = engine.create(migrated), StringIO()
    logger = logging.getLogger("tests.complaint")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger.addHandler(handler)
    async with pool.begin() as connection:
        await connection.execute(key(account.tenant_id))
    async with pool.connect() as connection:
        with pytest.raises(DBAPIError) as caught:
            await connection.execute(key(account.tenant_id))
    await pool.dispose()
    error = caught.value
    try:
        raise error
    except DBAPIError:
        logger.exception("whatever")
    said = [str(error), repr(error), str(error.orig), repr(error.orig), complaint(error), stream.getvalue()]
    assert [one for one in said if DIGEST in one or "DETAIL" in one] == []
    assert [one for one in said if "api_key_digest_key" not in one or "23505" not in one] == []
    assert error.orig is not None
    assert isinstance(error.orig, psycopg.errors.UniqueViolation)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("SELECT %(it)s::text::integer", {"it": "s3cr3t"}),
        ("SELECT %(it)s::text::jsonb", {"it": '{"s3cr3t": '}),
        ("SELECT 1 / (length(%(it)s) - 6)", {"it": "s3cr3t"}),
    ],
)
async def test_bad_values_are_not_repeated(
    migrated: str, pool: AsyncEngine, statement: str, values: dict[str, str]
) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with pool.connect() as connection:
            await connection.exec_driver_sql(statement, values)
    with connected(migrated) as bare, pytest.raises(psycopg.DataError) as raised:
        bare.execute(statement.encode(), values)
    for said in (str(caught.value), complaint(caught.value), complaint(raised.value)):
        assert "s3cr3t" not in said
    assert complaint(raised.value).startswith("22")


async def test_what_is_wrong_with_the_way_there_is_told(migrated: str, pool: AsyncEngine) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(migrated, dbname="nowhere")  # which no session can have
    assert 'database "nowhere" does not exist' in complaint(caught.value)
    with pytest.raises(DBAPIError) as missing:
        async with pool.connect() as connection:
            await connection.execute(text("SELECT x FROM nothing"))
    assert complaint(missing.value) == '42P01 relation "nothing" does not exist'


async def test_an_answer_names_the_fields_that_clash_and_not_their_values(pool: AsyncEngine) -> None:
    store, actor = Store(pool, partition_of), Actor("builtin:admin", "admin")
    values = {"key": "s3cr3t-service", "name": "one", "business_model_id": 1}
    await store.write(Command("services", "create", actor, "", plain, None, values))
    with pytest.raises(Conflict) as caught:
        await store.write(Command("services", "create", actor, "", plain, None, values))
    assert caught.value.message == "This service already exists (key)."


@pytest.mark.parametrize("shown", [str, repr, json.dumps])
def test_what_postgresql_adds_to_an_error_is_cut_from_any_log(shown: Any) -> None:
    """Also where it comes by a way that nobody thought of, and where it is shown escaped."""
    said = shown("duplicate key value\nDETAIL:  Key (digest)=(s3cr3t) already exists.\nCONTEXT:  COPY line 1")
    assert "s3cr3t" not in logs.redacted(said)
    assert "duplicate key value" in logs.redacted(said)
