"""The version a database has is told, and only the one this program was written for is run on."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory

from gateway.errors import StartError
from persistence import engine
from persistence.keeper.sweeps import KeeperShares
from persistence.schema import migrate, roles
from persistence.schema import version as schema


def test_the_versions_known_are_those_of_the_migrations() -> None:
    found = ScriptDirectory(str(migrate.MIGRATIONS))
    assert found.get_current_head() == schema.NEEDED
    assert [script.revision for script in found.walk_revisions()] == [*reversed(schema.KNOWN)]


async def test_the_version_is_read(database: str) -> None:
    pool = engine.create(database)
    assert (await schema.status(pool))[:2] == (None, "")
    migrate.upgrade(database)
    scripts = ScriptDirectory(str(migrate.MIGRATIONS))
    found = await schema.status(pool)
    assert found[:2] == (schema.NEEDED, migrate.runs_from(scripts)) == migrate.schema_status(database)[:2]
    await pool.dispose()


def in_future(database: str, comment: str) -> None:
    """As a program of tomorrow leaves it: a later version, and what it says of programs."""
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute(f"COMMENT ON TABLE alembic_version IS '{comment}'")


async def test_a_keeper_starts_on_a_newer_schema_that_says_it_may_and_its_migrate_changes_nothing(
    cloned: str,
) -> None:
    in_future(cloned, f"runs from {schema.NEEDED}")
    pool = engine.create(cloned)
    await roles.refuse_unfit(pool)
    said: list[str] = []
    assert migrate.upgrade(cloned, said.append) == "9999"
    assert "newer one, on which programs" in said[0]
    assert (await schema.status(pool))[:2] == ("9999", schema.NEEDED)
    await pool.dispose()


@pytest.mark.parametrize("comment", ["runs from 9998", "", "runs from all"])
async def test_nobody_starts_on_a_newer_schema_that_does_not_say_so(cloned: str, comment: str) -> None:
    in_future(cloned, comment)
    pool = engine.create(cloned)
    with pytest.raises(StartError, match=f"9999, this program knows {schema.NEEDED} at most"):
        await roles.refuse_unfit(pool)
    with pytest.raises(StartError, match="9999"):
        migrate.upgrade(cloned)
    await pool.dispose()


@pytest.mark.parametrize(
    ("comment", "goes_on"), [(f"runs from {schema.NEEDED}", True), ("runs from 9999", False)]
)
async def test_a_keeper_goes_on_while_the_schema_serves_it(cloned: str, comment: str, goes_on: bool) -> None:
    pool = engine.create(cloned)
    assert await schema.outgrown(pool) == ""
    in_future(cloned, comment)
    said = await schema.outgrown(pool)
    assert ("" if goes_on else f"9999, this program knows {schema.NEEDED} at most") in said
    assert (said == "") is goes_on
    await pool.dispose()


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
        f'revision, down_revision = "9999", "{schema.NEEDED}"\n\n\ndef upgrade() -> None:\n    pass\n'
    )
    return found


async def test_a_schema_that_does_not_serve_who_runs_waits_until_they_are_stopped(
    cloned: str, tomorrow: Path
) -> None:
    pool = engine.create(cloned)
    keeper, other = KeeperShares(pool, 8081), KeeperShares(pool, 8082)
    for one in (keeper, other):
        await one.keep([0], [], held_s=3600)
    said = rf":8081 \(knows {schema.NEEDED}\), .*:8082 \(knows {schema.NEEDED}\): stop them first"
    with pytest.raises(StartError, match=said):
        migrate.upgrade(cloned, migrations=tomorrow)
    assert (await schema.status(pool)).version == schema.NEEDED
    await keeper.leave()
    with pytest.raises(StartError, match=f"know 9999: [^,]*:8082 .knows {schema.NEEDED}"):
        migrate.upgrade(cloned, wait_s=0.1, migrations=tomorrow)
    await other.keep([0], [], held_s=0)  # as one that was killed, and is silent
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, migrations=tomorrow) == "9999"
    assert "keepers run" not in "".join(told)
    await pool.dispose()


async def test_a_killed_keeper_is_waited_for_as_long_as_it_is_listed(cloned: str, tomorrow: Path) -> None:
    pool = engine.create(cloned)
    await KeeperShares(pool, 8081).keep([0], [], held_s=1)
    assert migrate.upgrade(cloned, wait_s=600, migrations=tomorrow) == "9999"
    await pool.dispose()


async def test_keepers_that_the_schema_serves_no_longer_may_end_by_it(cloned: str, tomorrow: Path) -> None:
    pool = engine.create(cloned)
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, end_older=True, migrations=tomorrow) == "9999"
    assert re.search(f"8081 .knows {schema.NEEDED}.: they end within seconds", told[0])
    assert "9999" in await schema.outgrown(pool)
    await pool.dispose()


async def test_who_says_no_schema_knew_the_last_one_that_nobody_said(cloned: str, tomorrow: Path) -> None:
    pool = engine.create(cloned)
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    with psycopg.connect(cloned) as connection:
        connection.execute("UPDATE keeper SET schema_version = NULL")
    with pytest.raises(StartError, match=r"8081 .knows 0078"):
        migrate.upgrade(cloned, migrations=tomorrow)
    await pool.dispose()


async def test_keepers_that_the_schema_serves_go_on_over_a_migration(cloned: str, tomorrow: Path) -> None:
    last = tomorrow / "versions" / "v9999_tomorrow.py"
    last.write_text(last.read_text() + f'\n\nruns_from = "{schema.NEEDED}"\n')
    pool = engine.create(cloned)
    await KeeperShares(pool, 8081).keep([0], [], held_s=3600)
    told: list[str] = []
    assert migrate.upgrade(cloned, told.append, migrations=tomorrow) == "9999"
    assert "keepers run" not in "".join(told)
    assert await schema.outgrown(pool) == ""
    await pool.dispose()


def test_the_last_migration_that_serves_no_older_program_says_who_runs() -> None:
    """A schema serves whoever all of its migrations serve."""

    def one(revision: str, **states: str) -> SimpleNamespace:
        return SimpleNamespace(revision=revision, module=SimpleNamespace(**states))

    for known, since in (
        ([one("0069"), one("0070", runs_from="0069")], "0069"),
        ([one("0069"), one("0070", runs_from="0069"), one("0071")], "0071"),
        ([one("0069"), one("0070", runs_from="0070"), one("0071", runs_from="0069")], "0070"),
    ):
        scripts: Any = SimpleNamespace(walk_revisions=partial(iter, known))
        assert migrate.runs_from(scripts) == since


def test_only_the_newest_version_known_is_accepted() -> None:
    known = ("0001", "0002")
    schema.refuse_other(schema.SchemaStatus("0002"), known)
    schema.refuse_other(schema.SchemaStatus("0003", "0002"), known)
    schema.refuse_other(schema.SchemaStatus("0004", "0001"), known)
    for found, said in (
        (None, "has no schema, 0002 is needed: run tollkeeper migrate"),
        ("0001", "has schema version 0001, 0002 is needed: run tollkeeper migrate"),
        ("0000", "has schema version 0000, this program begins at 0001: run tollkeeper migrate of"),
        ("0003", "has schema version 0003, this program knows 0002 at most"),
    ):
        with pytest.raises(StartError, match=said):
            schema.refuse_other(schema.SchemaStatus(found), known)
    with pytest.raises(StartError, match="0004, this program knows 0002 at most"):
        schema.refuse_other(schema.SchemaStatus("0004", "0003"), known)
