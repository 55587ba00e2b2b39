"""A month's partition may itself have one a day: rows, indexes and refusals are the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors

from persistence.schema.partitions import ENSURE_PARTITIONS
from tests.persistence.migrated import BY_MONTH
from tests.persistence.scenario import rows_of

AT = datetime(2031, 2, 10, tzinfo=UTC)
FORMS = r"""
SELECT substring(c.relname from '_y(\d{4}m\d{2})$'), c.relkind::text, count(*)::integer
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE c.relname ~ '_y2031m\d{2}$' AND c.relkind IN ('r', 'p') GROUP BY 1, 2 ORDER BY 1"""
# Indexes of days that belong to none of the month's, and those of months to none of the ledger's.
LOOSE = r"""
SELECT c.relname FROM pg_class AS t JOIN pg_index AS x ON x.indrelid = t.oid
  JOIN pg_class AS c ON c.oid = x.indexrelid
 WHERE t.relname ~ '_y2031m\d{2}' AND NOT c.relispartition"""
ROW = (
    "INSERT INTO token_ledger (tenant_id, transaction_type, amount, direction, created_at, epoch, seq, cycle)"
    " VALUES (1, 'consume', 1, 'OUT', %s, 1, %s, 1)"
)
EACH = len(BY_MONTH)


def made(connection: psycopg.Connection[Any], by: str, ahead: int = 1) -> int:
    """All that is to be made by a moment; how many months of ledgers were."""
    total = 0
    while new := len(connection.execute("SELECT ensure_partitions(%s, %s, %s)", [AT, ahead, by]).fetchall()):
        total += new
    return total


@pytest.fixture
def connection(cloned: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(cloned, autocommit=True) as connection:
        yield connection


def test_what_asks_for_months_is_what_the_keeper_asks(connection: psycopg.Connection[Any]) -> None:
    values = {"months_ahead": 0, "by": "month"}
    statement = ENSURE_PARTITIONS.text.replace(":months_ahead", "%(months_ahead)s").replace(":by", "%(by)s")
    assert connection.execute(statement.encode(), values).fetchall() == []


def test_months_ahead_that_are_empty_change_their_form_and_no_other(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    assert made(connection, "month") == 3 * EACH
    connection.execute(ROW, (datetime(2031, 2, 14, tzinfo=UTC), 1))
    assert made(connection, "day") == 2 * EACH - 1
    assert rows_of(cloned, FORMS) == [
        ("2031m01", "r", EACH), ("2031m02", "p", EACH - 1), ("2031m02", "r", 1),
        ("2031m03", "p", EACH),
    ]  # fmt: skip
    assert (made(connection, "day"), made(connection, "")) == (0, 0)
    assert connection.execute("SELECT ensure_partitions(%s, 1)", [AT]).fetchall() == []
    assert rows_of(cloned, LOOSE) == []
    connection.execute(ROW, (datetime(2031, 3, 14, tzinfo=UTC), 2))
    assert made(connection, "month") == 2 * EACH - 2
    assert rows_of(cloned, FORMS) == [
        ("2031m01", "r", EACH), ("2031m02", "r", EACH),
        ("2031m03", "p", 1), ("2031m03", "r", EACH - 1),
    ]  # fmt: skip
    assert rows_of(cloned, "SELECT tableoid::regclass::text FROM token_ledger ORDER BY seq") == [
        ("token_ledger_y2031m02",), ("token_ledger_y2031m03d14",)
    ]  # fmt: skip
    assert rows_of(cloned, LOOSE) == []


def test_a_day_begins_at_midnight_utc_and_is_append_only(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("SET timezone = 'Asia/Kolkata'")
    made(connection, "day", 0)
    for seq, moment in enumerate(
        (datetime(2031, 2, 10, 23, 59, 59, 999_000, UTC), datetime(2031, 2, 28, tzinfo=UTC)), 1
    ):
        connection.execute(ROW, (moment, seq))
    days = [f"token_ledger_y2031m02d{day}" for day in (10, 28)]
    found = rows_of(cloned, "SELECT tableoid::regclass::text FROM token_ledger ORDER BY seq")
    assert found == [(day,) for day in days]
    for table in (*days, "token_ledger_y2031m02"):
        for statement in (f"UPDATE {table} SET id = 7", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises(errors.RestrictViolation, match="append-only"):
                connection.execute(statement.encode())
    with pytest.raises(errors.UniqueViolation):
        connection.execute(ROW, (datetime(2031, 2, 28, tzinfo=UTC), 2))


def test_months_are_made_while_others_write_and_read(
    cloned: str, connection: psycopg.Connection[Any]
) -> None:
    made(connection, "month", 0)
    with psycopg.connect(cloned) as writer:
        writer.execute(ROW, (AT, 1))
        # A month ahead is made as ever. The present one, which it writes to, would have to be had alone.
        assert made(connection, "day") == 2 * EACH - 1
        writer.rollback()
    assert made(connection, "day") == 1


@pytest.mark.parametrize(("ahead", "by"), [(-1, "day"), (25, "day"), (1, "week"), (1, None)])
def test_what_is_no_number_of_months_or_no_form_is_refused(
    connection: psycopg.Connection[Any], ahead: int, by: str | None
) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        connection.execute("SELECT ensure_partitions(now(), %s, %s)", [ahead, by])
