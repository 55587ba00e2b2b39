"""Monthly partitions: the ledgers' are made before their month begins, the journal's may be dropped in time.

What arrives outside of them lands in the default partition: nothing is ever refused.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

MONTHS_AHEAD = 3
ENSURE = text("SELECT ensure_partitions(now(), :months_ahead)")
DROP = text("SELECT drop_calls(now() - make_interval(days => :days))")


async def ensure(engine: AsyncEngine, *, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make the partitions up to `months_ahead` months from now; answers the new ones' names."""
    async with engine.begin() as connection:
        made = await connection.execute(ENSURE, {"months_ahead": months_ahead})
        return [str(name) for name in made.scalars()]


async def drop_calls(engine: AsyncEngine, days: int) -> list[str]:
    """Drop the months of the journal that ended so many days ago; answers their partitions' names."""
    async with engine.begin() as connection:
        dropped = await connection.execute(DROP, {"days": days})
        return [str(name) for name in dropped.scalars()]
