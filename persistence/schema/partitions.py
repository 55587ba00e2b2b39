"""Monthly partitions: made before their month begins; of the journal and of hours of usage dropped in time.

A month is one partition, or has one a day. That is its own matter: who reads, archives or drops a month does
the same.

What arrives outside of them lands in the default partition: nothing is ever refused.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

MONTHS_AHEAD = 3
ENSURE = text("SELECT ensure_partitions(now(), :months_ahead, :by)")
DROP = text("SELECT drop_months(:ledger, now() - make_interval(days => :days))")
# The roll-ups of single hours: of everything that is told apart, and of teams.
HOURS = ("usage_rollup_hour", "usage_rollup_team_hour")
# Whoever corrects a call finds its row first: nobody needs the names of a day whose calls are gone.
FORGET_NAMES = text(
    "DELETE FROM usage_name"
    " WHERE day < (SELECT (since AT TIME ZONE 'UTC')::date FROM kept_since WHERE ledger = 'call')"
)


async def ensure(engine: AsyncEngine, *, by: str, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make the partitions up to `months_ahead` months from now, by "month" or "day"; answers their names.

    A month of days is made in a transaction of its own, so that none is long.
    """
    made: list[str] = []
    while True:
        async with engine.begin() as connection:
            values = {"months_ahead": months_ahead, "by": by}
            new = [str(name) for name in (await connection.execute(ENSURE, values)).scalars()]
        made += new
        if not new or by != "day":
            return made


async def drop_calls(engine: AsyncEngine, days: int) -> list[str]:
    """Drop the months of the journal that ended so many days ago; answers their partitions' names."""
    dropped = await _drop(engine, "call", days)
    if dropped:
        async with engine.begin() as connection:
            await connection.execute(FORGET_NAMES)
    return dropped


async def drop_hours(engine: AsyncEngine, days: int) -> list[str]:
    """The same with hours of the roll-ups; what they add up to by day, week and month stays."""
    return [name for span in HOURS for name in await _drop(engine, span, days)]


async def _drop(engine: AsyncEngine, ledger: str, days: int) -> list[str]:
    async with engine.begin() as connection:
        dropped = await connection.execute(DROP, {"ledger": ledger, "days": days})
        return [str(name) for name in dropped.scalars()]
