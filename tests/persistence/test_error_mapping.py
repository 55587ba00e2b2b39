"""Errors of PostgreSQL as the API tells them."""

from __future__ import annotations

import os

import psycopg
import pytest
from sqlalchemy import text

from gateway.errors import StoreTimeout, StoreUnavailable
from persistence import engine as engines
from persistence.error_mapping import code_of, sqlstate, translating

AWAY = "PostgreSQL does not answer; try again in a moment."


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("53100", "The disk of PostgreSQL is full; nothing can be written until it has room."),
        ("53200", "PostgreSQL has no memory left; try again in a moment."),
        ("53300", "PostgreSQL has no connection left; try again in a moment."),
        ("53400", "PostgreSQL lacks resources; try again in a moment."),
        ("25006", "PostgreSQL reads only; nothing can be written until its primary answers here."),
        ("57P03", AWAY), ("08006", AWAY), ("40001", AWAY), ("57014", StoreTimeout.__doc__),
    ],
)  # fmt: skip
async def test_translating_names_the_lack_of_a_server_that_answers(
    database: str, code: str, detail: str
) -> None:
    engine = engines.create(database)
    with pytest.raises(StoreUnavailable) as refused:
        async with translating(engine.begin()) as connection:
            await connection.execute(text(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{code}'; END $$"))
    await engine.dispose()
    assert (refused.value.message, code_of(refused.value)) == (detail, code)


async def test_translating_names_a_connection_refused_for_the_limit_of_a_role(
    database: str, postgres: str
) -> None:
    role = f"full_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
        try:
            with pytest.raises(StoreUnavailable, match="PostgreSQL has no connection left") as refused:
                async with translating(engines.create(database.replace("postgres@", f"{role}@")).connect()):
                    pass
        finally:
            owner.execute(f"DROP ROLE {role}")
    assert code_of(refused.value) == "53300"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("sorry, too many clients already", "53300"),
        ("remaining connection slots are reserved for roles with the SUPERUSER attribute", "53300"),
        ("Connection refused", ""),
    ],
)
def test_sqlstate_of_a_failed_connection_goes_by_its_text(said: str, code: str) -> None:
    assert sqlstate(psycopg.OperationalError(f"connection failed: FATAL:  {said}")) == code
