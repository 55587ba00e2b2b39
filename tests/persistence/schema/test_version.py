"""The version a database has is told, and only the one this program was written for is run on."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StartError
from gateway.extras import version
from persistence import engine
from persistence.keeper.shares import KeeperShares
from persistence.schema import database as schema
from persistence.schema import migrate, partitions, privileges, standing
from persistence.schema.standing import KNOWN, NEEDED, SchemaStatus
from persistence.tables import metadata
from tests.connections import connected
from tests.persistence.migrated import BY_MONTH, KEYS_ALWAYS_THERE, LEDGERS, PARTITIONED
from tests.persistence.scenario import one, rows_of, settle_in
from tests.persistence.schema.baseline import bring_to_baseline, described


@pytest.fixture
async def pool(cloned: str) -> AsyncIterator[AsyncEngine]:
    made = engine.create(cloned)
    yield made
    await made.dispose()


def test_each_schema_names_the_version_that_brings_it() -> None:
    """In their order; what is not released is of the next minor version at most."""
    said = [tuple(map(int, standing.version_of(each).split("."))) for each in KNOWN]
    major, minor, _ = (int(part) for part in version().split("."))
    assert said == sorted(said)
    assert said[0] <= (major, minor, 0)
    assert said[-1] <= (major, minor + 1, 0)
    assert standing.versions_between("0112") == [standing.version_of(KNOWN[0])]


def test_the_versions_known_are_those_of_the_migrations() -> None:
    found = ScriptDirectory(str(migrate.MIGRATIONS))
    assert found.get_current_head() == NEEDED
    assert [script.revision for script in found.walk_revisions()] == [*reversed(KNOWN)]


async def test_the_version_is_read(database: str) -> None:
    pool = engine.create(database)
    assert (await schema.status(pool))[:2] == (None, "")
    migrate.upgrade(database)
    found = await schema.status(pool)
    assert found[:2] == (NEEDED, standing.runs_from()) == migrate.schema_status(database)[:2]
    await pool.dispose()


CHANGES = (
    "REVOKE INSERT ON call FROM {writer}",
    "GRANT DELETE ON call TO {writer}",
    "COMMENT ON TABLE alembic_version IS NULL",
    "COMMENT ON TABLE alembic_version IS 'runs from 0001'",
    "DROP INDEX call_owner_idx",
    "UPDATE alembic_version SET version_num = '0117'",
)


def test_a_start_leaves_alone_what_is_as_migrations_leave_it(cloned: str) -> None:
    with connected(cloned, autocommit=True) as connection:
        for change in CHANGES:
            migrate.upgrade(cloned)
            assert standing.is_current(cloned)
            connection.execute(change.format(writer=standing.writer_of(connection)))
            assert not standing.is_current(cloned), change


def test_a_database_without_a_schema_or_an_answer_is_not_left_alone(database: str) -> None:
    assert not standing.is_current(database)
    assert not standing.is_current(database.replace("@", "nobody@"))


def in_future(database: str, comment: str) -> None:
    """As a program of tomorrow leaves it: a later version, and what it says of programs."""
    with connected(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute(f"COMMENT ON TABLE alembic_version IS '{comment}'")


async def test_a_keeper_starts_on_a_newer_schema_that_says_it_may_and_its_migrate_changes_nothing(
    cloned: str,
    pool: AsyncEngine,
) -> None:
    in_future(cloned, f"runs from {NEEDED}")
    await privileges.refuse_unfit(pool)
    said: list[str] = []
    assert migrate.upgrade(cloned, said.append) == "9999"
    assert "newer one, on which programs" in said[0]
    assert (await schema.status(pool))[:2] == ("9999", NEEDED)


@pytest.mark.parametrize("comment", ["runs from 9998", "", "runs from all"])
async def test_nobody_starts_on_a_newer_schema_that_does_not_say_so(
    cloned: str, pool: AsyncEngine, comment: str
) -> None:
    in_future(cloned, comment)
    with pytest.raises(StartError, match=f"9999, this program knows {NEEDED} at most"):
        await privileges.refuse_unfit(pool)
    with pytest.raises(StartError, match="9999"):
        migrate.upgrade(cloned)


async def test_nobody_starts_on_a_schema_whose_version_cannot_be_read(cloned: str, pool: AsyncEngine) -> None:
    with connected(cloned) as connection:
        connection.execute("ALTER TABLE alembic_version RENAME version_num TO number")
    with pytest.raises(StartError, match="version_num"):
        await privileges.refuse_unfit(pool)


@pytest.mark.parametrize(("comment", "goes_on"), [(f"runs from {NEEDED}", True), ("runs from 9999", False)])
async def test_a_keeper_goes_on_while_the_schema_serves_it(
    cloned: str, pool: AsyncEngine, comment: str, goes_on: bool
) -> None:
    assert await schema.outgrown(pool) == ""
    in_future(cloned, comment)
    said = await schema.outgrown(pool)
    assert ("" if goes_on else f"9999, this program knows {NEEDED} at most") in said
    assert (said == "") is goes_on


async def test_who_does_not_answer_has_outgrown_nobody() -> None:
    pool = engine.create("postgresql://nobody@127.0.0.1:9/nothing")
    assert await schema.outgrown(pool) == ""
    await pool.dispose()


@pytest.fixture
def tomorrow(tmp_path: Path) -> Path:
    """The migrations of a version to come, the last of which serves nobody who runs today."""
    found = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, found)
    (found / "versions" / "v9999_tomorrow.py").write_text(
        f'revision, down_revision = "9999", "{NEEDED}"\n\n\ndef upgrade() -> None:\n    pass\n'
    )
    return found


async def test_a_schema_that_does_not_serve_who_runs_waits_until_they_are_stopped(
    cloned: str, pool: AsyncEngine, tomorrow: Path
) -> None:
    keeper, other = KeeperShares(pool, 8081), KeeperShares(pool, 8082)
    for each in (keeper, other):
        await each.keep([0], [], held_s=3600)
    said = rf":8081 \(knows {NEEDED}\), .*:8082 \(knows {NEEDED}\): stop them first"
    with pytest.raises(StartError, match=said):
        migrate.upgrade(cloned, migrations=tomorrow)
    assert (await schema.status(pool)).version == NEEDED
    await keeper.leave()
    with pytest.raises(StartError, match=f"know 9999: [^,]*:8082 .knows {NEEDED}"):
        migrate.upgrade(cloned, wait_s=0.1, migrations=tomorrow)
    await other.keep([0], [], held_s=0)  # as one that was killed, and is silent
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, migrations=tomorrow) == "9999"
    assert "keepers run" not in "".join(told)


async def test_a_killed_keeper_is_waited_for_as_long_as_it_is_listed(
    cloned: str, pool: AsyncEngine, tomorrow: Path
) -> None:
    await KeeperShares(pool, 8081).keep([0], [], held_s=1)
    assert migrate.upgrade(cloned, wait_s=600, migrations=tomorrow) == "9999"


async def test_keepers_that_the_schema_serves_no_longer_may_end_by_it(
    cloned: str, pool: AsyncEngine, tomorrow: Path
) -> None:
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, end_older=True, migrations=tomorrow) == "9999"
    assert re.search(f"8081 .knows {NEEDED}.: they end within seconds", told[0])
    assert "9999" in await schema.outgrown(pool)


async def test_who_says_no_schema_knew_the_last_one_that_nobody_said(
    cloned: str, pool: AsyncEngine, tomorrow: Path
) -> None:
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    with connected(cloned) as connection:
        connection.execute("UPDATE keeper SET schema_version = NULL")
    with pytest.raises(StartError, match=r"8081 .knows 0078"):
        migrate.upgrade(cloned, migrations=tomorrow)


async def test_keepers_that_the_schema_serves_go_on_over_a_migration(
    cloned: str, pool: AsyncEngine, tomorrow: Path
) -> None:
    last = tomorrow / "versions" / "v9999_tomorrow.py"
    last.write_text(last.read_text() + f'\n\nruns_from = "{NEEDED}"\n')
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, migrations=tomorrow) == "9999"
    assert "keepers run" not in "".join(told)
    assert await schema.outgrown(pool) == ""


def test_the_last_migration_that_serves_no_older_program_says_who_runs(tmp_path: Path) -> None:
    """A schema serves whoever all of its migrations serve."""
    for number, (known, since) in enumerate(
        (
            ({"0069": "", "0070": "0069"}, "0069"),
            ({"0069": "", "0070": "0069", "0071": ""}, "0071"),
            ({"0069": "", "0070": "0070", "0071": "0069"}, "0070"),
        )
    ):
        (folder := tmp_path / str(number)).mkdir()
        for own, states in known.items():
            text = f'revision = "{own}"\n' + (f'runs_from = "{states}"\n' if states else "")
            (folder / f"v{own}_one.py").write_text(text)
        assert standing.runs_from(folder) == since


def test_only_the_newest_version_known_is_accepted() -> None:
    known = ("0001", "0002")
    schema.refuse_other(SchemaStatus("0002"), known)
    schema.refuse_other(SchemaStatus("0003", "0002"), known)
    schema.refuse_other(SchemaStatus("0004", "0001"), known)
    for found, said in (
        (None, "has no schema, 0002 is needed: run tollkeeper migrate"),
        ("0001", "has schema version 0001, 0002 is needed: run tollkeeper migrate"),
        ("0000", "has schema version 0000, this program begins at 0001: run tollkeeper migrate of"),
        ("0003", "has schema version 0003, this program knows 0002 at most"),
    ):
        with pytest.raises(StartError, match=said):
            schema.refuse_other(SchemaStatus(found), known)
    with pytest.raises(StartError, match="0004, this program knows 0002 at most"):
        schema.refuse_other(SchemaStatus("0004", "0003"), known)


# --- migrate ----------------------------------------------------------------------------
# The schema: applied once however often and from wherever, and what it refuses by itself.


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


def test_models_with_all_causes_go_on_from_an_empty_account_after_a_migration(database: str) -> None:
    bring_to_baseline(database)
    with connected(database) as connection:
        connection.execute("""INSERT INTO model (name, targets, fallback) VALUES ('default', '[]', DEFAULT),
            ('reordered', '[]', '["5xx", "429", "unreachable"]'), ('chosen', '[]', '["unreachable", "5xx"]')""")
    migrate.upgrade(database)
    with connected(database) as connection:
        connection.execute("INSERT INTO model (name, targets) VALUES ('new', '[]')")
        stored = dict(connection.execute("SELECT name, fallback FROM model").fetchall())
    everything = ["unreachable", "429", "5xx", "credit"]
    assert stored.pop("chosen") == ["unreachable", "5xx"]
    assert stored == dict.fromkeys(("default", "reordered", "new"), everything)


async def test_what_came_before_the_baseline_is_refused_with_what_to_do(database: str) -> None:
    bring_to_baseline(database)
    rows_of(database, "UPDATE alembic_version SET version_num = '0085' RETURNING 1")
    pool = engine.create(database)
    said = f"0085, this program begins at {KNOWN[0]}: .* migrate of version 1.0.0rc1, then of 1.0.0 first"
    with pytest.raises(StartError, match=said):
        migrate.upgrade(database)
    with pytest.raises(StartError, match=said):
        await privileges.refuse_unfit(pool)
    await pool.dispose()
    assert migrate.schema_status(database).version == "0085"


async def test_partitions_are_made_ahead_and_only_once(pool: AsyncEngine) -> None:
    made = await partitions.ensure_partitions(pool, by="month", months_ahead=partitions.MONTHS_AHEAD + 2)
    assert len(made) == 2 * len(BY_MONTH)
    assert (
        await partitions.ensure_partitions(pool, by="month", months_ahead=partitions.MONTHS_AHEAD + 2) == []
    )


def test_months_begin_at_midnight_utc(cloned: str) -> None:
    with connected(cloned, autocommit=True) as connection:
        connection.execute("SET timezone = 'Asia/Kolkata'")
        connection.execute("SELECT ensure_partitions('2031-02-10Z', 1)")
        connection.execute(TOKEN_ROW, (datetime(2031, 1, 31, 23, 59, 59, 999_000, UTC), 1))
        connection.execute(TOKEN_ROW, (datetime(2031, 2, 1, tzinfo=UTC), 2))
    assert rows_of(cloned, "SELECT tableoid::regclass::text, seq FROM token_ledger ORDER BY seq") == [
        ("token_ledger_y2031m01", 1),
        ("token_ledger_y2031m02", 2),
    ]


def test_a_row_of_any_month_is_taken_and_its_partition_may_come_too_late(cloned: str) -> None:
    with connected(cloned, autocommit=True) as connection:
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
    with connected(cloned, autocommit=True) as connection:
        connection.execute(rows[ledger])
        [(partition,)] = connection.execute(f"SELECT tableoid::regclass::text FROM {ledger}").fetchall()
        for table in {ledger, partition}:
            for statement in (f"UPDATE {table} SET id = 7", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(errors.RestrictViolation, match="append-only"):
                    connection.execute(statement)
        assert connection.execute(f"SELECT count(*) FROM {ledger}").fetchone() == (1,)


def test_a_finalized_invoice_can_only_become_void(cloned: str) -> None:
    [account] = settle_in(cloned, 10)
    with connected(cloned, autocommit=True) as connection:
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
    with connected(cloned, autocommit=True) as connection, pytest.raises(errors.CheckViolation):
        connection.execute("INSERT INTO token_plan (name, total_amount) VALUES ('p', 9007199254740992)")
