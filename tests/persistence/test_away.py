"""Which errors of a real PostgreSQL concern everybody who asks, and which the values of one alone."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from persistence import engine as engines
from persistence.error_mapping import is_away, refuses_values
from tests.conftest import free_port


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
