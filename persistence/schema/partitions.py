"""Monthly partitions, which are created before their month begins.

Those of the journal and of hourly usage are dropped after a time. A month is one partition, or one for each
day. A row outside of them goes to the default partition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence.queries import naming, query
from persistence.schema.standing import (
    ENSURE_PARTITIONS,
    MONTHS_AHEAD,
)

DROP = query("partitions.drop", "Drop old months of a ledger", """
SELECT drop_months(:ledger, least(now() - make_interval(days => :days),
                                  cast(:until AS date)::timestamp AT TIME ZONE 'UTC'))""")  # fmt: skip
# The roll-ups of single hours: of all groups, and of teams.
HOURS = ("usage_rollup_hour", "usage_rollup_team_hour")
# Hours of calls with tags are no partitions.
FORGET_TAGS = query(
    "partitions.forget_tags", "Delete old hours of calls with tags",
    "DELETE FROM usage_tag WHERE span = 'hour'"
    " AND start < (SELECT since FROM kept_since WHERE ledger = 'usage_rollup_hour')",
)  # fmt: skip
# Only corrections of calls need these names, so they are deleted with the calls of their day.
FORGET_NAMES = query(
    "partitions.forget_names", "Delete names of deleted calls",
    "DELETE FROM usage_name"
    " WHERE day < (SELECT (since AT TIME ZONE 'UTC')::date FROM kept_since WHERE ledger = 'call')",
)  # fmt: skip

# The number of rows of each kind that a message names; the rest is counted.
NAMED_MAX = 5
# The first rows of a statement, and their total number.
_FIRST = """
SELECT whose, why, count(*) OVER () FROM ({statement}) AS found (whose, why)
 ORDER BY whose COLLATE "C", why COLLATE "C" LIMIT {most}"""
# Each returns the owner and a description of unbilled use, for a month that ends at {end}.
UNBILLED = {
    "has use that no invoice has": """
SELECT 'organization ' || organization_id, currency || ' ' || trim_scale(sum(amount)) FROM charge
 WHERE invoice_id IS NULL AND period_start < %(end)s
 GROUP BY organization_id, currency HAVING sum(amount) <> 0""",
    "has use that is not charged": """
SELECT 'organization ' || organization_id, 'units of ' || min(day) FROM usage_tier
 WHERE quantity <> charged_quantity AND day < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'units told late of ' || min(supplied_on) FROM usage_told
 WHERE quantity <> charged_quantity AND supplied_on < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'credits of ' || min(day) FROM credit_debt
 WHERE quantity <> charged_quantity AND day < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'the end of a plan' FROM plan_end
 WHERE quantity IS NULL AND supplied_from < %(end)s""",
    "still rates calls again": """
SELECT 'price ' || l.price_id, 'from ' || (p.effective_from AT TIME ZONE 'UTC')::date
  FROM rerating_left AS l JOIN price AS p ON p.id = l.price_id
 WHERE l.rated_at IS NULL AND p.effective_from < %(end)s""",
    "is a draft of an invoice": """
SELECT 'invoice ' || id, 'from ' || period_start::text FROM invoice
 WHERE status = 'draft' AND period_start < %(end)s""",
}


def end_of(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


async def why_unbilled(connection: AsyncConnection, end: date) -> str:
    """Return a message if use before the day `end` is on no invoice yet, or "" if all is billed."""
    for what, statement in UNBILLED.items():
        result = await connection.exec_driver_sql(first_of(statement), {"end": end}, _OF_UNBILLED)
        if said := named(what, [tuple(row) for row in result]):
            return said[0]
    return ""


def first_of(statement: str) -> str:
    """Return SQL for the first `NAMED_MAX` rows of a statement, and for the number of all its rows."""
    return _FIRST.format(statement=statement, most=NAMED_MAX)


def named(what: str, found: Sequence[tuple[Any, ...]]) -> list[str]:
    rest = found[0][2] - NAMED_MAX if found else 0
    said = [f"{whose} {what}: {why}" for whose, why, _ in found]
    return [*said, f"and {rest} more like it"] if rest > 0 else said


# Months of calls that ended a number of days ago, at least 31; and whether any were archived.
_OLD_CALLS = query("partitions.old_calls", "Select months of calls that are old enough to be dropped", r"""
SELECT month FROM (
    SELECT make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'call'::regclass AND c.relname ~ '_y\d{4}m\d{2}$') AS months
 WHERE month < date_trunc('month', now() - make_interval(days => greatest(:days, 31)), 'UTC')
               AT TIME ZONE 'UTC'
 ORDER BY month""")  # fmt: skip
_ARCHIVED = query("partitions.archived", "Select whether calls were ever archived",
    "SELECT EXISTS (SELECT FROM archived_month WHERE ledger = 'call')")  # fmt: skip
_OF_ENSURE = naming("partitions.ensure", "Create the partitions of the next months")
_OF_UNBILLED = naming("partitions.unbilled", "Select use of a month that is on no invoice")
_NO_ARCHIVE = "it is in no archive, and earlier ones are"


async def ensure_partitions(engine: AsyncEngine, *, by: str, months_ahead: int = MONTHS_AHEAD) -> list[str]:
    """Create the partitions up to `months_ahead` months from now, by "month" or "day"; return their names.

    Each month of daily partitions is created in a transaction of its own, so that none is long.
    """
    made: list[str] = []
    while True:
        async with engine.begin() as connection:
            values = {"months_ahead": months_ahead, "by": by}
            result = await connection.exec_driver_sql(ENSURE_PARTITIONS, values, _OF_ENSURE)
            new = [str(name) for name in result.scalars()]
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
    """Drop the partitions of calls whose month ended `days` days ago; return the names of the partitions.

    A month with unbilled use is kept, and all later ones. With `are_archived`, so is a month that is in no
    archive. `stays` is called with the first kept month and the reason.
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
    """Drop the hourly roll-ups of months that ended `days` ago; return the names of the partitions.

    Daily, weekly and monthly sums are kept.
    """
    dropped = [name for span in HOURS for name in await _drop(engine, span, days)]
    async with engine.begin() as connection:
        await connection.execute(FORGET_TAGS)
    return dropped


async def _first_that_stays(
    connection: AsyncConnection, days: int, *, are_archived: bool
) -> tuple[date, str] | None:
    """Return the first month that may not be removed yet, and why; None if all may."""
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
