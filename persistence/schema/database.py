"""Checks whether this program may run on a database's schema.

The oldest known version is the baseline: databases of earlier versions cannot be migrated. A newer schema
states the lowest version that a program must know to run on it (`runs_from` of its migrations), so that a
keeper of the previous release may start on it, and an incompatible one may not.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import StartError
from persistence.engine import looking
from persistence.queries import query
from persistence.schema.standing import (
    KNOWN,
    SERVER,
    STATUS,
    THERE,
    SchemaStatus,
    versions_between,
    why_unusable,
)

_SERVER = query("schema.server", "Select whether the database can be used", SERVER)
_THERE = query("schema.there", "Select whether the database has a schema", THERE)
_STATUS = query("schema.status", "Select the version of the schema", STATUS)


async def status(engine: AsyncEngine) -> SchemaStatus:
    async with looking(engine) as connection:
        unusable = why_unusable(*(await connection.execute(_SERVER)).one())
        if not await connection.scalar(_THERE):
            return SchemaStatus(None, unusable=unusable)
        result = (await connection.execute(_STATUS)).one_or_none()
        return SchemaStatus(*(result or (None,)))._replace(unusable=unusable)


async def outgrown(engine: AsyncEngine) -> str:
    """Return why this running program must stop after a migration to a newer schema, or "" if it need not.

    "" is also returned if PostgreSQL does not answer.
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
    """Raise `StartError` if this program cannot run on a database with the schema status `at`.

    `known` are the schema versions that the program knows.
    """
    if at.unusable:
        raise StartError(f"PostgreSQL: {at.unusable}")
    found, needed = at.version, known[-1]
    if found == needed or (at.is_newer(known) and "" < at.runs_from <= needed):
        return
    if found is None:
        raise StartError(f"PostgreSQL has no schema, {needed} is needed: run tollkeeper migrate")
    if found in known:
        raise StartError(f"PostgreSQL has schema version {found}, {needed} is needed: run tollkeeper migrate")
    if found < known[0]:
        first = ", then of ".join(versions_between(found))
        raise StartError(
            f"PostgreSQL has schema version {found}, this program begins at {known[0]}:"
            f" run tollkeeper migrate of version {first} first, then of this one"
        )
    raise StartError(
        f"PostgreSQL has schema version {found}, this program knows {needed} at most: run a newer one"
    )
