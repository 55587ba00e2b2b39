"""What a migration alters it locks first, all in one order, and it waits for no session without an end: it
says who keeps it waiting.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import create_engine, text

from gateway.errors import StartError
from persistence import engine
from persistence.schema import migrate
from persistence.schema.standing import KNOWN, NEEDED
from tests.connections import connected
from tests.persistence.scenario import rows_of
from tests.persistence.schema.baseline import bring_to_baseline
from tests.waiting import wait_until

# Modes that keep out whoever writes, or reads.
STRONG = "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"
LOCKED = """
SELECT DISTINCT c.relname::text FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
 WHERE l.pid = pg_backend_pid() AND l.mode = ANY (:modes) AND c.relname = ANY (:there)"""


@pytest.fixture
def tomorrow(tmp_path: Path) -> Path:
    """The migrations of a version to come, the last of which alters two tables; keepers go on over it."""
    found = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, found)
    (found / "versions" / "v9999_tomorrow.py").write_text(
        "from alembic import op\n\n"
        f'revision, down_revision = "9999", "{NEEDED}"\nruns_from = "{NEEDED}"\n'
        'alters = ("tenant", "partition_state")\n\n\n'
        "def upgrade() -> None:\n"
        "    for table in alters:\n"
        '        op.get_bind().exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN of_tomorrow TEXT")\n'
    )
    return found


def test_each_migration_says_what_it_alters(database: str) -> None:
    """What PostgreSQL says that it locked, of what was there before."""
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    to = create_engine(engine.dialect_url(database))
    bring_to_baseline(database)
    for version in KNOWN[1:]:
        with to.begin() as connection:
            config.attributes["connection"] = connection
            there = list(connection.scalars(text(migrate.TABLES)))
            command.upgrade(config, version)
            dropped = set(there) - set(connection.scalars(text(migrate.TABLES)))
            found = connection.scalars(text(LOCKED), {"modes": list(STRONG), "there": there})
            locked = sorted({*found, *dropped})
            said = getattr(scripts.get_revision(version).module, "alters", None)
            assert said == tuple(locked), f"v{version} has to say: alters = {tuple(locked)!r}"
    to.dispose()


def test_those_that_say_nothing_lock_all_there_is_and_the_others_what_they_say(
    cloned: str, tomorrow: Path
) -> None:
    scripts = ScriptDirectory(str(tomorrow))
    with create_engine(engine.dialect_url(cloned)).connect() as connection:
        assert migrate.altered_tables(connection, scripts, NEEDED) == ["partition_state", "tenant"]
        last = tomorrow / "versions" / "v9999_tomorrow.py"
        last.write_text(last.read_text().replace("alters", "changes"))
        everything = migrate.altered_tables(connection, ScriptDirectory(str(tomorrow)), NEEDED)
        assert everything == sorted(everything)
        assert {"tenant", "token_ledger", "alembic_version"} <= set(everything)
        assert not [one for one in everything if one.startswith("token_ledger_")], (
            "a partition comes with its table"
        )
        assert migrate.altered_tables(connection, scripts, "9999") == []


def test_who_holds_what_is_altered_is_named(cloned: str, tomorrow: Path) -> None:
    with held_by(cloned, "a-report", "SELECT FROM tenant") as pid, pytest.raises(StartError) as failed:
        migrate.upgrade(cloned, migrations=tomorrow, locks_s_max=0)
    said = rf"in use by pid {pid} a-report, idle in transaction, its query began \d\d:\d\d:\d\d UTC;"
    assert re.search(said, failed.value.message)
    assert "DATABASE_URL" not in failed.value.message
    assert migrate.schema_status(cloned).version == NEEDED


def test_it_goes_on_once_nobody_holds_them(cloned: str, tomorrow: Path) -> None:
    """Two runs: the second waits for the end of the first."""
    told: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        with held_by(cloned, "a-report", "SELECT FROM partition_state"):
            both = [pool.submit(migrate.upgrade, cloned, told.append, migrations=tomorrow) for _ in range(2)]
            wait_until(lambda: any("in use by pid" in line for line in told))
        assert [one.result() for one in both] == ["9999", "9999"]
    assert any("a-report" in line for line in told)
    assert "another migrate is at work: waiting for its end" in told


def test_it_comes_through_beside_transactions_that_lock_in_the_other_order(
    cloned: str, tomorrow: Path
) -> None:
    """As keepers do, who have their tables in the order of their work."""
    over, done = threading.Event(), [0, 0]

    def work(number: int) -> None:
        tables = ("tenant", "partition_state") if number else ("partition_state", "tenant")
        with connected(cloned, autocommit=True) as connection:
            while not over.is_set():
                try:
                    with connection.transaction():
                        for table in tables:
                            connection.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
                            connection.execute("SELECT pg_sleep(0.01)")
                    done[number] += 1
                except errors.DeadlockDetected:
                    continue

    with ThreadPoolExecutor(8) as pool:
        try:
            for number in range(8):
                pool.submit(work, number % 2)
            wait_until(lambda: min(done) > 0)
            assert migrate.upgrade(cloned, migrations=tomorrow) == "9999"
            before = list(done)
            wait_until(lambda: done[0] > before[0] and done[1] > before[1])
        finally:
            over.set()


@contextmanager
def held_by(database: str, name: str, query: str) -> Iterator[int]:
    """A session in a transaction that has asked this; its pid."""
    with psycopg.connect(database, application_name=name) as connection:  # of a name
        connection.execute(query)
        ((pid,),) = rows_of(database, f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'")
        yield int(pid)


# --- advisory locks ---------------------------------------------------------------------
# Each class of advisory locks has one owner, and stands in the list of all.


PERSISTENCE = Path(__file__).parents[3] / "persistence"
LIST = PERSISTENCE / "schema" / "standing.py"
_OWNED = re.compile(r"^ *# Advisory lock class (78\d\d): ", re.MULTILINE)
_TAKEN = re.compile(r"advisory(?:_xact)?_lock\((78\d\d)\b")
# Those that modules of one work take together; and archiving holds checkpoints still meanwhile.
_SHARED = {"7800", "7807"}


def test_each_class_of_advisory_locks_has_one_owner() -> None:
    taken = defaultdict(set)
    for path in PERSISTENCE.rglob("*.py"):
        for number in _TAKEN.findall(path.read_text()):
            taken[number].add(path.name)
    listed = (
        LIST.read_text().partition("Advisory lock classes of the project:")[2].partition("SCHEMA_LOCK")[0]
    )
    numbers = re.findall(r"\b78\d\d\b", listed)
    assert len(numbers) == len({*numbers})
    assert taken.keys() <= {*numbers}
    assert taken.keys() >= {"7800", "7808", "7809"}, "the pattern finds what takes a lock"
    several = {number: paths for number, paths in taken.items() if len(paths) > 1 and number not in _SHARED}
    assert not several


def test_what_is_said_of_a_class_is_about_the_one_that_is_taken() -> None:
    for path in PERSISTENCE.rglob("*.py"):
        text = path.read_text()
        assert {*_OWNED.findall(text)} <= {*_TAKEN.findall(text)}, path
