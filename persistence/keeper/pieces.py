"""Rows that are needed no more: deleted a piece a transaction, so that nobody waits for long."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncEngine

# Deleted in one transaction.
ROWS_AT_ONCE = 10_000


async def delete(engine: AsyncEngine, statement: TextClause, of: Mapping[str, object], at_once: int) -> int:
    """Delete until a piece has fewer than `at_once`, which the statement knows as `n`; answers how many."""
    deleted = 0
    while True:
        async with engine.begin() as connection:
            gone = int((await connection.execute(statement, {**of, "n": at_once})).rowcount)
        deleted += gone
        if gone < at_once:
            return deleted
