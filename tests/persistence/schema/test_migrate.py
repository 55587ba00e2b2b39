"""The schema: applied once however often and from wherever, and what it refuses by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import errors
from sqlalchemy import create_engine

from gateway.errors import StartError
from persistence import engine
from persistence.schema import migrate, partitions, roles
from persistence.schema.version import KNOWN, NEEDED
from persistence.tables import metadata
from tests.persistence.migrated import BY_MONTH, KEYS_ALWAYS_THERE, LEDGERS, PARTITIONED
from tests.persistence.scenario import one, rows_of, settle_in
from tests.persistence.schema.baseline import bring_to_baseline, described

TOKEN_ROW = (
    "INSERT INTO token_ledger (tenant_id, transaction_type, amount, direction, created_at, epoch, seq, cycle)"
    " VALUES (1, 'consume', 1, 'OUT', %s, 1, %s, 1)"
)


def test_migrating_twice_changes_nothing(database: str) -> None:
    assert migrate.schema_status(database).version is None
    assert migrate.upgrade(database) == NEEDED
    before = rows_of(database, "SELECT count(*) FROM pg_class")
    assert migrate.upgrade(database) == NEEDED
    assert rows_of(database, "SELECT count(*) FROM pg_class") == before
    assert migrate.schema_status(database).version == NEEDED


def test_migrating_from_three_places_at_once(database: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        versions = list(pool.map(migrate.upgrade, [database] * 3))
    assert versions == [NEEDED] * 3
    assert rows_of(database, "SELECT count(*) FROM business_model") == [(3,)]


def test_migrated_schema_is_the_one_the_program_was_written_for(cloned: str) -> None:
    def ours(_object: object, name: str | None, type_: str, _reflected: bool, _to: object) -> bool:
        partition = (
            type_ == "table" and name is not None and name.startswith(tuple(f"{t}_" for t in PARTITIONED))
        )
        return type_ != "index" and not partition  # indexes are the migrations' alone

    with create_engine(engine.dialect_url(cloned)).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": False, "include_object": ours}
        )
        assert compare_metadata(context, metadata) == []


def test_business_models_and_services_are_always_there(cloned: str) -> None:
    assert rows_of(cloned, "SELECT name, meter FROM business_model ORDER BY id") == [
        ("Consumption", "consumption"),
        ("Subscription", "subscription"),
        ("Pay-Per-Use", "pay_per_use"),
    ]
    services = rows_of(
        cloned,
        "SELECT s.key, s.credits, m.name, s.counts_tokens OR s.counts_none FROM service AS s"
        " JOIN business_model AS m ON m.id = s.business_model_id ORDER BY s.id",
    )
    assert services == [(key, 0, "Subscription", False) for key in KEYS_ALWAYS_THERE]


def test_the_baseline_is_taken_over_and_comes_to_the_same_as_the_files(
    postgres: str, database: str, cloned: str
) -> None:
    bring_to_baseline(database)
    seeded = "SELECT key, name FROM service ORDER BY id"
    rows_of(database, "INSERT INTO organization (name) VALUES ('Acme') RETURNING 1")
    before = rows_of(database, seeded)
    assert migrate.upgrade(database) == NEEDED
    assert described(postgres, database) == described(postgres, cloned)
    assert rows_of(database, seeded) == before == rows_of(cloned, seeded)
    assert rows_of(database, "SELECT name FROM organization") == [("Acme",)]


async def test_what_came_before_the_baseline_is_refused_with_what_to_do(database: str) -> None:
    bring_to_baseline(database)
    rows_of(database, "UPDATE alembic_version SET version_num = '0085' RETURNING 1")
    pool = engine.create(database)
    said = f"0085, this program begins at {KNOWN[0]}: run tollkeeper migrate of the release before it first"
    with pytest.raises(StartError, match=said):
        migrate.upgrade(database)
    with pytest.raises(StartError, match=said):
        await roles.refuse_unfit(pool)
    await pool.dispose()
    assert migrate.schema_status(database).version == "0085"


async def test_partitions_are_made_ahead_and_only_once(cloned: str) -> None:
    pool = engine.create(cloned)
    made = await partitions.ensure_partitions(pool, by="month", months_ahead=partitions.MONTHS_AHEAD + 2)
    assert len(made) == 2 * len(BY_MONTH)
    assert (
        await partitions.ensure_partitions(pool, by="month", months_ahead=partitions.MONTHS_AHEAD + 2) == []
    )
    await pool.dispose()


def test_months_begin_at_midnight_utc(cloned: str) -> None:
    with psycopg.connect(cloned, autocommit=True) as connection:
        connection.execute("SET timezone = 'Asia/Kolkata'")
        connection.execute("SELECT ensure_partitions('2031-02-10Z', 1)")
        connection.execute(TOKEN_ROW, (datetime(2031, 1, 31, 23, 59, 59, 999_000, UTC), 1))
        connection.execute(TOKEN_ROW, (datetime(2031, 2, 1, tzinfo=UTC), 2))
    assert rows_of(cloned, "SELECT tableoid::regclass::text, seq FROM token_ledger ORDER BY seq") == [
        ("token_ledger_y2031m01", 1),
        ("token_ledger_y2031m02", 2),
    ]


def test_a_row_of_any_month_is_taken_and_its_partition_may_come_too_late(cloned: str) -> None:
    with psycopg.connect(cloned, autocommit=True) as connection:
        connection.execute(TOKEN_ROW, (datetime(2041, 5, 2, tzinfo=UTC), 1))
        made = connection.execute("SELECT ensure_partitions('2041-05-10Z', 1)").fetchall()
        connection.execute(TOKEN_ROW, (datetime(2041, 5, 3, tzinfo=UTC), 2))
    assert ("token_ledger_y2041m05",) not in made
    assert ("token_ledger_y2041m06",) in made
    assert rows_of(cloned, "SELECT DISTINCT tableoid::regclass::text FROM token_ledger") == [
        ("token_ledger_default",)
    ]


@pytest.mark.parametrize("ledger", [*LEDGERS, "audit_log"])
def test_ledgers_are_append_only(cloned: str, ledger: str) -> None:
    [account] = settle_in(cloned, 10)
    rows = {
        "token_ledger": TOKEN_ROW.replace("%s, 1, %s", "now(), 1, 1"),
        "credit_posting": "INSERT INTO credit_posting (organization_id, kind, amount, balance_after,"
        " created_at, epoch, seq) VALUES (1, 'addition', 1, 1, now(), 1, 1)",
        "credit_transaction": 'INSERT INTO credit_transaction (organization_id, "timestamp", credits_used,'
        " balance_after, epoch, seq) VALUES (1, now(), 1, 1, 1, 1)",
        "feature_usage": 'INSERT INTO feature_usage (organization_id, "timestamp", usage_amount, spend,'
        " spent_after, epoch, seq) VALUES (1, now(), 1, 1, 1, 1, 1)",
        "audit_log": "INSERT INTO audit_log (actor, action, resource) VALUES ('a', 'b', 'c')",
    }
    assert account.seq == 0
    with psycopg.connect(cloned, autocommit=True) as connection:
        connection.execute(rows[ledger])
        [(partition,)] = connection.execute(f"SELECT tableoid::regclass::text FROM {ledger}").fetchall()
        for table in {ledger, partition}:
            for statement in (f"UPDATE {table} SET id = 7", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(errors.RestrictViolation, match="append-only"):
                    connection.execute(statement)
        assert connection.execute(f"SELECT count(*) FROM {ledger}").fetchone() == (1,)


def test_a_finalized_invoice_can_only_become_void(cloned: str) -> None:
    [account] = settle_in(cloned, 10)
    with psycopg.connect(cloned, autocommit=True) as connection:
        invoice = one(
            connection,
            "INSERT INTO invoice (organization_id, currency, period_start, period_end)"
            " VALUES (%s, 'EUR', '2026-01-01', '2026-01-31') RETURNING id",
            account.organization_id,
        )
        line = (
            "INSERT INTO invoice_line (invoice_id, position, kind, description, quantity, unit_price, amount)"
            f" VALUES ({invoice}, %s, 'usage', 'x', 1, 2, 2)"
        )
        connection.execute(line, (1,))
        connection.execute(
            "UPDATE invoice SET status = 'finalized', number = 'A-1', total_amount = 2,"
            " payment_status = 'open'"
        )
        for statement in (
            line.replace("%s", "2"),
            "UPDATE invoice_line SET amount = 1",
            "DELETE FROM invoice_line",
            "TRUNCATE invoice_line",
            "UPDATE invoice SET total_amount = 1",
            "UPDATE invoice SET status = 'draft'",
            "UPDATE invoice SET status = 'void', number = 'A-2'",
            "DELETE FROM invoice",
        ):
            with pytest.raises(errors.RestrictViolation):
                connection.execute(statement)
        connection.execute("UPDATE invoice SET payment_status = 'paid'")
        connection.execute("UPDATE invoice SET status = 'void', payment_status = NULL, voided_at = now()")
        with pytest.raises(errors.RestrictViolation):
            connection.execute("UPDATE invoice SET status = 'finalized'")


def test_counts_stay_below_two_to_the_53(cloned: str) -> None:
    with psycopg.connect(cloned, autocommit=True) as connection, pytest.raises(errors.CheckViolation):
        connection.execute("INSERT INTO token_plan (name, total_amount) VALUES ('p', 9007199254740992)")
