"""Which schema a database has, and whether this program may run on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StartError

# The versions this program knows, oldest first: it runs on the newest.
KNOWN = tuple(
    sorted(path.name[1:5] for path in (Path(__file__).parent / "migrations" / "versions").glob("v????_*.py"))
)
NEEDED = KNOWN[-1]

_THERE = text("SELECT to_regclass('alembic_version') IS NOT NULL")
_VERSION = text("SELECT version_num FROM alembic_version")


async def version(engine: AsyncEngine) -> str | None:
    """The version a database has; None where nothing was migrated yet."""
    async with engine.connect() as connection:
        if not await connection.scalar(_THERE):
            return None
        found = await connection.scalar(_VERSION)
        return str(found) if found is not None else None


def refuse_other(found: str | None, known: Sequence[str] = KNOWN) -> None:
    """StartError where this program, which knows these, was not written for a schema of this version."""
    needed = known[-1]
    if found == needed:
        return
    if found is None:
        raise StartError(f"PostgreSQL has no schema, {needed} is needed: run tollkeeper migrate")
    if found in known:
        raise StartError(f"PostgreSQL has schema version {found}, {needed} is needed: run tollkeeper migrate")
    raise StartError(
        f"PostgreSQL has schema version {found}, this program knows {needed} at most: run a newer one"
    )
