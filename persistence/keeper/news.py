"""News: events of budgets, of sudden use, of invoices and of upstreams, and the delivery of messages."""

from __future__ import annotations

import json
import pkgutil
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from importlib import import_module
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, TextClause
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.budget_amounts import format_number
from gateway.core.accounts.budgets import ALL_OTHERS, MONEY, OF_GROUP, OTHERS
from gateway.core.accounts.intervals import HOUR, INTERVALS, TOTAL, window_bounds
from gateway.core.accounts.windows import (
    CALENDAR,
    EDITIONS_APART_MS,
    FIRST_USE,
    ROLLING,
    WHOLE_PARTS,
    RollingWindow,
    form_of_length,
    read_length,
)
from gateway.core.alerts.events.event import KEPT_DAYS
from gateway.core.alerts.events.registry import all_events
from gateway.core.alerts.events.webhooks import CONSENT_EVENT, LINK_DAYS, TEST_EVENT
from gateway.core.alerts.messages import (
    HOURLY_OF_ORGANIZATION_MAX,
    HOURLY_OF_WEBHOOK_MAX,
    RETRIES,
    SCHEME,
    Delivery,
    DeliveryOutcome,
    digest_of,
    is_mail,
    recipients_of,
)
from gateway.core.alerts.thresholds import (
    COST_LEAST,
    DAYS,
    FELL_BELOW,
    LOOK_BACK,
    PARTS_LEAST,
    TOTAL_AHEAD_MS,
    AlertState,
    HourlySpend,
    RollingUse,
    RunningWindow,
    Samples,
    UsageSample,
    crossed,
    exceeds,
    exhausted_ms,
    is_sudden,
    remembered,
    rolling_exhausted_ms,
    same_hours,
)
from gateway.core.times import EPOCH, MILLISECOND, TimeZone, moment_of, ms_of, rfc3339
from persistence.keeper import events
from persistence.keeper.occasions import News, Notice, create_messages, data_of, message_query, wanted
from persistence.queries import query

# News of budgets: reached thresholds, each second; forecasts of their end, and intervals that ended, each minute.
#
# The use is read as the flusher stored it, a second or two after the calls, without cost for calls or Redis.
# Reported news is stored next to it, so that a window is reported once, by any keeper and after any restart.
# Only budgets with a webhook that wants these events are read.

EVENTS: Final = ("budget.threshold", "budget.exceeded", "budget.forecast")
# Maximum of accounts read in one transaction, and of different calendars.
ACCOUNTS_MAX: Final = 5_000
CALENDARS_MAX: Final = 10_000
# How long after a window's end its thresholds are still reported.
OVER: Final = timedelta(hours=1)
# A margin for comparisons of floats; exact numbers decide afterwards.
ROUNDED: Final = 1 - 1e-12
_AHEAD: Final = TOTAL_AHEAD_MS * MILLISECOND

_WANTED = wanted(EVENTS, "b.organization_id")
_CALENDARS_OF = f"""
SELECT DISTINCT b."interval", b.time_zone, b.anchor_day FROM budget AS b
 WHERE b.deleted_at IS NULL AND b."window" = '{CALENDAR}' AND {{wanted}} LIMIT {CALENDARS_MAX}"""
_CALENDARS = query(
    "news.calendars",
    "Select the calendars of budgets that webhooks want",
    _CALENDARS_OF.format(wanted=_WANTED),
)
_LENGTHS = query("news.lengths", "Select the lengths of windows of budgets that webhooks want", f"""
SELECT DISTINCT b.length FROM budget AS b
 WHERE b.deleted_at IS NULL AND b."window" = :window AND {_WANTED} LIMIT {CALENDARS_MAX}""")  # fmt: skip
# How far from here another edition of the time zones may begin an interval of a budget `b`.
_APART = f"""CASE WHEN b."interval" IN ('{HOUR}', '{TOTAL}') THEN interval '0' ELSE {EDITIONS_APART_MS} * interval '1 millisecond' END"""
# Windows as parameters: those of the calendar, and those with a length, whose uses count since a moment.
_OF_CALENDAR = """
    SELECT *, NULL::bigint AS lasts_ms
      FROM unnest(cast(:intervals AS text[]), cast(:zones AS text[]), cast(:anchors AS integer[]),
                  cast(:starts AS timestamptz[]), cast(:nexts AS timestamptz[]), cast(:looks_back AS interval[]))
        AS c ("interval", time_zone, anchor_day, since, next, look_back)"""
_OF_LENGTH = """
    SELECT *, NULL::timestamptz AS next
      FROM unnest(cast(:windows AS text[]), cast(:lengths AS text[]), cast(:sinces AS timestamptz[]),
                  cast(:lasting AS bigint[]), cast(:looks_back AS interval[]))
        AS c ("window", length, since, lasts_ms, look_back)"""
# How long after a use its account is looked at each second, or each minute. Whatever else reaches a threshold, such as
# another amount or a use of an older part, is seen by the look at all accounts, each minute.
MOVED_S, MOVED_S_MINUTE = 5, 150
_PART = f"(b.lasts_ms / {WHOLE_PARTS} * interval '1 millisecond')"
# The accounts of rolling windows that moved lately: they have a row in one of the last parts.
_MOVED = f"""
    SELECT b.id AS budget_id, u.value FROM live AS b
     CROSS JOIN LATERAL (SELECT DISTINCT u.value FROM budget_use AS u
                          WHERE u.budget_id = b.id AND u.start >= :now - 3 * {_PART}
                            AND u.moved_at >= now() - make_interval(secs => :moved_s) OFFSET 0) AS u"""
_REPORTED = """
    SELECT t.budget_id, t.value FROM live AS b JOIN budget_told AS t ON t.budget_id = b.id
     WHERE t.start = 'epoch' AND (t.part > 0 OR t.exceeded)"""
# The rows of one account, part by part and some more by a clock that is ahead: `start` is within the key of uses.
_PARTS = f"""generate_series(b.since, b.since + {WHOLE_PARTS + 3} * {_PART}, {_PART}) AS p (start)
     CROSS JOIN LATERAL (SELECT u.* FROM budget_use AS u
                          WHERE (u.budget_id, u.start, u.value) = ({{account}}.budget_id, p.start, {{account}}.value) OFFSET 0) AS u"""
