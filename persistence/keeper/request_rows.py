"""Where rows of requests can be: from a day before their ids say they began, or since when a clock was wrong.

What has its place before the first month that is still here may be in the archive: nobody here can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.moments import ms_of
from gateway.core.request_time import AHEAD_MAX, AHEAD_MAX_MS, began, is_of_gateway

# Which days' ids were given by a clock that was ahead by more, and since when rows of them are.
_AHEAD = text("SELECT day, since FROM clock_ahead WHERE day = ANY(cast(:days AS date[]))")
_KEPT = text("""
SELECT max(since) FILTER (WHERE ledger <> 'call') AS movements, max(since) AS calls FROM kept_since
 WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage', 'call')""")
# A condition on a moment: that it is not before `:since`, where there is such.
SINCE = "coalesce(cast(:since AS timestamptz), timestamptz '-infinity')"

# The moment before which there is no row of a request; None where it may have them anywhere.
Since = datetime | None


async def places(connection: AsyncConnection, request_ids: Sequence[str]) -> dict[str, Since]:
    """Since when rows of each of these requests can be."""
    moments = {one: began(one) for one in request_ids}
    days = sorted({moment.date() for moment in moments.values() if moment is not None})
    rows = await connection.execute(_AHEAD, {"days": days}) if days else ()
    ahead = {row.day: row.since for row in rows}
    return {
        one: None if moment is None else min(moment - AHEAD_MAX, ahead.get(moment.date(), moment))
        for one, moment in moments.items()
    }


def earliest(found: Mapping[str, Since]) -> Since:
    """Since when rows of any of them can be."""
    known = [since for since in found.values() if since is not None]
    return min(known) if known and len(known) == len(found) else None


async def maybe_gone(connection: AsyncConnection, found: Mapping[str, Since]) -> list[str]:
    """The requests that may have rows in months that are archived, or dropped.

    To be asked after the rows: a month may go in between. Of an id that says no moment, given by a gateway of
    before ids did, only movements are in doubt: a call of which the journal alone knows is not.
    """
    movements, calls = (await connection.execute(_KEPT)).one()
    return [
        one
        for one, since in found.items()
        if (since is None and movements is not None)
        or (since is not None and calls is not None and since < calls)
    ]


async def ended_before(connection: AsyncConnection, deadlines: Mapping[str, int]) -> list[str]:
    """The holds of calls that ended in such months: there were their deadlines, in ms of Redis' clock."""
    _, kept = (await connection.execute(_KEPT)).one()
    until = 0 if kept is None else ms_of(kept) + AHEAD_MAX_MS
    return [one for one, at_ms in deadlines.items() if at_ms < until and is_of_gateway(one)]
