"""Errors of PostgreSQL are told by code, constraint and table: no row, no digest, nothing a caller wrote."""

from __future__ import annotations

import json
import logging
from io import StringIO
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from gateway.core.accounts.administration import Actor, Command
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict
from gateway.telemetry import logs
from persistence import engine
from persistence.error_mapping import complaint
from persistence.store import Store
from persistence.tables import api_key
from tests.persistence.scenario import plain, settle_in

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
async def test_bad_values_are_not_repeated(migrated: str, statement: str, values: dict[str, str]) -> None:
    pool = engine.create(migrated)
    with pytest.raises(DBAPIError) as caught:
        async with pool.connect() as connection:
            await connection.exec_driver_sql(statement, values)
    await pool.dispose()
    with psycopg.connect(migrated) as bare, pytest.raises(psycopg.DataError) as raised:
        bare.execute(statement.encode(), values)
    for said in (str(caught.value), complaint(caught.value), complaint(raised.value)):
        assert "s3cr3t" not in said
    assert complaint(raised.value).startswith("22")


async def test_what_is_wrong_with_the_way_there_is_told(migrated: str) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(migrated, dbname="nowhere")
    assert 'database "nowhere" does not exist' in complaint(caught.value)
    pool = engine.create(migrated)
    with pytest.raises(DBAPIError) as missing:
        async with pool.connect() as connection:
            await connection.execute(text("SELECT x FROM nothing"))
    await pool.dispose()
    assert complaint(missing.value) == '42P01 relation "nothing" does not exist'


async def test_an_answer_names_the_fields_that_clash_and_not_their_values(migrated: str) -> None:
    pool = engine.create(migrated)
    store, actor = Store(pool, partition_of), Actor("builtin:admin", "admin")
    values = {"key": "s3cr3t-service", "name": "one", "business_model_id": 1}
    await store.write(Command("services", "create", actor, "", plain, None, values))
    with pytest.raises(Conflict) as caught:
        await store.write(Command("services", "create", actor, "", plain, None, values))
    await pool.dispose()
    assert caught.value.message == "There is such a service already (key)."


@pytest.mark.parametrize("shown", [str, repr, json.dumps])
def test_what_postgresql_adds_to_an_error_is_cut_from_any_log(shown: Any) -> None:
    """Also where it comes by a way that nobody thought of, and where it is shown escaped."""
    said = shown("duplicate key value\nDETAIL:  Key (digest)=(s3cr3t) already exists.\nCONTEXT:  COPY line 1")
    assert "s3cr3t" not in logs.redacted(said)
    assert "duplicate key value" in logs.redacted(said)