# The parts of rolling windows as sums, whose start is the epoch: of some accounts, or of all.
_SUMS = f""", chosen AS MATERIALIZED ({{accounts}}
), sums AS MATERIALIZED (
    SELECT c.budget_id, timestamptz 'epoch' AS start, c.value, u.*, NULL::numeric AS carried
      FROM chosen AS c JOIN live AS b ON b.id = c.budget_id
     CROSS JOIN LATERAL (SELECT max(u.name) AS name, sum(u.used) AS used,
                                array_agg(floor(extract(epoch FROM u.start) * 1000)::bigint ORDER BY u.start) AS part_starts,
                                array_agg(u.used ORDER BY u.start) AS part_uses
                           FROM {_PARTS.format(account="c")}) AS u
     WHERE u.used IS NOT NULL
)"""
_ALL_SUMS = """, sums AS MATERIALIZED (
    SELECT b.id AS budget_id, timestamptz 'epoch' AS start, u.*, NULL::numeric AS carried FROM live AS b
     CROSS JOIN LATERAL (SELECT u.value, max(u.name) AS name, sum(u.used) AS used FROM budget_use AS u
                          WHERE u.budget_id = b.id AND u.start >= b.since GROUP BY u.value OFFSET 0) AS u
)"""


def _render_amount(amount: str) -> str:
    """Return the SQL of an amount of a budget `b` as events show it: money as a text."""
    return f"CASE b.unit WHEN 'money' THEN to_jsonb(trim_scale({amount} / 1000000000)::text) ELSE to_jsonb({amount}) END"


_FACTOR = "CROSS JOIN LATERAL (SELECT CASE b.unit WHEN 'money' THEN 1000000000 ELSE 1 END AS factor) AS f"
# What an account `u` of a budget `b` has from earlier intervals.
_CARRIED = "coalesce(CASE WHEN b.carry IS NOT NULL THEN u.carried END, 0)"


def _in_force(raise_counts: str) -> str:
    """Return the SQL of the amount of a budget `b` with a factor `f`: the raised one while `raise_counts`."""
    return f"trunc(CASE WHEN {raise_counts} THEN b.raised_to ELSE b.amount END * f.factor)"


def _live(windows: str, keys: str) -> str:
    """Return the SQL of all wanted budgets in their windows, which are joined by these columns.

    The limit of a raised budget is the raised amount.
    """
    return f"""
WITH calendar AS ({windows}
), live AS MATERIALIZED (
    SELECT b.id, b.name, b.organization_id, o.name AS organization, o.currency, b.unit, b.each, b.mode,
           b."interval", b."window", b.length, b.time_zone, b.thresholds, b.created_at, b.carry, c.since, c.next, c.lasts_ms,
           c.look_back, f.factor, l.usual, p.parts, s.starts
      FROM calendar AS c
      JOIN budget AS b USING ({keys})
      JOIN organization AS o ON o.id = b.organization_id
     {_FACTOR}
     CROSS JOIN LATERAL (SELECT {_in_force("b.raised_until > :now")} AS usual) AS l
     CROSS JOIN LATERAL (SELECT array_agg(x::float8 * {ROUNDED}) AS parts
                           FROM jsonb_array_elements_text(b.thresholds) AS x) AS p
     CROSS JOIN LATERAL (SELECT ARRAY[min(u.start), max(u.start)] AS starts FROM budget_use AS u
                          WHERE u.budget_id = b.id AND u.start BETWEEN c.since - {_APART} AND c.since + {_APART}) AS s
     WHERE b.deleted_at IS NULL AND b.id >= :id AND {_WANTED}
), of_group AS MATERIALIZED (
    SELECT o.budget_id, m.member, min(o.amount) AS amount
      FROM budget_override AS o
      JOIN caller_group AS g ON o.value = '{OF_GROUP}' || g.id
     CROSS JOIN jsonb_array_elements_text(g.members) AS m (member)
     WHERE coalesce(o.until > :now, true) GROUP BY o.budget_id, m.member
)"""  # our own words, here and below


def _accounts(uses: str, of_window: str, least: str) -> str:
    """Return the SQL of accounts with at least `least` used, or below it with a limit below the usual one.

    Such a limit is of an override, or of a group with this member, or use from before is taken off it. Each has
    its limit, with what its interval carries, and the news reported of it. Accounts without a limit, or with 0,
    are left out: there is nothing to use up. `uses` are rows of use, `of_window` the condition of those in a
    budget's window.
    """
    of_budget = f"u.budget_id = b.id{of_window}"
    reaches = f"(u.used >= {least} OR coalesce(u.carried, 0) < 0)"
    return f"""
SELECT b.*, w.start, w.ends, w.began, l."limit", u.value, u.name AS account, u.used,
       coalesce(t.part, 0) AS part, coalesce(t.level, 0) AS level,
       coalesce(t.exceeded, false) AS exceeded, t.before_used, t.before_at, t.seen_used, t.seen_at,
       coalesce(t.came_at, '{{}}') AS came_at, t.looked_used
  FROM live AS b
 CROSS JOIN LATERAL (SELECT u.* FROM {uses} AS u WHERE {of_budget} AND {reaches}
                      UNION ALL
                     SELECT u.* FROM budget_override AS o JOIN {uses} AS u ON {of_budget} AND u.value = o.value
                      WHERE o.budget_id = b.id AND o.amount * b.factor < b.usual AND NOT {reaches}
                      UNION ALL
                     SELECT u.* FROM of_group AS o JOIN {uses} AS u ON {of_budget} AND u.name = o.member
                       LEFT JOIN budget_override AS p ON p.budget_id = b.id AND p.value = u.value
                      WHERE o.budget_id = b.id AND o.amount * b.factor < b.usual AND NOT {reaches}
                        AND NOT coalesce(p.amount * b.factor < b.usual, false)
                     OFFSET 0) AS u
 CROSS JOIN LATERAL (SELECT u.start, CASE b."window" WHEN '{FIRST_USE}'
                                          THEN u.start + b.lasts_ms * interval '1 millisecond' ELSE b.next END AS ends,
                            CASE b."window" WHEN '{FIRST_USE}' THEN u.start ELSE greatest(b.since, b.created_at)
                            END AS began) AS w
  LEFT JOIN budget_raise AS r ON r.budget_id = b.id AND r.value = u.value AND r.until > :now
  LEFT JOIN budget_override AS o ON o.budget_id = b.id AND o.value = u.value AND coalesce(o.until > :now, true)
  LEFT JOIN of_group AS g ON g.budget_id = b.id AND g.member = u.name AND o.value IS NULL
 CROSS JOIN LATERAL (SELECT CASE WHEN o.value IS NULL AND g.member IS NULL
                                 THEN greatest(b.usual, trunc(r.amount * b.factor))
                                 ELSE trunc(coalesce(r.amount, o.amount, g.amount) * b.factor) END
                            + {_CARRIED} AS "limit") AS l
  LEFT JOIN budget_told AS t ON t.budget_id = b.id AND t.start = w.start AND t.value = u.value
 WHERE (b.id, w.start, u.value) > (:id, :start, :value) AND l."limit" > 0"""


