"""Which schema a database has, and whether this program may run on it.

The oldest version known is the baseline: there is no way from a version before it. A newer schema says
since which version programs run on it (`runs_from` of its migrations): a keeper that is one release behind
starts on it, and another that would do harm does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StartError

# The versions this program knows, oldest first: it runs on the newest.
KNOWN = tuple(
    sorted(path.name[1:5] for path in (Path(__file__).parent / "migrations" / "versions").glob("v????_*.py"))
)
NEEDED = KNOWN[-1]

# The comment says since which version programs run on it: it is there in backups too, and anybody reads it.
THERE = "SELECT to_regclass('alembic_version') IS NOT NULL"
STATUS = """
SELECT version_num,
       coalesce(substring(obj_description('alembic_version'::regclass) FROM '^runs from ([0-9]{4})$'), '')
  FROM alembic_version"""


class SchemaStatus(NamedTuple):
    """The version a database has, None where nothing was migrated; and since which one programs run on it.

    `runs_from` is empty where the schema does not say it. `clock` is the server's Unix time as it answered.
    """

    version: str | None
    runs_from: str = ""
    clock: float | None = None

    def is_newer(self, known: Sequence[str] = KNOWN) -> bool:
        """Whether it came after all that a program that knows these knows."""
        return self.version is not None and self.version not in known and self.version > known[0]


async def status(engine: AsyncEngine) -> SchemaStatus:
    """Where a database stands."""
    async with engine.connect() as connection:
        if not await connection.scalar(text(THERE)):
            return SchemaStatus(None)
        found = (await connection.execute(text(STATUS))).one_or_none()
        return SchemaStatus(None) if found is None else SchemaStatus(*found)


async def outgrown(engine: AsyncEngine) -> str:
    """Why a program that has begun may not go on: a newer schema that does not serve it, on one line.

    Empty where it may, or where nobody answers.
    """
    try:
        at = await status(engine)
    except (SQLAlchemyError, OSError):
        return ""
    if at.is_newer():
        try:
            refuse_other(at)
        except StartError as error:
            return error.message
    return ""


def refuse_other(at: SchemaStatus, known: Sequence[str] = KNOWN) -> None:
    """StartError where this program, which knows these, cannot run on a schema that stands there."""
    found, needed = at.version, known[-1]
    if found == needed or (at.is_newer(known) and "" < at.runs_from <= needed):
        return
    if found is None:
        raise StartError(f"PostgreSQL has no schema, {needed} is needed: run tollkeeper migrate")
    if found in known:
        raise StartError(f"PostgreSQL has schema version {found}, {needed} is needed: run tollkeeper migrate")
    if found < known[0]:
        raise StartError(
            f"PostgreSQL has schema version {found}, this program begins at {known[0]}:"
            " run tollkeeper migrate of the release before it first, then of this one"
        )
    raise StartError(
        f"PostgreSQL has schema version {found}, this program knows {needed} at most: run a newer one"
    )
