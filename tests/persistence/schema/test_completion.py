"""What a migration leaves to do behind its transaction: it keeps no writer waiting, and is completed however often a run
is killed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from gateway.errors import SchemaUnavailable
from persistence import engine
from persistence.schema import migrate, standing
from persistence.schema.standing import NEEDED
from tests.connections import connected
from tests.databases import own_database
from tests.persistence.scenario import rows_of
from tests.persistence.schema.baseline import bring_to_baseline, described
from tests.waiting import wait_until

# Tables with as many rows as administrators have made; all others grow with calls, users or invoices.
OF_ADMINISTRATORS = {
    "api_key", "budget", "model", "organization", "organization_service", "price", "raise_request", "service", "tenant",
}  # fmt: skip
KILLED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tollkeeper-migrate'"
OPEN = """
SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE NOT i.indisvalid
UNION ALL SELECT conname::text FROM pg_constraint WHERE NOT convalidated ORDER BY 1"""
USE = "INSERT INTO budget_use (budget_id, start, value, name, used) VALUES (%s, %s, %s, %s, %s)"
MONTH = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def insert_calls(connection: psycopg.Connection, number: int, at: datetime) -> None:
    """Insert calls of any values: 1 in each column that has to have one, and the time."""
    columns = connection.execute(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'call'::regclass AND attnum > 0 AND attnotnull"
        " AND NOT atthasdef AND attidentity = '' AND atttypid = 'bigint'::regtype"
    ).fetchall()
    names = [name for (name,) in columns]
    connection.execute(
        sql.SQL(
            "INSERT INTO call (request_id, created_at, streamed, estimated, {}) SELECT gen_random_uuid(), %s, false, false, {}"
            " FROM generate_series(1, %s)"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join([sql.SQL("1")] * len(names))
        ),
        (at, number),
    )


def filled_baseline(url: str) -> None:
    bring_to_baseline(url)
    with connected(url) as connection:
        connection.execute("SELECT ensure_partitions(now(), 1)")
        for at in (MONTH, MONTH - timedelta(days=400)):
            insert_calls(connection, 7, at)
        connection.execute(USE, (1, MONTH, "ann", "Ann", 5))
        connection.execute("ANALYZE")


def interrupted(url: str, at: Callable[[str], bool]) -> list[str]:
    """Migrate a database, and end each session of it at the first line that `at` takes; return the lines."""
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if at(line):
            rows_of(url, KILLED)

    migrate.upgrade(url, report)
    return lines


def test_migrations_neither_read_nor_rewrite_a_table_that_grows(database: str) -> None:
    """Whoever writes to it waits as long, since all tables are locked until the transaction ends."""
    bring_to_baseline(database)
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    files = "SELECT oid::bigint, relfilenode::bigint, relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    to = create_engine(engine.dialect_url(database))
    with to.begin() as connection:
        before = {oid: file for oid, file, _ in connection.execute(text(files))}
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        read = connection.scalars(
            text(
                "SELECT relname::text FROM pg_stat_xact_user_tables WHERE seq_scan > 0 AND relid = ANY (:there)"
            ),
            {"there": [*before]},
        )
        rewritten = {
            name for oid, file, name in connection.execute(text(files)) if before.get(oid, file) != file
        }
        assert {*read} | rewritten <= OF_ADMINISTRATORS | {"alembic_version"}
    to.dispose()


def test_a_run_that_is_killed_at_any_moment_is_completed_by_the_next_run(
    postgres: str, database: str, cloned: str
) -> None:
    """From two places at once at last; the schema is that of a new database."""
    filled_baseline(database)
    for word in ("copies", "locks", "INDEX CONCURRENTLY", "VALIDATE"):
        with pytest.raises(SchemaUnavailable, match=r"terminating connection|closed|57P01"):
            interrupted(database, lambda line, word=word: word in line)
        assert not standing.is_current(database)
    assert migrate.schema_status(database).version == NEEDED, (
        "programs may start, and what is left to do is derived"
    )
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(migrate.upgrade, [database] * 2)] == [NEEDED] * 2
    assert standing.is_current(database)
    assert rows_of(database, OPEN) == []
    assert described(postgres, database) == described(postgres, cloned)
    assert rows_of(database, "SELECT count(*) FROM call") == [(14,)]
    assert rows_of(database, "SELECT value, used FROM budget_use") == [("ann", Decimal(5))]


def test_the_rows_that_are_locked_and_read_are_reported_beforehand(database: str) -> None:
    filled_baseline(database)
    lines = interrupted(database, lambda _: False)
    locked = next(line for line in lines if line.startswith("locks"))
    assert "call (14 rows)" in locked
    assert "budget_use (1 rows)" in locked
    assert "usage_tag" not in locked, "it is new"
    # Three indexes and two constraints of 14 calls, one index of a row of budget_use.
    assert any(f"{5 * 14 + 1} rows to read" in line for line in lines)
    assert any(
        "call_default USING btree (organization_id, tenant_id, created_at, id), 7 rows" in line
        for line in lines
    )


def test_an_index_that_is_made_keeps_no_writer_waiting_and_is_made_again_where_that_was_killed(
    postgres: str, cloned: str, template: str
) -> None:
    lines: list[str] = []
    with connected(cloned, autocommit=True) as connection:
        insert_calls(connection, 3, MONTH)
        connection.execute("DROP INDEX call_owner_idx")
    assert not standing.is_current(cloned)
    with psycopg.connect(cloned, application_name="a-report") as reader, ThreadPoolExecutor(1) as pool:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM organization")
        run = pool.submit(migrate.upgrade, cloned, lines.append)
        wait_until(lambda: any("waits for" in line and "a-report" in line for line in lines))
        with connected(cloned) as writer:
            writer.execute("SET LOCAL lock_timeout = '50ms'")
            insert_calls(writer, 1, MONTH)
            insert_calls(writer, 1, MONTH - timedelta(days=400))
            writer.execute("UPDATE call SET cost = 1")
        rows_of(cloned, KILLED)
        with pytest.raises(SchemaUnavailable):
            run.result()
    left = [name for (name,) in rows_of(cloned, OPEN)]
    assert len(left) == 2, "the index, and that of a partition, which nobody may use"
    assert migrate.upgrade(cloned) == NEEDED
    assert rows_of(cloned, OPEN) == []
    with own_database(postgres, f"like_{cloned.rpartition('/')[2]}", template) as fresh:
        assert described(postgres, cloned) == described(postgres, fresh)


DEFINITIONS = r"SELECT tablename, regexp_replace(indexdef, 'INDEX \w+', '') FROM pg_indexes ORDER BY 1, 2"
LATER = "SELECT ensure_partitions(now(), 5, '')"
WITHOUT = """
SELECT t.inhrelid::regclass::text FROM pg_inherits AS t WHERE inhparent = 'call'::regclass AND NOT EXISTS (
    SELECT FROM pg_index AS i JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid
     WHERE i.indrelid = t.inhrelid AND h.inhparent = 'call_owner_idx'::regclass)"""


@pytest.mark.parametrize("by", ["month", "day"])
def test_partitions_that_come_and_go_meanwhile_have_the_index(
    postgres: str, cloned: str, template: str, by: str
) -> None:
    """Where the only ones that had to get it were dropped, it is made again."""

    def at_this_month(line: str) -> bool:
        if is_here := f"call_y{MONTH:%Ym%m}" in line:
            rows_of(cloned, LATER)
        return is_here

    with own_database(postgres, f"like_{cloned.rpartition('/')[2]}", template) as fresh:
        for url in (cloned, fresh):
            for _ in range(2):  # a month of one table each: of the audit log, and of calls
                rows_of(url, f"SELECT ensure_partitions(now(), 0, '{by}')")
        rows_of(fresh, LATER)
        with connected(cloned, autocommit=True) as connection:
            for at in (MONTH, MONTH - timedelta(days=400)):
                insert_calls(connection, 3, at)
            connection.execute("DROP INDEX call_owner_idx")
            with pytest.raises(SchemaUnavailable):
                interrupted(cloned, at_this_month)
            without = connection.execute(WITHOUT).fetchall()
            assert len(without) >= 3, "the months ahead"
            for (partition,) in without:
                connection.execute(f"DROP TABLE {partition}")
        assert migrate.upgrade(cloned) == NEEDED
        rows_of(cloned, LATER)
        assert rows_of(cloned, OPEN) == []
        assert rows_of(cloned, DEFINITIONS) == rows_of(fresh, DEFINITIONS)


@pytest.mark.parametrize("seed", range(2))
def test_writes_beside_the_copies_of_a_migration_are_copied(database: str, seed: int) -> None:
    """Of rows that were there, or not, before the copy was made; with use that is larger than before at last."""
    draw = random.Random(seed)
    bring_to_baseline(database)
    uses: dict[tuple[int, str], int] = {}
    module = ScriptDirectory(str(migrate.MIGRATIONS)).get_revision("0125").module
    to = create_engine(engine.dialect_url(database), isolation_level="AUTOCOMMIT")

    def write(connection: psycopg.Connection) -> None:
        key = draw.randrange(9), draw.choice("ab")
        kind = draw.choice(("put", "put", "delete", "rename"))
        if kind == "put":
            uses[key] = draw.randrange(2**53)
            connection.execute(
                f"{USE} ON CONFLICT (budget_id, start, value) DO UPDATE SET used = excluded.used",
                (key[0], MONTH, key[1], "", uses[key]),
            )
        elif kind == "delete":
            uses.pop(key, None)
            connection.execute("DELETE FROM budget_use WHERE (budget_id, value) = (%s, %s)", key)
        elif key in uses and (key[0], "c") not in uses:
            uses[key[0], "c"] = uses.pop(key)
            connection.execute("UPDATE budget_use SET value = 'c' WHERE (budget_id, value) = (%s, %s)", key)

    for prepared in (False, True, True):
        with connected(database) as connection:
            for _ in range(draw.randrange(1, 30)):
                write(connection)
        if prepared or draw.random() < 0.5:
            with to.connect() as beside:
                module.prepare(beside)
    to.dispose()
    migrate.upgrade(database)
    found = rows_of(database, "SELECT budget_id, value, used FROM budget_use")
    assert {(budget, value): int(used) for budget, value, used in found} == uses
    rows_of(database, "INSERT INTO budget_use (budget_id, start, used) VALUES (1, now(), 1e40) RETURNING 1")


def test_a_copy_that_was_interrupted_is_continued(database: str) -> None:
    """Whoever holds a row for long is not waited for, so that no deadlock is theirs; the pieces before stay copied.

    Also where the rows stand elsewhere by then, in another file or in a database that was restored from a dump.
    """
    bring_to_baseline(database)
    rows_of(
        database,
        "INSERT INTO budget_use (budget_id, start, value, used)"
        " SELECT 1, now(), n, n FROM generate_series(0, 29999) AS n",
    )
    module = ScriptDirectory(str(migrate.MIGRATIONS)).get_revision("0125").module
    to = create_engine(engine.dialect_url(database), isolation_level="AUTOCOMMIT")
    with connected(database) as holder:
        holder.execute("SELECT FROM budget_use WHERE value = '29999' FOR UPDATE")
        with to.connect() as beside, pytest.raises(OperationalError, match="LockNotAvailable"):
            module.prepare(beside)
    to.dispose()
    [(copied,)] = rows_of(database, "SELECT count(*) FROM budget_use_copy")
    assert 0 < copied < 30_000
    with connected(database, autocommit=True) as operator:
        operator.execute("DELETE FROM budget_use WHERE used < 10000")
        operator.execute("VACUUM FULL budget_use")
    migrate.upgrade(database)
    assert rows_of(database, "SELECT count(*), sum(used) FROM budget_use") == [
        (20_000, sum(range(10_000, 30_000)))
    ]