_IN_ORDER = f" ORDER BY b.id, w.start, u.value LIMIT {ACCOUNTS_MAX}"
_BY_CALENDAR = (
    _live(_OF_CALENDAR, '"interval", time_zone, anchor_day'),
    "budget_use",
    " AND u.start = ANY (b.starts)",
)
_BY_FIRST_USE = _live(_OF_LENGTH, '"window", length'), "budget_use", " AND u.start >= b.since"
_BY_ROLLING = _BY_FIRST_USE[0] + _SUMS.format(accounts=_MOVED), "sums", ""
_BY_ALL_ROLLING = _BY_FIRST_USE[0] + _ALL_SUMS, "sums", ""
_BY_REPORTED = _BY_FIRST_USE[0] + _SUMS.format(accounts=_REPORTED), "sums", ""
_LEAST = "b.usual * least(1, (SELECT min(x) FROM unnest(b.parts) AS x))"
_IS_REACHED = """
   (u.used >= l."limit" AND (NOT coalesce(t.exceeded, false) OR l."limit" > t.level)
        OR u.used >= l."limit" * (SELECT min(x) FROM unnest(b.parts) AS x
                                   WHERE x > coalesce(t.part, 0) OR x * l."limit" > t.level))"""


def _reached(name: str, live: str, uses: str, of_window: str) -> TextClause:
    sql = f"{live}{_accounts(uses, of_window, _LEAST)} AND {_IS_REACHED}{_IN_ORDER}"
    return query(name, "Select accounts of budgets that have reached a threshold", sql)


def _running(name: str, live: str, uses: str, of_window: str) -> TextClause:
    """Return the query of accounts whose pace may give a forecast, or whose next sample is due.

    The rule in the core decides.
    """
    return query(name, "Select accounts of budgets that may run out", f"""{live}
{_accounts(uses, of_window, "b.usual / 10")}
   AND u.used < l."limit" AND NOT coalesce(t.foreseen, false)
   AND (t.seen_at IS NULL OR :now - t.seen_at >= b.look_back OR u.used < t.seen_used
        OR (u.used > coalesce(t.looked_used, 0) AND cardinality(t.came_at) < :parts)
        OR (l."limit" - u.used)::float8 * {ROUNDED}
           * extract(epoch FROM :now - coalesce(t.before_at, w.began))::float8
           <= (u.used - coalesce(t.before_used, 0))::float8
           * extract(epoch FROM coalesce(w.ends - :now, :ahead))::float8)
{_IN_ORDER}""")  # fmt: skip


_REACHED, _REACHED_FIRST_USE, _REACHED_ROLLING, _REACHED_ALL_ROLLING = (
    _reached("news.reached", *_BY_CALENDAR),
    _reached("news.reached_first_use", *_BY_FIRST_USE),
    _reached("news.reached_rolling", *_BY_ROLLING),
    _reached("news.reached_all_rolling", *_BY_ALL_ROLLING),
)
_RUNNING, _RUNNING_FIRST_USE = (
    _running("news.running", *_BY_CALENDAR),
    _running("news.running_first_use", *_BY_FIRST_USE),
)
# A rolling window is foreseen to be used up at most once in its length.
_RUNNING_ROLLING = query("news.running_rolling", "Select accounts of rolling budgets that may run out",
    _BY_ROLLING[0] + _accounts(*_BY_ROLLING[1:], "b.usual / 10").replace("SELECT b.*", "SELECT b.*, u.part_starts, u.part_uses")
    + f"""
   AND u.used < l."limit"
   AND (NOT coalesce(t.foreseen, false) OR t.seen_at <= :now - b.lasts_ms * interval '1 millisecond')
{_IN_ORDER}""")  # fmt: skip
# Reports of rolling windows whose use has fallen far enough below a reported threshold; of each the present use.
_FALLEN = query("news.fallen", "Select reported thresholds of rolling budgets that use has fallen below",
    _BY_REPORTED[0] + _accounts(*_BY_REPORTED[1:], "0") + f"""
   AND (u.used < t.part * l."limit" * {FELL_BELOW}
        OR t.exceeded AND u.used < l."limit" * {FELL_BELOW})
{_IN_ORDER}""")  # fmt: skip
_FALL = query("news.fall", "Store which thresholds of rolling budgets use has fallen below", """
UPDATE budget_told AS t SET part = n.part, level = n.level, exceeded = n.exceeded
  FROM unnest(cast(:ids AS bigint[]), cast(:values AS text[]), cast(:parts AS numeric[]),
              cast(:levels AS numeric[]), cast(:exceeded AS boolean[])) AS n (id, value, part, level, exceeded)
 WHERE (t.budget_id, t.start, t.value) = (n.id, 'epoch', n.value)""")  # fmt: skip
_TOLD = query("news.told", "Store the reported thresholds of budgets", """
INSERT INTO budget_told AS t (budget_id, start, value, part, level, exceeded)
SELECT * FROM unnest(cast(:ids AS bigint[]), cast(:starts AS timestamptz[]), cast(:values AS text[]),
                     cast(:parts AS numeric[]), cast(:levels AS numeric[]), cast(:exceeded AS boolean[]))
ON CONFLICT (budget_id, start, value) DO UPDATE
   SET part = greatest(t.part, excluded.part), level = greatest(t.level, excluded.level),
       exceeded = t.exceeded OR excluded.exceeded""")  # fmt: skip
_FORESEEN = query("news.foreseen", "Store forecasts and samples of budgets", """
INSERT INTO budget_told AS t (budget_id, start, value, foreseen, before_used, before_at, seen_used, seen_at,
                              looked_used, came_at)
SELECT id, start, value, foreseen, before_used, before_at, seen_used, seen_at, looked_used,
       cast(came_at AS timestamptz[])
  FROM unnest(cast(:ids AS bigint[]), cast(:starts AS timestamptz[]), cast(:values AS text[]),
              cast(:foreseen AS boolean[]), cast(:before_used AS numeric[]), cast(:before_at AS timestamptz[]),
              cast(:seen_used AS numeric[]), cast(:seen_at AS timestamptz[]), cast(:looked_used AS numeric[]),
              cast(:came_at AS text[]))
    AS n (id, start, value, foreseen, before_used, before_at, seen_used, seen_at, looked_used, came_at)
ON CONFLICT (budget_id, start, value) DO UPDATE
   SET foreseen = t.foreseen OR excluded.foreseen, before_used = excluded.before_used,
       before_at = excluded.before_at, seen_used = excluded.seen_used, seen_at = excluded.seen_at,
       looked_used = excluded.looked_used, came_at = excluded.came_at""")  # fmt: skip
