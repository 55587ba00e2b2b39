"""The version a database has is told, and only the one this program was written for is run on."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory

from gateway.errors import StartError
from persistence import engine
from persistence.schema import migrate
from persistence.schema import version as schema


def test_the_versions_known_are_those_of_the_migrations() -> None:
    found = ScriptDirectory(str(migrate.MIGRATIONS))
    assert found.get_current_head() == schema.NEEDED
    assert [script.revision for script in found.walk_revisions()] == [*reversed(schema.KNOWN)]


async def test_the_version_is_read(database: str) -> None:
    pool = engine.create(database)
    assert await schema.version(pool) is None
    migrate.upgrade(database)
    assert await schema.version(pool) == schema.NEEDED
    await pool.dispose()


def test_only_the_newest_version_known_is_accepted() -> None:
    known = ("0001", "0002")
    schema.refuse_other("0002", known)
    for found, said in (
        (None, "has no schema, 0002 is needed: run tollkeeper migrate"),
        ("0001", "has schema version 0001, 0002 is needed: run tollkeeper migrate"),
        ("0003", "has schema version 0003, this program knows 0002 at most"),
    ):
        with pytest.raises(StartError, match=said):
            schema.refuse_other(found, known)
