"""News of budgets: what is reached of an amount, each second, and when it will be used up, each minute.

What is used is what the flush has stored, within a second or two of the calls: looking at it costs neither
calls nor Redis anything. What was told is stored beside it, so that a window is told of once, whoever looks
and whatever starts again. Only budgets that somebody wants to hear of are looked at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.budgets import ALL_OTHERS, MONEY, OTHERS, bounds, shown_amount
from gateway.core.alerts.budgets import (
    LOOK_BACK_MS,
    TOTAL_AHEAD_MS,
    RunningWindow,
    Sample,
    Samples,
    Told,
    crossed,
    exceeds,
    exhausted_ms,
    remembered,
)
from gateway.core.moments import EPOCH, MILLISECOND, moment_of, ms_of, rfc3339
from persistence.keeper.news import News, tell, wanted

EVENTS: Final = ("budget.threshold", "budget.exceeded", "budget.forecast")
# Accounts that are looked at in one transaction, and ways to divide time there may be.
ACCOUNTS_MAX: Final = 5_000
CALENDARS_MAX: Final = 10_000
# What was reached in a window that is over is told this long behind its end.
OVER: Final = timedelta(hours=1)
# Floats are compared with so much to spare; what is exact decides afterwards.
ROUNDED: Final = 1 - 1e-12
_AHEAD: Final = TOTAL_AHEAD_MS * MILLISECOND

_WANTED = wanted(EVENTS, "b.organization_id")
_CALENDARS = text(f"""
SELECT DISTINCT b."interval", b.time_zone, b.anchor_day FROM budget AS b
 WHERE b.deleted_at IS NULL AND {_WANTED} LIMIT {CALENDARS_MAX}""")  # noqa: S608  # our own words
# Every budget that is wanted, in its windows. Where it is raised, the limit is what it is raised to.
_LIVE = f"""
WITH calendar AS (
    SELECT * FROM unnest(cast(:intervals AS text[]), cast(:zones AS text[]), cast(:anchors AS integer[]),
                         cast(:starts AS timestamptz[]), cast(:nexts AS timestamptz[]),
                         cast(:looks_back AS interval[]))
        AS c ("interval", time_zone, anchor_day, start, next, look_back)
), live AS MATERIALIZED (
    SELECT b.id, b.name, b.organization_id, o.name AS organization, o.currency, b.unit, b.each, b.mode,
           b."interval", b.time_zone, b.thresholds, c.start, c.next, greatest(c.start, b.created_at) AS began,
           c.look_back, l."limit", p.parts
      FROM calendar AS c
      JOIN budget AS b USING ("interval", time_zone, anchor_day)
      JOIN organization AS o ON o.id = b.organization_id
     CROSS JOIN LATERAL (SELECT (CASE WHEN b.raised_until > :now THEN b.raised_to ELSE b.amount END
                               * CASE b.unit WHEN 'money' THEN 1000000000 ELSE 1 END)::bigint AS "limit") AS l
     CROSS JOIN LATERAL (SELECT array_agg(x::float8 * {ROUNDED}) AS parts
                           FROM jsonb_array_elements_text(b.thresholds) AS x) AS p
     WHERE b.deleted_at IS NULL AND b.id >= :id AND {_WANTED}
)"""  # noqa: S608  # our own words, here and below
# Their accounts that have used so much, with what was told of each.
_ACCOUNTS = """
SELECT b.*, u.value, u.name AS account, u.used, coalesce(t.part, 0) AS part, coalesce(t.level, 0) AS level,
       coalesce(t.exceeded, false) AS exceeded, t.before_used, t.before_at, t.seen_used, t.seen_at
  FROM live AS b
 CROSS JOIN LATERAL (SELECT value, name, used FROM budget_use
                      WHERE budget_id = b.id AND start = b.start AND used >= {least} OFFSET 0) AS u
  LEFT JOIN budget_told AS t ON t.budget_id = b.id AND t.start = b.start AND t.value = u.value
 WHERE (b.id, b.start, u.value) > (:id, :start, :value)"""
_IN_ORDER = f" ORDER BY b.id, b.start, u.value LIMIT {ACCOUNTS_MAX}"
_REACHED = text(f"""{_LIVE}
{_ACCOUNTS.format(least='b."limit" * least(1, (SELECT min(x) FROM unnest(b.parts) AS x))')}
   AND (u.used >= b."limit" AND (NOT coalesce(t.exceeded, false) OR b."limit" > t.level)
        OR u.used >= b."limit" * (SELECT min(x) FROM unnest(b.parts) AS x
                                   WHERE x > coalesce(t.part, 0) OR x * b."limit" > t.level))
{_IN_ORDER}""")  # noqa: S608
# Those that may be told of at their pace, or whose next sample is due: which they are is decided by the rule.
_RUNNING = text(f"""{_LIVE}
{_ACCOUNTS.format(least='b."limit" / 10')}
   AND u.used < b."limit" AND NOT coalesce(t.foreseen, false)
   AND (t.seen_at IS NULL OR :now - t.seen_at >= b.look_back OR u.used < t.seen_used
        OR (b."limit" - u.used)::float8 * {ROUNDED}
           * extract(epoch FROM :now - coalesce(t.before_at, b.began))::float8
           <= (u.used - coalesce(t.before_used, 0))::float8
           * extract(epoch FROM coalesce(b.next - :now, :ahead))::float8)
{_IN_ORDER}""")
_TOLD = text("""
INSERT INTO budget_told AS t (budget_id, start, value, part, level, exceeded)
SELECT * FROM unnest(cast(:ids AS bigint[]), cast(:starts AS timestamptz[]), cast(:values AS text[]),
                     cast(:parts AS numeric[]), cast(:levels AS numeric[]), cast(:exceeded AS boolean[]))