_FORGET = query("news.forget", "Delete reports of earlier windows of budgets", f"""
DELETE FROM budget_told AS t USING budget AS b
 WHERE b.id = t.budget_id AND (b.deleted_at IS NOT NULL OR EXISTS (
       SELECT FROM unnest(cast(:intervals AS text[]), cast(:zones AS text[]), cast(:anchors AS integer[]),
                          cast(:starts AS timestamptz[])) AS c ("interval", time_zone, anchor_day, start)
        WHERE (c."interval", c.time_zone, c.anchor_day) = (b."interval", b.time_zone, b.anchor_day)
          AND t.start < c.start - {_APART}))""")  # fmt: skip
_FORGET_LENGTHS = query("news.forget_lengths", "Delete reports of windows with a length that are over", f"""
DELETE FROM budget_told AS t USING (
    SELECT b.id, b."window", c.since, c.lasts_ms FROM budget AS b
      JOIN unnest(cast(:windows AS text[]), cast(:lengths AS text[]), cast(:sinces AS timestamptz[]), cast(:lasting AS bigint[]))
        AS c ("window", length, since, lasts_ms) USING ("window", length)) AS b
 WHERE b.id = t.budget_id AND CASE b."window" WHEN '{ROLLING}'
       THEN NOT EXISTS (SELECT FROM {_PARTS.format(account="t")})
       ELSE t.start < b.since END""")  # fmt: skip
# Intervals that have ended, with their use and the amount in force at their end. A budget that was changed since then may
# have had another calendar: its interval is reported if it was used.
RESET: Final = "budget.reset"
# How long after an interval's end its last calls are waited for.
STORED: Final = timedelta(minutes=1)
_WANTED_RESET = wanted((RESET,), "b.organization_id")
_RESET_CALENDARS = query("news.reset_calendars", "Select the calendars of budgets whose resets webhooks want",
    _CALENDARS_OF.format(wanted=_WANTED_RESET))  # fmt: skip
_RESET_DATA = data_of(
    RESET,
    budget_id="b.id", budget="b.name", organization_id="b.organization_id", organization="o.name", unit="b.unit",
    currency="CASE b.unit WHEN 'money' THEN o.currency END", used=_render_amount("coalesce(u.used, 0)"),
    # A raise up to the end itself was in force there.
    amount=_render_amount(f"greatest(0, {_in_force('b.raised_until >= c.start')} + {_CARRIED})"),
    interval='b."interval"', time_zone="b.time_zone", window_start="c.shown_start", resets_at="c.shown_next",
)  # fmt: skip
_RESETS = message_query("resets", "Create messages about intervals of budgets that have ended", f"""
WITH news AS (
    SELECT '{RESET}' AS event, format('{RESET}:%s:%s', b.id, c.shown_start) AS occasion, {_RESET_DATA} AS data
      FROM unnest(cast(:intervals AS text[]), cast(:zones AS text[]), cast(:anchors AS integer[]),
                  cast(:before AS timestamptz[]), cast(:starts AS timestamptz[]), cast(:shown_starts AS text[]),
                  cast(:shown_nexts AS text[]))
        AS c ("interval", time_zone, anchor_day, before, start, shown_start, shown_next)
      JOIN budget AS b USING ("interval", time_zone, anchor_day)
      JOIN organization AS o ON o.id = b.organization_id
     {_FACTOR}
      LEFT JOIN LATERAL (SELECT * FROM budget_use AS u WHERE u.budget_id = b.id AND u.value = ''
                            AND u.start BETWEEN c.before - {_APART} AND c.before + {_APART} ORDER BY u.start DESC LIMIT 1) AS u ON true
     WHERE b.deleted_at IS NULL AND b."window" = '{CALENDAR}' AND b.mode = 'enforce' AND b.each IS NULL
       AND b.created_at < c.start AND (b.updated_at < c.start OR u.used IS NOT NULL) AND {_WANTED_RESET}
)""")  # fmt: skip

Found = Row[Any]
Windows = Callable[[AsyncConnection, datetime], Awaitable[dict[str, object]]]
Report = Callable[[AsyncConnection, Sequence[Found]], Awaitable[None]]


async def reached_budgets(engine: AsyncEngine, now: datetime) -> None:
    """Report reached thresholds and used-up budgets to webhooks; of rolling windows those that were used lately."""
    report = _report_reached(ms_of(now))
    await _each_page(engine, _REACHED, now, report, partial(_calendars, over=OVER))
    await _each_page(engine, _REACHED_FIRST_USE, now, report, partial(_lengths, kind=FIRST_USE, over=OVER))
    await _each_page(engine, _REACHED_ROLLING, now, report, partial(_lengths, kind=ROLLING), moved_s=MOVED_S)


