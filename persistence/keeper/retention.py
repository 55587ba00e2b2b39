"""The earliest time at which a request can have rows: a day before the time in its id, or earlier if a clock
was wrong.

For use that did not pass the gateway, its event has the time. Rows before the first month in PostgreSQL may
be in the archive, which is not read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Date,
    DateTime,
    cast,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.times import AHEAD_MAX, AHEAD_MAX_MS, began, is_of_gateway, ms_of
from persistence.queries import query
from persistence.tables import clock_ahead, use_event

# Requests of this many newest months are searched month by month; older ones together.
MONTHS_ALONE_MAX = 3

# Days whose ids came from a clock that was further ahead, and the time of their earliest rows.
_AHEAD = query("retention.ahead", "Select days with ids of a clock that was ahead",
    "SELECT day, since FROM clock_ahead WHERE day = ANY(cast(:days AS date[]))")  # fmt: skip
_KEPT = query("retention.kept", "Select from when on the ledgers are stored", """
SELECT max(since) FILTER (WHERE ledger <> 'call') AS movements, max(since) AS calls FROM kept_since
 WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage', 'call')""")  # fmt: skip
# The parameter `:since` as a time; minus infinity if it is NULL.
SINCE = "coalesce(cast(:since AS timestamptz), timestamptz '-infinity')"

# The same time for statements of psycopg; `times_of` returns the parameters.
SINCE_BEGAN = """
       (SELECT CASE WHEN count(*) < cardinality(%(timeless)s::uuid[]) THEN timestamptz '-infinity'
               ELSE coalesce(
                   least(%(began)s::timestamptz, min(e.used_at) - interval '1 day', min(c.since),
                         (SELECT min(a.since) FROM clock_ahead AS a WHERE a.day = ANY(%(began_on)s::date[]))),
                   timestamptz '-infinity') END
          FROM use_event AS e LEFT JOIN clock_ahead AS c ON c.day = (e.used_at AT TIME ZONE 'UTC')::date
         WHERE e.request_id = ANY(%(timeless)s::uuid[]))"""

# The earliest time of a request's rows; None if it may have rows at any time.
Since = datetime | None


async def places(connection: AsyncConnection, request_ids: Sequence[str]) -> dict[str, Since]:
    """Return the earliest time of each request's rows, None if its id has no time."""
    moments = {request_id: began(request_id) for request_id in request_ids}
    days = sorted({moment.date() for moment in moments.values() if moment is not None})
    rows = await connection.execute(_AHEAD, {"days": days}) if days else ()
    ahead = {row.day: row.since for row in rows}
    return {
        request_id: None if moment is None else min(moment - AHEAD_MAX, ahead.get(moment.date(), moment))
        for request_id, moment in moments.items()
    }


def earliest(times: Mapping[str, Since]) -> Since:
    known = [since for since in times.values() if since is not None]
    return min(known) if known and len(known) == len(times) else None


def by_month(times: Mapping[str, Since]) -> Iterator[tuple[list[str], Since]]:
    """Yield groups of request ids to search together, each with its earliest time.

    Each of the newest months is a group, all older months are one. Requests of unknown time come last.
    """
    months: dict[tuple[int, int], dict[str, Since]] = {}
    anywhere: list[str] = []
    for request_id, since in times.items():
        if since is None:
            anywhere.append(request_id)
        else:
            months.setdefault((since.year, since.month), {})[request_id] = since
    newest = sorted(months, reverse=True)
    rest: dict[str, Since] = {}
    for place, month in enumerate(newest):
        if place < MONTHS_ALONE_MAX:
            yield list(months[month]), earliest(months[month])
        else:
            rest |= months[month]
    if rest:
        yield list(rest), earliest(rest)
    if anywhere:
        yield anywhere, None


def not_before(at: ColumnElement[datetime], request_id: str) -> ColumnElement[bool]:
    """Return an SQL condition that `at` is not before a request's first possible row."""
    moment = began(request_id)
    if moment is None:
        used_on = cast(func.timezone("UTC", use_event.c.used_at), Date)
        earliest_row = select(func.least(use_event.c.used_at - AHEAD_MAX, clock_ahead.c.since)).select_from(
            use_event.outerjoin(clock_ahead, clock_ahead.c.day == used_on)
        )
        of_event = earliest_row.where(use_event.c.request_id == UUID(request_id)).scalar_subquery()
        return at >= func.coalesce(of_event, literal_column("timestamptz '-infinity'"))
    ahead = select(clock_ahead.c.since).where(clock_ahead.c.day == moment.date()).scalar_subquery()
    since: ColumnElement[datetime] = func.least(literal(moment - AHEAD_MAX, DateTime(timezone=True)), ahead)
    return at >= since


def times_of(request_ids: Sequence[str]) -> dict[str, object]:
    """Return the SQL parameters of `SINCE_BEGAN`: earliest time, days, and the request ids without a time."""
    moments = {request_id: began(request_id) for request_id in request_ids}
    known = [moment for moment in moments.values() if moment is not None]
    return {
        "began": min(known) - AHEAD_MAX if known else None,
        "began_on": sorted({moment.date() for moment in known}),
        "timeless": [request_id for request_id, moment in moments.items() if moment is None],
    }


async def maybe_gone(connection: AsyncConnection, times: Mapping[str, Since]) -> list[str]:
    """Return the requests whose rows may be in months that were archived or dropped.

    Call this after reading rows, since a month may be removed meanwhile. An id without a time is from an old
    gateway: its rows may be missing in a ledger, but not in the journal of calls.
    """
    movements, calls = (await connection.execute(_KEPT)).one()

    def may_lack_rows(since: datetime | None) -> bool:
        if since is None:
            return movements is not None
        return calls is not None and since < calls

    return [request_id for request_id, since in times.items() if may_lack_rows(since)]


async def ended_before(connection: AsyncConnection, deadlines: Mapping[str, int]) -> list[str]:
    """Return the ids of holds whose deadline (ms) is before the first month that is still in PostgreSQL."""
    _, kept = (await connection.execute(_KEPT)).one()
    until = 0 if kept is None else ms_of(kept) + AHEAD_MAX_MS
    return [hold_id for hold_id, at_ms in deadlines.items() if at_ms < until and is_of_gateway(hold_id)]


# Deletion of old rows, in small transactions, so that no other one waits for long.

# Rows deleted in one transaction.
DELETED_ROWS_AT_ONCE = 10_000