ON CONFLICT (budget_id, start, value) DO UPDATE
   SET part = greatest(t.part, excluded.part), level = greatest(t.level, excluded.level),
       exceeded = t.exceeded OR excluded.exceeded""")
_FORESEEN = text("""
INSERT INTO budget_told AS t (budget_id, start, value, foreseen, before_used, before_at, seen_used, seen_at)
SELECT * FROM unnest(cast(:ids AS bigint[]), cast(:starts AS timestamptz[]), cast(:values AS text[]),
                     cast(:foreseen AS boolean[]), cast(:before_used AS bigint[]),
                     cast(:before_at AS timestamptz[]), cast(:seen_used AS bigint[]),
                     cast(:seen_at AS timestamptz[]))
ON CONFLICT (budget_id, start, value) DO UPDATE
   SET foreseen = t.foreseen OR excluded.foreseen, before_used = excluded.before_used,
       before_at = excluded.before_at, seen_used = excluded.seen_used, seen_at = excluded.seen_at""")
_FORGET = text("""
DELETE FROM budget_told AS t USING budget AS b
 WHERE b.id = t.budget_id AND (b.deleted_at IS NOT NULL OR EXISTS (
       SELECT FROM unnest(cast(:intervals AS text[]), cast(:zones AS text[]), cast(:anchors AS integer[]),
                          cast(:starts AS timestamptz[])) AS c ("interval", time_zone, anchor_day, start)
        WHERE (c."interval", c.time_zone, c.anchor_day) = (b."interval", b.time_zone, b.anchor_day)
          AND t.start < c.start))""")

Found = Row[Any]


async def reached(engine: AsyncEngine, now: datetime) -> None:
    """Tell what thresholds were reached, and which budgets are used up."""

    async def tell_of(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
        news: list[News] = []
        rows: list[tuple[object, ...]] = []
        for found in accounts:
            told = Told(found.part, found.level, found.exceeded)
            parts = crossed(_thresholds(found), told, found.used, found.limit)
            exceeded = exceeds(told, found.used, found.limit)
            news += (_news(found, "budget.threshold", part) for part in parts)
            if exceeded:
                news.append(_news(found, "budget.exceeded"))
            now_told = told.and_of(parts, exceeded, found.limit)
            rows.append((found.id, found.start, found.value, *now_told))
        names = ("ids", "starts", "values", "parts", "levels", "exceeded")
        await connection.execute(_TOLD, _columns(names, rows))
        await tell(connection, news)

    await _each_page(engine, _REACHED, now, tell_of, over=OVER)


async def foresee(engine: AsyncEngine, now: datetime) -> None:
    """Tell of budgets that are used up before they begin again; remember what paces are counted from."""
    now_ms = ms_of(now)

    async def tell_of(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
        news: list[News] = []
        rows: list[tuple[object, ...]] = []
        for found in accounts:
            window = _window(found)
            known = Samples(_sample(found, "before"), _sample(found, "seen"))
            samples = remembered(known, window, now_ms)
            end_ms = exhausted_ms(window, samples, now_ms)
            if end_ms is not None:
                news.append(_forecast(found, end_ms))
            if end_ms is not None or samples != known:
                stored = (*_stored(samples.before), *_stored(samples.seen))
                rows.append((found.id, found.start, found.value, end_ms is not None, *stored))
        if rows:
            names = (
                "ids", "starts", "values", "foreseen", "before_used", "before_at", "seen_used", "seen_at",
            )  # fmt: skip
            await connection.execute(_FORESEEN, _columns(names, rows))
        await tell(connection, news)

    await _each_page(engine, _RUNNING, now, tell_of)
    async with engine.begin() as connection:
        await connection.execute(_FORGET, await _calendars(connection, now - OVER))


async def _each_page(
    engine: AsyncEngine,
    statement: TextClause,
    now: datetime,
    tell_of: Callable[[AsyncConnection, Sequence[Found]], Awaitable[None]],
    *,
    over: timedelta = timedelta(),
) -> None:
    """Have accounts told of that a statement finds in the windows of now and of so long ago."""
    after: dict[str, object] = {"id": 0, "start": EPOCH, "value": ""}
    while True:
        async with engine.begin() as connection:
            calendars = await _calendars(connection, now, *([now - over] if over else ()))
            accounts = (
                await connection.execute(statement, calendars | after | {"now": now, "ahead": _AHEAD})
            ).all()
            if accounts:
                await tell_of(connection, accounts)
        if len(accounts) < ACCOUNTS_MAX:
            return
        last = accounts[-1]
        after = {"id": last.id, "start": last.start, "value": last.value}


async def _calendars(connection: AsyncConnection, *moments: datetime) -> dict[str, object]:
    """The windows at these moments, for each way in which budgets that are wanted divide time."""
    windows = {}
    for interval, zone, anchor in (await connection.execute(_CALENDARS)).all():
        for moment in moments:
            # A zone that is known no more stops nobody else.
            with suppress(KeyError, ValueError):
                start_ms, next_ms, _ = bounds(interval, zone, anchor, ms_of(moment))
                windows[interval, zone, anchor, start_ms] = next_ms
    rows = [
        (
            interval,
            zone,
            anchor,
            moment_of(start_ms),
            moment_of(next_ms) if next_ms else None,
            LOOK_BACK_MS[interval] * MILLISECOND,
        )
        for (interval, zone, anchor, start_ms), next_ms in windows.items()
    ]
    return _columns(("intervals", "zones", "anchors", "starts", "nexts", "looks_back"), rows)


def _columns(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def _thresholds(found: Found) -> list[Decimal]:
    return [Decimal(str(part)) for part in found.thresholds]


def _window(found: Found) -> RunningWindow:
    return RunningWindow(found.interval, ms_of(found.began), ms_of(found.next), found.limit, found.used)


def _sample(found: Found, name: str) -> Sample | None:
    used, at = getattr(found, f"{name}_used"), getattr(found, f"{name}_at")
    return None if at is None else Sample(used, ms_of(at))


def _stored(sample: Sample | None) -> tuple[object, object]:
    return (None, None) if sample is None else (sample.used, moment_of(sample.at_ms))


def _news(found: Found, event: str, part: Decimal | None = None, **more: object) -> News:
    """An event of an account; `part` is the threshold it is about, if it is about one."""
    named = "" if part is None else f":{part.normalize():f}"
    occasion = f"{event}:{found.id}:{ms_of(found.start)}:{found.value}{named}:{found.limit}"
    shown = [shown_amount(found.unit, amount) for amount in _amounts(found)]
    used, amount, remaining = shown if found.unit == MONEY else _amounts(found)
    data: dict[str, object] = {
        "budget_id": found.id, "budget": found.name, "organization_id": found.organization_id,
        "organization": found.organization, "each": found.each, "account": _account(found),
        "unit": found.unit, "currency": found.currency if found.unit == MONEY else None, "mode": found.mode,
        "used": used, "amount": amount, "remaining": remaining,
        "percent": _number(found.used * 100 // max(1, found.limit) if part is None else part * 100),
        "threshold": None if part is None else _number(part), "interval": found.interval,
        "time_zone": found.time_zone, "window_start": _said(ms_of(found.start)) if found.next else None,
        "resets_at": _said(ms_of(found.next)) if found.next else None,
    }  # fmt: skip
    return News(event, occasion, data | more)


def _forecast(found: Found, end_ms: int) -> News:
    """The moment is told as such, and by the clocks of the budget's zone."""
    local = moment_of(end_ms).astimezone(ZoneInfo(found.time_zone)).isoformat(timespec="seconds")
    return _news(found, "budget.forecast", exhausted_at=_said(end_ms), exhausted_local=local)


def _amounts(found: Found) -> tuple[int, int, int]:
    return found.used, found.limit, max(0, found.limit - found.used)


def _account(found: Found) -> str | None:
    """Whose account it is, where everybody has one; those beyond the maximum share one."""
    if found.each is None:
        return None
    return found.account or (ALL_OTHERS if found.value == OTHERS else "nobody")


def _number(number: Decimal | int) -> int | float:
    return int(number) if number == int(number) else float(number)


def _said(at_ms: int) -> str:
    return rfc3339(moment_of(at_ms), "seconds")