def _report_reached(now_ms: int) -> Report:
    """Return what reports the thresholds that accounts have reached, and stores that they are reported."""

    async def report(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
        """Store news of the thresholds that these accounts have reached."""
        news: list[News] = []
        rows: list[tuple[object, ...]] = []
        for account in accounts:
            state = _state(account)
            used, limit, _ = _amounts(account)
            parts = crossed(_thresholds(account), state, used, limit)
            exceeded = exceeds(state, used, limit)
            news += (_news(account, "budget.threshold", now_ms, part) for part in parts)
            if exceeded:
                news.append(_news(account, "budget.exceeded", now_ms))
            now_state = state.and_of(parts, exceeded, limit)
            rows.append((account.id, account.start, account.value, *now_state))
        names = ("ids", "starts", "values", "parts", "levels", "exceeded")
        await connection.execute(_TOLD, _columns(names, rows))
        await create_messages(connection, news)

    return report


async def foresee_budgets(engine: AsyncEngine, now: datetime) -> None:
    """Report budgets that will be used up before their reset, and store samples for the pace of use."""
    now_ms = ms_of(now)

    async def tell_of(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
        """Store news of the accounts whose budgets will be used up, and their samples."""
        news: list[News] = []
        rows: list[tuple[object, ...]] = []
        for account in accounts:
            window = _window(account)
            known = _samples(account)
            samples = remembered(known, window, now_ms)
            end_ms = exhausted_ms(window, samples, now_ms)
            if end_ms is not None:
                news.append(_forecast(account, end_ms, now_ms))
            if end_ms is not None or samples != known:
                rows.append(_foreseen(account, samples, end_ms))
        await _store_foreseen(connection, news, rows)

    async def tell_of_rolling(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
        """Report rolling windows by the pace of their parts; the time of the report is stored as a sample's."""
        news: list[News] = []
        rows: list[tuple[object, ...]] = []
        for account in accounts:
            used, limit, _ = _amounts(account)
            parts = tuple(zip(account.part_starts, map(int, account.part_uses), strict=True))
            end_ms = rolling_exhausted_ms(RollingUse(account.lasts_ms, limit, parts), now_ms)
            if end_ms is not None:
                news.append(_forecast(account, end_ms, now_ms))
                rows.append(_foreseen(account, Samples(seen=UsageSample(used, now_ms)), end_ms))
        await _store_foreseen(connection, news, rows)

    of_rolling, of_first_use = partial(_lengths, kind=ROLLING), partial(_lengths, kind=FIRST_USE)
    await _each_page(engine, _FALLEN, now, _store_fall, of_rolling)
    await _each_page(engine, _REACHED_ALL_ROLLING, now, _report_reached(now_ms), of_rolling)
    await _each_page(engine, _RUNNING, now, tell_of, _calendars)
    await _each_page(engine, _RUNNING_FIRST_USE, now, tell_of, of_first_use)
    await _each_page(engine, _RUNNING_ROLLING, now, tell_of_rolling, of_rolling, moved_s=MOVED_S_MINUTE)
    async with engine.begin() as connection:
        await connection.execute(_FORGET, await _calendars(connection, now - OVER))
        for kind in (ROLLING, FIRST_USE):
            await connection.execute(_FORGET_LENGTHS, await _lengths(connection, now, kind=kind, over=OVER))


async def tell_resets(engine: AsyncEngine, now: datetime) -> None:
    """Report intervals of budgets that have ended lately, once all use of them is stored."""
    stored = ms_of(now - STORED)
    ended = []
    async with engine.begin() as connection:
        calendars = (await connection.execute(_RESET_CALENDARS)).all()
        for interval in _intervals(calendars, stored):
            if interval.next_ms and interval.start_ms > ms_of(now - STORED - OVER):
                before_ms, _, _ = window_bounds(*interval.calendar, interval.start_ms - 1)
                ended.append((
                    *interval.calendar, moment_of(before_ms), moment_of(interval.start_ms),
                    _render_moment(interval.start_ms), _render_moment(interval.next_ms),
                ))  # fmt: skip
        if ended:
            names = ("intervals", "zones", "anchors", "before", "starts", "shown_starts", "shown_nexts")
            await connection.execute(_RESETS, _columns(names, ended))


async def _store_fall(connection: AsyncConnection, accounts: Sequence[Found]) -> None:
    states = [
        _state(account).after_fall(_thresholds(account), *_amounts(account)[:2]) for account in accounts
    ]
    rows = [(account.id, account.value, *state) for account, state in zip(accounts, states, strict=True)]
    await connection.execute(_FALL, _columns(("ids", "values", "parts", "levels", "exceeded"), rows))


def _forecast(account: Found, end_ms: int, now_ms: int) -> News:
    """Return the event of an end that is foreseen, with its time in UTC and in the budget's time zone."""
    local = moment_of(end_ms).astimezone(TimeZone(account.time_zone)).isoformat(timespec="seconds")
    return _news(
        account, "budget.forecast", now_ms, exhausted_at=_render_moment(end_ms), exhausted_local=local
    )


def _foreseen(account: Found, samples: Samples, end_ms: int | None) -> tuple[object, ...]:
    stored = (*_stored(samples.before), *_stored(samples.seen), samples.looked_used)
    came = ",".join(_render_moment(at_ms) for at_ms in samples.came_ms)
    return (account.id, account.start, account.value, end_ms is not None, *stored, f"{{{came}}}")


async def _store_foreseen(
    connection: AsyncConnection, news: Sequence[News], rows: Sequence[tuple[object, ...]]
) -> None:
    if rows:
        names = (
            "ids", "starts", "values", "foreseen", "before_used", "before_at", "seen_used", "seen_at",
            "looked_used", "came_at",
        )  # fmt: skip
        await connection.execute(_FORESEEN, _columns(names, rows))
    await create_messages(connection, news)


async def _each_page(
    engine: AsyncEngine,
    statement: TextClause,
    now: datetime,
    tell_of: Report,
    windows: Windows,
    *,
    moved_s: int = 0,
) -> None:
    """Call `tell_of` with each page of a budget query's accounts, in these windows."""
    after: dict[str, object] = {"id": 0, "start": EPOCH, "value": ""}
    while True:
        async with engine.begin() as connection:
            known = await windows(connection, now)
            if not any(known.values()):
                return
            facts = {**known, "now": now, "ahead": _AHEAD, "parts": PARTS_LEAST, "moved_s": moved_s}
            accounts = (await connection.execute(statement, facts | after)).all()
            if accounts:
                await tell_of(connection, accounts)
        if len(accounts) < ACCOUNTS_MAX:
            return
        last = accounts[-1]
        after = {"id": last.id, "start": last.start, "value": last.value}


class CalendarInterval(NamedTuple):
    """An interval of a calendar (length, time zone and first day); a next one at 0 never begins."""

    calendar: tuple[str, str, int]
    start_ms: int
    next_ms: int


def _intervals(calendars: Iterable[Any], *moments: int) -> Iterator[CalendarInterval]:
    """Yield the interval of each calendar at each of these moments, in ms."""
    for length, zone, anchor in calendars:
        # A time zone that no longer exists must not stop the others.
        with suppress(KeyError, ValueError):
            for moment in moments:
                start_ms, next_ms, _ = window_bounds(length, zone, anchor, moment)
                yield CalendarInterval((length, zone, anchor), start_ms, next_ms)


async def _calendars(
    connection: AsyncConnection, now: datetime, *, over: timedelta = timedelta()
) -> dict[str, object]:
    """Return, as SQL parameters, the windows of budgets that contain `now`, or the moment `over` before.

    There is one for each calendar (interval, zone and first day) of the budgets that a webhook wants.
    """
    calendars = (await connection.execute(_CALENDARS)).all()
    rows = [
        (
            *interval.calendar,
            moment_of(interval.start_ms),
            moment_of(interval.next_ms) if interval.next_ms else None,
            INTERVALS[interval.calendar[0]].look_back_ms * MILLISECOND,
        )
        for interval in dict.fromkeys(_intervals(calendars, ms_of(now), ms_of(now - over)))
    ]
    return _columns(("intervals", "zones", "anchors", "starts", "nexts", "looks_back"), rows)


async def _lengths(
    connection: AsyncConnection, now: datetime, *, kind: str, over: timedelta = timedelta()
) -> dict[str, object]:
    """Return, as SQL parameters, since when uses count in windows of this kind, of budgets a webhook wants.

    Windows that began at first use are those that were not over at the moment `over` before.
    """
    rows = []
    for (length,) in (await connection.execute(_LENGTHS, {"window": kind})).all():
        length_ms = read_length(length)
        since_ms = form_of_length(kind, length_ms).since(ms_of(now if kind == ROLLING else now - over))
        look_back = length_ms // LOOK_BACK * MILLISECOND
        rows.append((kind, length, moment_of(since_ms), length_ms, look_back))
    return _columns(("windows", "lengths", "sinces", "lasting", "looks_back"), rows)


def _state(account: Found) -> AlertState:
    return AlertState(account.part, account.level, account.exceeded)


def _thresholds(account: Found) -> list[Decimal]:
    return [Decimal(str(part)) for part in account.thresholds]


def _columns(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def _window(account: Found) -> RunningWindow:
    used, limit, _ = _amounts(account)
    return RunningWindow(account.interval or "", ms_of(account.began), ms_of(account.ends), limit, used)


def _samples(account: Found) -> Samples:
    looked = None if account.looked_used is None else int(account.looked_used)
    came_ms = tuple([ms_of(moment) for moment in account.came_at])
    return Samples(_sample(account, "before"), _sample(account, "seen"), came_ms, looked)


def _sample(account: Found, name: str) -> UsageSample | None:
    used, at = getattr(account, f"{name}_used"), getattr(account, f"{name}_at")
    return None if at is None else UsageSample(int(used), ms_of(at))


def _stored(sample: UsageSample | None) -> tuple[object, object]:
    return (None, None) if sample is None else (sample.used, moment_of(sample.at_ms))


def _news(account: Found, event: str, now_ms: int, part: Decimal | None = None, **more: object) -> News:
    """Return an event about an account of a budget; `part` is the threshold that was reached, if any.

    The occasion in a rolling window is that of its running part: use falls only where a part ends.
    """
    begins_ms = ms_of(account.start)
    if account.window == ROLLING:
        begins_ms = RollingWindow(account.lasts_ms).start_of(now_ms)
    named = "" if part is None else f":{part.normalize():f}"
    amounts = used_now, limit, _ = _amounts(account)
    occasion = f"{event}:{account.id}:{begins_ms}:{account.value}{named}:{limit}"
    shown = [format_number(account.unit, amount) for amount in amounts]
    used, amount, remaining = shown if account.unit == MONEY else amounts
    data: dict[str, object] = {
        "budget_id": account.id, "budget": account.name, "organization_id": account.organization_id,
        "organization": account.organization, "each": account.each, "account": _account_name(account),
        "unit": account.unit, "currency": account.currency if account.unit == MONEY else None, "mode": account.mode,
        "used": used, "amount": amount, "remaining": remaining,
        "percent": _number(used_now * 100 // max(1, limit) if part is None else part * 100),
        "threshold": None if part is None else _number(part), "interval": account.interval,
        "window": account.window, "length": account.length, "time_zone": account.time_zone,
        "window_start": _render_moment(ms_of(account.start)) if account.ends else None,
        "resets_at": _render_moment(ms_of(account.ends)) if account.ends else None,
    }  # fmt: skip
    return News(event, occasion, data | more)


def _amounts(account: Found) -> tuple[int, int, int]:
    used, limit = int(account.used), int(account.limit)
    return used, limit, max(0, limit - used)


def _account_name(account: Found) -> str | None:
    """Return the name of an account of a budget that has one for each user, key or other object.

    None if the budget has only one account. Accounts beyond the maximum share one name.
    """
    if account.each is None:
        return None
    return account.account or (ALL_OTHERS if account.value == OTHERS else "nobody")


def _number(number: Decimal | int) -> int | float:
    return int(number) if number == int(number) else float(number)


def _render_moment(at_ms: int) -> str:
    return rfc3339(moment_of(at_ms), "seconds")


# News of sudden use: organizations, tenants and keys whose present hour costs many times the usual.
#
# Reads hourly roll-ups, only for wanted organizations and hours above a minimal cost.

EVENT: Final = "usage.sudden"
# Maximum of subjects checked in a minute, those with the highest cost.
SUBJECTS_MAX: Final = 1_000

_SUBJECTS = """GROUPING SETS (
    (organization_id, currency{by}), (organization_id, tenant_id, currency{by}),
    (organization_id, tenant_id, api_key_id, currency{by}))"""
# The subjects with enough cost in this hour, and the earlier costs of their organizations, read once.
_HOURS = query("news.hours", "Select organizations, tenants and keys with a high cost in this hour", f"""
WITH running AS MATERIALIZED (
    SELECT organization_id, tenant_id, api_key_id, currency, sum(cost) AS cost FROM usage_rollup AS u
     WHERE span = 'hour' AND start = :hour AND {wanted((EVENT,), "u.organization_id")}
     GROUP BY {_SUBJECTS.format(by="")}
    HAVING sum(cost) >= {COST_LEAST} ORDER BY cost DESC LIMIT {SUBJECTS_MAX}
), looked_at AS MATERIALIZED (
    SELECT DISTINCT organization_id FROM running
), same_hours AS MATERIALIZED (
    SELECT organization_id, coalesce(tenant_id, -1) AS tenant_id,
           coalesce(api_key_id, -1) AS api_key_id, currency, max(cost) AS cost
      FROM (SELECT organization_id, tenant_id, api_key_id, currency, sum(cost) AS cost FROM usage_rollup
              JOIN looked_at USING (organization_id)
             WHERE span = 'hour' AND start = ANY(cast(:same AS timestamptz[]))
             GROUP BY {_SUBJECTS.format(by=", start")}) AS each_hour
     GROUP BY 1, 2, 3, 4
), days AS MATERIALIZED (
    SELECT organization_id, currency, sum(cost) / {DAYS} AS cost FROM usage_rollup
      JOIN looked_at USING (organization_id)
     WHERE span = 'team_day' AND start >= :since AND start < :today GROUP BY 1, 2
)
SELECT r.*, o.name AS organization, t.name AS tenant, k.name AS api_key,
       coalesce(k.created_at, t.created_at, o.created_at) AS known_since,
       coalesce(h.cost, 0) AS usual, coalesce(d.cost, 0) AS average_day
  FROM running AS r
  JOIN organization AS o ON o.id = r.organization_id
  LEFT JOIN tenant AS t ON t.id = r.tenant_id
  LEFT JOIN api_key AS k ON k.id = r.api_key_id
  LEFT JOIN same_hours AS h ON h.organization_id = r.organization_id AND h.currency = r.currency
   AND h.tenant_id = coalesce(r.tenant_id, -1) AND h.api_key_id = coalesce(r.api_key_id, -1)
  LEFT JOIN days AS d ON d.organization_id = r.organization_id AND d.currency = r.currency""")  # fmt: skip


async def look_for_sudden_use(engine: AsyncEngine, now: datetime) -> None:
    """Report organizations, tenants and keys whose cost in the current hour is suddenly high."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    today = hour.replace(hour=0)
    sought = {
        "hour": hour, "same": same_hours(hour), "today": today, "since": today - timedelta(days=DAYS),
    }  # fmt: skip
    async with engine.begin() as connection:
        subjects = (await connection.execute(_HOURS, sought)).all()
        news = [_news_of_sudden_use(subject, hour) for subject in subjects if is_sudden(_hour(subject), now)]
        await create_messages(connection, news)


def _hour(subject: Found) -> HourlySpend:
    return HourlySpend(int(subject.cost), int(subject.usual), int(subject.average_day), subject.known_since)


def _news_of_sudden_use(row: Found, hour: datetime) -> News:
    """Return the news that an account's cost in an hour was far above its usual cost."""
    scope = "tenant" if row.tenant_id is not None else "organization"
    if row.api_key_id is not None:
        scope = "api_key"
    subject = getattr(row, f"{scope}_id")
    return News(
        EVENT,
        f"sudden:{scope}:{subject}:{row.currency}:{hour.isoformat()}",
        {
            "scope": scope, "organization_id": row.organization_id, "organization": row.organization,
            "tenant_id": row.tenant_id, "tenant": row.tenant, "api_key_id": row.api_key_id,
            "api_key": row.api_key, "hour": rfc3339(hour),
            "cost": format_number(MONEY, int(row.cost)), "usual": format_number(MONEY, int(row.usual)),
            "currency": row.currency,
        },
    )  # fmt: skip


# News for webhooks: present states are read from the tables each second, forecasts each minute.

_INVOICE_DATA = data_of(
    "invoice.finalized",
    invoice_id="i.id", organization_id="i.organization_id", organization="o.name", kind="i.kind",
    number="i.number", currency="i.currency", total_amount="trim_scale(i.total_amount)::text",
)  # fmt: skip
_INVOICE = message_query(
    "invoices",
    "Create messages about final invoices",
    f"""
WITH news AS (
    SELECT 'invoice.finalized' AS event, 'invoice:' || i.id AS occasion, {_INVOICE_DATA} AS data
      FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id WHERE i.id = ANY(:ids)
)""",
)
_PAYMENT_STATUS_DATA = data_of(
    "invoice.paid", "invoice.overdue", "invoice.uncollectible",
    invoice_id="i.id", organization_id="i.organization_id", organization="o.name", number="i.number",
    currency="i.currency", total_amount="trim_scale(i.total_amount)::text",
    payment_status="i.payment_status", due_date="i.due_date",
)  # fmt: skip
# An invoice that is open again is no news.
_PAYMENT_STATUS = message_query(
    "payment_status",
    "Create messages about invoices that became paid, overdue or given up",
    f"""
WITH news AS (
    SELECT 'invoice.' || i.payment_status AS event,
           format('invoice:%s:%s', i.id, gen_random_uuid()) AS occasion, {_PAYMENT_STATUS_DATA} AS data
      FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id
     WHERE i.id = ANY(:ids) AND i.payment_status <> 'open'
)""",
)
LISTENING = "SELECT FROM webhook WHERE enabled AND deleted_at IS NULL"
_NOBODY = query("news.nobody", "Select whether there is no webhook",
    f"SELECT NOT EXISTS ({LISTENING})")  # fmt: skip
_PRUNE = query("news.prune", "Delete old messages of webhooks", """
DELETE FROM webhook_delivery
 WHERE state <> 'pending' AND created_at < now() - make_interval(days =>
       coalesce((cast(:kept_days AS jsonb)->>event)::integer, :days))""")  # fmt: skip
_UNANSWERED = query("news.unanswered", "Delete consents to mail that were never given", """
DELETE FROM mail_consent
 WHERE given_at IS NULL AND coalesce(expires_at, asked_at + make_interval(days => :days)) < now()""")  # fmt: skip


def tell_invoices(connection: Connection, invoice_ids: Sequence[int]) -> None:
    connection.execute(_INVOICE, {"ids": list(invoice_ids)})


def tell_payment_status(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Create messages about invoices that became paid, overdue or given up, in the same transaction."""
    connection.execute(_PAYMENT_STATUS, {"ids": list(invoice_ids)})


@cache
def _notices() -> Sequence[Notice]:
    """Return the notices of the modules in `persistence/keeper/events/`."""
    modules = pkgutil.iter_modules(events.__path__)
    return [import_module(f"{events.__name__}.{module.name}").NOTICE for module in modules]


@cache
def _kept_days() -> str:
    """Return how long messages are stored, as JSON: days by event."""
    return json.dumps({event.name: event.kept_days for event in all_events().values()})


class EmptyUpstreamAccount(NamedTuple):
    """An account of an upstream that is out of money, with the status that said so, since Unix ms `since_ms`."""

    digest: str
    upstream: str
    status: int
    since_ms: int

    @property
    def occasion(self) -> str:
        return f"upstream.empty:{self.digest}:{self.since_ms}"


class Notices:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def notice(self, since: datetime, now: datetime) -> None:
        """Create the webhook messages for events since `since`, and for conditions that hold at `now`.

        A condition is, for example, that a plan ends soon.
        """
        async with self._engine.begin() as connection:
            if (await connection.execute(_NOBODY)).scalar_one():
                return
            for notice in _notices():
                await connection.execute(notice.statement, notice.parameters(since, now))
        await reached_budgets(self._engine, now)

    async def forget(self) -> None:
        """Delete old messages, also of deleted webhooks, and consents that were never given."""
        async with self._engine.begin() as connection:
            await connection.execute(_PRUNE, {"days": KEPT_DAYS, "kept_days": _kept_days()})
            await connection.execute(_UNANSWERED, {"days": KEPT_DAYS})

    async def tell_empty(self, accounts: Iterable[EmptyUpstreamAccount]) -> None:
        """Report empty accounts of upstreams, each once until it answers well."""
        async with self._engine.begin() as connection:
            await create_messages(connection, [
                News(
                    "upstream.empty", account.occasion,
                    {
                        "upstream": account.upstream, "status": account.status,
                        "since": rfc3339(moment_of(account.since_ms)),
                    },
                )
                for account in accounts
            ])  # fmt: skip

    async def foresee(self, now: datetime) -> None:
        await foresee_budgets(self._engine, now)
        await tell_resets(self._engine, now)
        await look_for_sudden_use(self._engine, now)


# Pending messages to webhooks: their delivery, and the outcome.
#
# An attempt is counted before it is made: a sender that dies counts as no answer. An organization's mail is
# limited per hour, and goes only to addresses that agreed or that staff entered.

LEASE_S = 60

DELIVERIES_DUE = """
SELECT FROM webhook AS w CROSS JOIN LATERAL (
    SELECT FROM webhook_delivery WHERE webhook_id = w.id AND state = 'pending'
        AND next_attempt_at <= now() + make_interval(secs => :ahead_s) LIMIT 1) AS d"""
# Some of each webhook, in random order: no slow or busy webhook is always first. Materialized: otherwise
# PostgreSQL may search due ones again for each joined row, and find more each time.
_TAKE = query("news.take", "Claim due messages of webhooks", """
WITH busy AS (
    SELECT organization_id FROM webhook WHERE hour = date_trunc('hour', now())
     GROUP BY organization_id HAVING sum(hourly) > :of_organization
), due AS MATERIALIZED (
    SELECT due.id
      FROM (SELECT id FROM webhook WHERE id <> ALL(cast(:busy AS bigint[])) AND (organization_id IS NULL
               OR url NOT ILIKE 'mailto:%' OR NOT (hour = date_trunc('hour', now()) AND hourly > :of_webhook
                   OR organization_id IN (SELECT organization_id FROM busy)) IS TRUE)
             ORDER BY random()) AS w
     CROSS JOIN LATERAL (SELECT id FROM webhook_delivery
            WHERE webhook_id = w.id AND state = 'pending' AND next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT :each FOR UPDATE SKIP LOCKED) AS due
     LIMIT :n)
UPDATE webhook_delivery AS d
   SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
  FROM due, webhook AS w
 WHERE d.id = due.id AND w.id = d.webhook_id
RETURNING d.id, d.event, d.payload, d.created_at, d.attempts, d.webhook_id, w.url, w.secret,
          w.ours, w.organization_id, w.enabled AND w.deleted_at IS NULL AS wanted""")  # fmt: skip
_DONE = query("news.done", "Store the outcome of a message", """
UPDATE webhook_delivery
   SET state = :state, response_status = :status, error = :error,
       delivered_at = CASE WHEN :state = 'delivered' THEN now() END,
       next_attempt_at = now() + make_interval(secs => :retry)
 WHERE id = :id""")  # fmt: skip
_COUNT = query("news.count", "Count the mails of a webhook in this hour", """
UPDATE webhook SET hour = date_trunc('hour', now()),
       hourly = CASE WHEN hour = date_trunc('hour', now()) THEN hourly ELSE 0 END + :more
 WHERE id = :id""")  # fmt: skip
_AGREED = query("news.agreed", "Select the mail addresses that agreed", """
SELECT organization_id, address FROM mail_consent
 WHERE given_at IS NOT NULL AND organization_id = ANY(cast(:whose AS bigint[]))""")  # fmt: skip
_LINK = query("news.link", "Store the link by which a mail address agrees", """
UPDATE mail_consent AS c SET digest = :digest, expires_at = now() + make_interval(days => :days)
  FROM organization AS o
 WHERE o.id = c.organization_id AND c.organization_id = :whose AND c.address = :address AND given_at IS NULL
RETURNING o.name""")  # fmt: skip
NOBODY_AGREED = "none of its addresses has agreed to get mail"


class Deliveries:
    """Pending messages in PostgreSQL.

    `link` returns the URL for a consent token; `links` are functions, by event, that return a message's link.
    """

    def __init__(
        self, engine: AsyncEngine, link: Callable[[str], str] = "/mail/{}".format,
        links: Mapping[str, Callable[[Delivery], str]] | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._link, self._links = engine, link, links or {}

    async def claim_due(self, count: int, each: int, busy: Collection[int] = ()) -> Sequence[Delivery]:
        """Claim up to `count` due messages for this sender, and count an attempt of each.

        Messages of `busy` webhooks are skipped; of each other webhook at most `each` are claimed.
        """
        sought = {
            "n": count, "each": each, "busy": list(busy), "lease": LEASE_S,
            "of_webhook": HOURLY_OF_WEBHOOK_MAX, "of_organization": HOURLY_OF_ORGANIZATION_MAX,
        }  # fmt: skip
        taken: list[Delivery] = []
        async with self._engine.begin() as connection:
            rows = (await connection.execute(_TAKE, sought)).all()
            agreed = await self._agreed(connection, rows)
            for row in rows:
                delivery = await self._prepare_delivery(connection, row, agreed)
                if isinstance(delivery, str):
                    await connection.execute(_DONE, _result(row.id, DeliveryOutcome(None, delivery), None))
                else:
                    taken.append(delivery)
            sent = Counter(row.webhook_id for row in rows if _counts(row))
            for webhook_id, more in sorted(sent.items()):
                await connection.execute(_COUNT, {"id": webhook_id, "more": more})
        return taken

    async def _agreed(self, connection: AsyncConnection, rows: Sequence[Row[Any]]) -> set[tuple[int, str]]:
        whose = {row.organization_id for row in rows if _asks(row)}
        if not whose:
            return set()
        return {(owner, address) for owner, address in await connection.execute(_AGREED, {"whose": [*whose]})}

    async def _prepare_delivery(
        self, connection: AsyncConnection, row: Row[Any], agreed: set[tuple[int, str]]
    ) -> Delivery | str:
        """Return a message ready for sending, or the reason why it must not be sent."""
        if not row.wanted:
            return "the webhook is gone"
        url, data = row.url, row.payload
        message = Delivery(
            row.id, url, row.secret, row.event, data, row.created_at, row.attempts, row.webhook_id
        )
        if row.event in self._links:
            data = {**data, "link": self._links[row.event](message)}
        if row.event == CONSENT_EVENT:
            token = secrets.token_urlsafe(32)
            sought = {"digest": digest_of(token), "days": LINK_DAYS, "whose": row.organization_id}
            asked = await connection.scalar(_LINK, {**sought, "address": data["address"]})
            if asked is None:
                return "nobody is asked any more"
            url, data = SCHEME + data["address"], {**data, "organization": asked, "link": self._link(token)}
        elif _asks(row):
            to = [
                address for address in recipients_of(url) if (row.organization_id, address.lower()) in agreed
            ]
            if not to:
                return NOBODY_AGREED
            url = SCHEME + ",".join(to)
        return replace(message, url=url, data=data)

    async def done(self, delivery: Delivery, outcome: DeliveryOutcome) -> None:
        retry_s = None if outcome.delivered else RETRIES.after_s(delivery.attempts)
        async with self._engine.begin() as connection:
            await connection.execute(_DONE, _result(delivery.id, outcome, retry_s))


def _asks(row: Row[Any]) -> bool:
    """Return whether a message may be mailed only to addresses that consented; staff's mails need none."""
    return is_mail(row.url) and not row.ours and row.organization_id is not None


def _counts(row: Row[Any]) -> bool:
    """Return whether sending a message counts towards the hourly maximum of mails.

    The first attempt of a message that a person requested was counted at the request.
    """
    asked_for = row.event in {TEST_EVENT, CONSENT_EVENT}
    return is_mail(row.url) and row.organization_id is not None and not (asked_for and row.attempts == 1)


def _result(delivery_id: int, outcome: DeliveryOutcome, retry_s: float | None) -> dict[str, Any]:
    """Return the values to store for an attempt of a delivery."""
    undelivered = "failed" if retry_s is None else "pending"
    return {
        "id": delivery_id,
        "state": "delivered" if outcome.delivered else undelivered,
        "status": outcome.status,
        "error": outcome.error,
        "retry": retry_s or 0.0,
    }
