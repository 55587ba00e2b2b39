"""For how long months should be archived, where any are: so one hears of an archive that nobody writes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time

from sqlalchemy import text

from persistence.archive.months import BY_NAME
from persistence.engine import Engine

_OUTSIDE = " UNION ALL ".join(
    f"SELECT '{ledger.name}', date_trunc('month', min({ledger.at}), 'UTC') FROM {ledger.name}_default"  # noqa: S608  # our own words
    for ledger in BY_NAME.values()
)
# Of each ledger the oldest month that is in no archive, where this database was ever archived; months
# without a partition too, whose rows are in the default one.
_OLDEST = text(rf"""
SELECT ledger, min(month) AS month
  FROM (SELECT p.relname::text AS ledger,
               make_date(left(right(c.relname, 7), 4)::integer, right(c.relname, 2)::integer, 1) AS month
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
          JOIN pg_class AS p ON p.oid = i.inhparent
         WHERE i.inhparent = ANY (cast(cast(:ledgers AS text[]) AS regclass[]))
           AND c.relname ~ '_y\d{{4}}m\d{{2}}$'
        UNION ALL
        SELECT ledger, (month AT TIME ZONE 'UTC')::date FROM ({_OUTSIDE}) AS outside (ledger, month)
         WHERE month IS NOT NULL
        EXCEPT SELECT ledger, month FROM archived_month) AS open
 WHERE EXISTS (SELECT FROM archive_identity) GROUP BY 1""")  # noqa: S608  # our own words

# From when on a month of a ledger, by its name, is not kept any more.
Due = Callable[[str, date], date | None]


async def behind(engine: Engine, due: Due, now: datetime | None = None) -> dict[str, object]:
    """For how long the oldest month of each ledger should be archived, in seconds; 0 where none should."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_OLDEST, {"ledgers": list(BY_NAME)})).all()
    at, waits = now or datetime.now(UTC), []
    for row in rows:
        since = due(row.ledger, row.month)
        if since is not None:
            late = at - datetime.combine(since, time(), UTC)
            waits.append((row.ledger, max(0.0, late.total_seconds())))
    return {"archive_behind_seconds": sorted(waits)} if waits else {}
