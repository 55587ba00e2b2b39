"""Monthly partitions of the ledgers, made before their month begins.

What arrives outside of them lands in the default partition: nothing is ever refused.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

MONTHS_AHEAD = 3
ENSURE = text("SELECT ensure_partitions(now(), :months_ahead)")


async def ensure(engine: AsyncEngine, *, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make the partitions up to `months_ahead` months from now; answers the new ones' names."""
    async with engine.begin() as connection:
        made = await connection.execute(ENSURE, {"months_ahead": months_ahead})
        return [str(name) for name in made.scalars()]
