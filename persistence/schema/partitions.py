"""Monthly partitions: made before their month begins; of the journal and of hours of usage dropped in time.

A month is one partition, or has one a day. That is its own matter: who reads, archives or drops a month does
the same.

What arrives outside of them lands in the default partition: nothing is ever refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence.archive.months import end_of, why_unbilled

MONTHS_AHEAD = 3
ENSURE_PARTITIONS = text("SELECT ensure_partitions(now(), :months_ahead, :by)")
DROP = text("""
SELECT drop_months(:ledger, least(now() - make_interval(days => :days),
                                  cast(:until AS date)::timestamp AT TIME ZONE 'UTC'))""")
# The roll-ups of single hours: of everything that is told apart, and of teams.
HOURS = ("usage_rollup_hour", "usage_rollup_team_hour")
# Whoever corrects a call finds its row first: nobody needs the names of a day whose calls are gone.
FORGET_NAMES = text(
    "DELETE FROM usage_name"
    " WHERE day < (SELECT (since AT TIME ZONE 'UTC')::date FROM kept_since WHERE ledger = 'call')"
)


# Months of calls that ended so many days ago, and 31 at least; and whether any were archived.
_OLD_CALLS = text(r"""
SELECT month FROM (
    SELECT make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'call'::regclass AND c.relname ~ '_y\d{4}m\d{2}$') AS months
 WHERE month < date_trunc('month', now() - make_interval(days => greatest(:days, 31)), 'UTC')
               AT TIME ZONE 'UTC'
 ORDER BY month""")
_ARCHIVED = text("SELECT EXISTS (SELECT FROM archived_month WHERE ledger = 'call')")
_NO_ARCHIVE = "it is in no archive, and earlier ones are"


async def ensure_partitions(engine: AsyncEngine, *, by: str, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Make the partitions up to `months_ahead` months from now, by "month" or "day"; answers their names.

    A month of days is made in a transaction of its own, so that none is long.
    """
    made: list[str] = []
    while True:
        async with engine.begin() as connection:
            values = {"months_ahead": months_ahead, "by": by}
            new = [str(name) for name in (await connection.execute(ENSURE_PARTITIONS, values)).scalars()]
        made += new
        if not new or by != "day":
            return made


async def drop_calls(
    engine: AsyncEngine,
    days: int,
    *,
    are_archived: bool = False,
    stays: Callable[[date, str], object] = lambda *_: None,
) -> list[str]:
    """Drop the months of the journal that ended so many days ago; answers their partitions' names.

    A month that is not billed stays, and those behind it. Where calls are archived, none is dropped that no
    archive has: archiving takes them out. `stays` is told of the first one, and why.
    """
    async with engine.connect() as connection:
        stayed = await _first_that_stays(connection, days, are_archived=are_archived)
    if stayed is not None:
        stays(*stayed)
    dropped = await _drop(engine, "call", days, stayed and stayed[0])
    if dropped:
        async with engine.begin() as connection:
            await connection.execute(FORGET_NAMES)
    return dropped


async def drop_hours(engine: AsyncEngine, days: int) -> list[str]:
    """The same with hours of the roll-ups; what they add up to by day, week and month stays."""
    return [name for span in HOURS for name in await _drop(engine, span, days)]


async def _first_that_stays(
    connection: AsyncConnection, days: int, *, are_archived: bool
) -> tuple[date, str] | None:
    months = list((await connection.execute(_OLD_CALLS, {"days": days})).scalars())
    if months and are_archived and (await connection.execute(_ARCHIVED)).scalar_one():
        return months[0], _NO_ARCHIVE
    for month in months:
        if said := await why_unbilled(connection, end_of(month)):
            return month, said
    return None


async def _drop(engine: AsyncEngine, ledger: str, days: int, until: date | None = None) -> list[str]:
    async with engine.begin() as connection:
        values = {"ledger": ledger, "days": days, "until": until}
        return [str(name) for name in (await connection.execute(DROP, values)).scalars()]
