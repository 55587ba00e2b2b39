"""Sums of a batch of fresh entries: the new state of each account, and use by day.

Pure. Only entries that become rows are passed in, so nothing is counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from psycopg import Connection

from gateway.core.accounts.outbox import (
    CACHE_WRITE,
    CACHE_WRITE_1H,
    CallFacts,
    EventFlag,
    EventKind,
    OutboxEntry,
    WindowKey,
    attributed,
    end_limit_of,
    money_moved,
    sign_of,
    stream_place,
)
from gateway.core.accounts.runs import is_run, read_news
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.usage import (
    DIMENSIONS,
    NO_PROJECT,
    OTHER,
    OTHER_PROJECTS,
    SPANS,
    TAG_SPANS,
    UNTAGGED,
)
from gateway.core.accounts.usage_sums import SUMS, read_sums
from gateway.core.model import INTEGER_MAX
from gateway.core.times import DAY_MS, HOUR_MS
from persistence.ledger import statements
from persistence.ledger.guard import CREDITS, TIME_MS_MAX, TOKENS, USAGE, Placed, event_of
from persistence.ledger.rows import (
    amounts_of,
    counts_of,
    facts_of,
    metadata_in,
    portions,
    stored_text,
    used_at,
)
from persistence.ledger.statements import SUM_MAX, added, bounded, columns_of

# Sums of calls by hour and by every dimension of reports.
#
# Pure. Each call is in one row of its hour; a correction subtracts the call's old row and adds the new one.
# PostgreSQL sums hours into longer spans (`usage_spans.ROLL_UP_CALLS`).

# Organization, start in ms, tenant, key, user (0: none), project (-1: none), service, model, currency, and tags
# as JSON.
UsageBucket = tuple[int, int, int, int, int, int, int, str, str, str]
Rollup = dict[UsageBucket, list[int]]


def add_call(hours: Rollup, event: OutboxEntry, facts: CallFacts, user_id: int | None) -> None:
    _, project, _ = attributed(event.attribution)
    tokens, credits_, units = amounts_of(event, facts)
    cost, counts, at_ms = facts.cost, counts_of(facts), used_at(event, facts)
    bucket = (
        event.organization_id, at_ms - at_ms % HOUR_MS, event.tenant_id, event.key_id,
        user_id or 0, int(project) if project else NO_PROJECT, event.service_id,
        stored_text(facts.model), stored_text(facts.currency), tags_json(facts.tags),
    )  # fmt: skip
    is_unpriced = bool(facts.unpriced) or (cost is None and tokens > 0)
    more = read_sums([
        *counts, counts[CACHE_WRITE] + counts[CACHE_WRITE_1H], tokens, credits_, units, bounded(cost or 0),
        +facts.estimated, +is_unpriced, 1, 0, 0 if facts.step is None else bounded(facts.step[3] or 0),
    ])  # fmt: skip
    sums = hours.get(bucket)
    if sums is None:
        hours[bucket] = list(more)
    else:
        for at, count in enumerate(more):
            sums[at] += count


def tags_json(tags: Mapping[str, str] | Tags) -> str:
    return json.dumps(dict(tags)) if tags else "{}"


def usage_rows_of(hours: Rollup) -> list[tuple[object, ...]]:
    """Return rows of hourly use, with each sum limited to the range of its column."""
    return [(*bucket, *map(bounded, sums)) for bucket, sums in hours.items()]


def moved_usage(before: Sequence[Any], after: Sequence[Any], hours: Rollup) -> None:
    """Subtract the row `before` of a call from its hour in `hours`, and add the row `after`.

    Both have the columns of `statements.CALL_SUMS`.
    """
    for row, sign in ((before, -1), (after, 1)):
        bucket, counts = tuple(row[: len(DIMENSIONS)]), row[len(DIMENSIONS) : len(DIMENSIONS) + len(SUMS)]
        sums = hours.setdefault(bucket, [0] * len(SUMS))
        for at, count in enumerate(counts):
            sums[at] += sign * int(count)


def moved_columns(calls: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> tuple[list[Any], ...]:
    """Return the SQL parameters that move changed calls in the roll-ups, given as rows before and after."""
    hours: Rollup = {}
    for before, after in calls:
        moved_usage(before, after, hours)
    return tuple(columns_of(usage_rows_of(hours)))


# The SQL that adds a batch of hours to the roll-ups of every span.
#
# There is only one statement, so that all writers limit names and reach every span.

# The maximum of models, of projects, and of values of each tag that are counted by name for an organization's
# day.
MODELS_A_DAY_MAX = 500
PROJECTS_A_DAY_MAX = 5_000
TAG_VALUES_A_DAY_MAX = 5_000
_ARRAYS = {"model": "text", "currency": "text", "tags": "jsonb"}
# The start of a span that contains an hour, for spans that PostgreSQL's `date_trunc` does not know.
_STARTS = {
    "half_week": "greatest(date_trunc('week', start, 'UTC'),"
    " date_trunc('week', start - interval '72 hours', 'UTC') + interval '72 hours')"
}


def start_of(unit: str) -> str:
    """Return SQL for the start, in UTC, of the unit (such as week) that contains the column `start`."""
    return _STARTS.get(unit, f"date_trunc('{unit}', start, 'UTC')")


def _of_span(span: str, whole: Sequence[str] = (), tags: str = "") -> str:
    """Return SQL for the sums of a batch's hours by a longer span; with `tags`, of calls that have some."""
    none = {name: f"{NO_PROJECT if name == 'project_id' else 0} AS {name}" for name in whole}
    own = {name: none.get(name, name) for name in UNTAGGED}
    own["start"] = f"{start_of(SPANS[span].unit)} AS start"
    groups = [str(2 + at) for at, name in enumerate(UNTAGGED) if name not in whole]
    sums = (f"least(greatest(sum({name}), -{SUM_MAX}), {SUM_MAX})::bigint" for name in SUMS)
    return (
        f"SELECT '{span}', {', '.join(own.values())}, {tags} {', '.join(sums)} FROM hours"
        f" {_TAGGED if tags else ''} GROUP BY {', '.join([*groups, *(['tags'] if tags else [])])}"
    )


def _added(table: str, key: Sequence[str], columns: Sequence[str], sums: Iterable[str]) -> str:
    """Return SQL that adds `sums` to the roll-ups of a table, in the order in which writers lock rows."""
    return f"""
INSERT INTO {table} AS u (span, {", ".join(columns)}, {", ".join(SUMS)})
{" UNION ALL ".join(sums)}
 ORDER BY {", ".join(str(1 + at) for at in range(1 + len(key)))}
ON CONFLICT (span, {", ".join(key)}) DO UPDATE SET
       {", ".join(f"{name} = {added(name)}" for name in SUMS)}"""


# Adds `hours` to every span. Tags of a call are together too long for a key: their hash stands there.
ADD_HOURS = _added(
    "usage_rollup", UNTAGGED, UNTAGGED, [_of_span(span, level.whole) for span, level in SPANS.items()]
)
_TAGGED = "WHERE tags <> '{}'"
_HASH = "sha256(convert_to(tags::text, 'UTF8')), tags,"
ADD_TAGS = _added(
    "usage_tag", (*UNTAGGED, "tags_hash"), (*UNTAGGED, "tags_hash", "tags"),
    [_of_span(span, tags=_HASH) for span in TAG_SPANS],
)  # fmt: skip
_NAMED = "organization_id, day, kind, name"
_KEPT = "(organization_id, day, {}, {}) IN (SELECT * FROM kept)"
_MODEL, _PROJECT = _KEPT.format("'model'", "model"), _KEPT.format("'project'", "project_id::text")
_TAG = _KEPT.format("'tag:' || t.key", "t.value")
_SHOWN = {
    "model": f"CASE WHEN model = '' OR {_MODEL} THEN model ELSE '{OTHER}' END",
    "project_id": f"CASE WHEN project_id < 0 OR {_PROJECT} THEN project_id ELSE {OTHER_PROJECTS} END",
    "tags": f"""CASE WHEN tags = '{{}}' THEN tags ELSE (
       SELECT jsonb_object_agg(t.key, CASE WHEN {_TAG} THEN t.value ELSE '{OTHER}' END)
         FROM jsonb_each_text(tags) AS t) END""",
}
# Use without a price has the organization's currency.
_GIVEN = {
    "start": "to_timestamp(start / 1000) AS start",
    "currency": "coalesce(nullif(n.currency, ''), o.currency) AS currency",
}
# Callers may send any model and project names: only the first ones of an organization's day are counted by
# name. The set never shrinks or changes, so a call is subtracted from the row that it was added to.
ROLL_UP_CALLS = f"""
WITH given AS MATERIALIZED (
SELECT {", ".join(_GIVEN.get(each, f"n.{each}") for each in DIMENSIONS)},
       {", ".join(SUMS)}, date '1970-01-01' + (start / {DAY_MS})::integer AS day
  FROM unnest({", ".join(f"%s::{_ARRAYS.get(each, 'bigint')}[]" for each in (*DIMENSIONS, *SUMS))})
       AS n ({", ".join(DIMENSIONS)}, {", ".join(SUMS)}) JOIN organization AS o ON o.id = n.organization_id
), named AS MATERIALIZED (
SELECT DISTINCT organization_id, day, kind, name, most FROM given, LATERAL (
       VALUES ('model', model, {MODELS_A_DAY_MAX}), ('project', project_id::text, {PROJECTS_A_DAY_MAX})
       UNION ALL SELECT 'tag:' || t.key, t.value, {TAG_VALUES_A_DAY_MAX} FROM jsonb_each_text(tags) AS t
       ) AS n (kind, name, most) WHERE name <> '' AND (kind, project_id) NOT IN (('project', {NO_PROJECT}))
), fresh AS MATERIALIZED (
SELECT n.*, row_number() OVER (PARTITION BY organization_id, day, kind ORDER BY name) AS place FROM named AS n
 WHERE NOT EXISTS (SELECT FROM usage_name AS u WHERE (u.organization_id, u.day, u.kind, u.name)
                                                   = (n.organization_id, n.day, n.kind, n.name))
), filled AS MATERIALIZED (
SELECT organization_id, day, kind, count(*) AS count FROM usage_name
 WHERE (organization_id, day, kind) IN (SELECT organization_id, day, kind FROM fresh) GROUP BY 1, 2, 3
), taken AS (
INSERT INTO usage_name ({_NAMED})
SELECT {_NAMED} FROM fresh LEFT JOIN filled USING (organization_id, day, kind)
 WHERE place + coalesce(count, 0) <= most ORDER BY {_NAMED}
ON CONFLICT ({_NAMED}) DO UPDATE SET name = excluded.name RETURNING {_NAMED}
), kept AS MATERIALIZED (
SELECT {_NAMED} FROM named JOIN usage_name USING ({_NAMED}) UNION ALL SELECT {_NAMED} FROM taken
), hours AS MATERIALIZED (
SELECT {", ".join(f"{_SHOWN[each]} AS {each}" if each in _SHOWN else each for each in DIMENSIONS)},
       {", ".join(SUMS)} FROM given
), tagged AS (
{ADD_TAGS})
{ADD_HOURS}"""


# Use of budgets by entries, summed by window.
#
# An entry lists the windows that it moved in the counters, and by how much: the same amounts are added here,
# once. Rows with a seq of their account are stored once, and their use with them. An entry without one counts
# if it is newer than all stored entries of its partition. A window counts as far as the counters do.

# The leading columns of a row that a run's use needs: the run's own row has its owner.
_OF_RUNS = 7

# Windows, and the entry that moves them.
Move = tuple[tuple[WindowKey, ...], OutboxEntry]


def store_runs(connection: Connection[Any], noted: Sequence[Placed]) -> None:
    """Store runs that were opened or ended; entries with unreadable metadata are skipped."""
    rows: dict[int, tuple[object, ...]] = {}
    for event in map(event_of, noted):
        said = read_news(event.metadata) if event.kind == EventKind.RUN else None
        if said is not None:
            known = rows.get(event.amount)
            ended = event.at_ms if said.ended else 0
            rows[event.amount] = (
                event.amount, event.organization_id, event.tenant_id, said.id, said.parent_id, said.unit,
                said.amount, said.calls_max, said.created_ms or event.at_ms, event.next_reset_ms,
                ended if known is None else known[-1] or ended,
            )  # fmt: skip
    if rows:
        connection.execute(statements.STORE_RUNS, columns_of([rows[one] for one in sorted(rows)]))


def move_budget_uses(connection: Connection[Any], fresh: Sequence[Placed], noted: Sequence[Placed]) -> None:
    """Add the use of new entries to budgets; `noted` ones move no account and may be stored already."""
    told = _newer(connection, [placed for placed in noted if event_of(placed).budgets])
    carries = {
        window: event_of(placed) for placed in told if _carries(placed) for window in event_of(placed).budgets
    }
    if carries:  # the last entry of a window counts
        amounts = [
            (*row[:_OF_RUNS], *_end_limit(event))
            for window, event in carries.items()
            for row in _rows_of([((window,), event)])
        ]
        if amounts:
            connection.execute(statements.CARRY_BUDGETS, statements.columns_of(amounts))
    for sets_back, moves in _turns([*fresh, *(placed for placed in told if not _carries(placed))]):
        rows, of_runs = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        for row in _rows_of(moves):
            if is_run(row[0]):
                of_runs.append(row[:_OF_RUNS])
            else:
                rows.append(row)
        if rows:
            statement = statements.RESET_BUDGETS if sets_back else statements.MOVE_BUDGETS
            connection.execute(statement, statements.columns_of(rows))
        if of_runs:
            connection.execute(statements.MOVE_RUNS, statements.columns_of(of_runs))


def _turns(placed: Sequence[Placed]) -> Iterator[tuple[bool, list[Move]]]:
    """Yield movements of budgets' windows in an order that counts all of them: use, a reset, later use.

    The flag says whether a group consists of resets. Calls of a group add up, even beyond the maximum of a
    sum; calls after a reset must follow it, or a full sum could not count them.
    """
    resets = {window for each in placed if _sets_back(event := event_of(each)) for window in event.budgets}
    turns: dict[int, list[Move]] = {}
    turn_of: dict[WindowKey, int] = {}
    for each in sorted(placed, key=_place) if resets else placed:
        event = event_of(each)
        if resets.isdisjoint(event.budgets):
            turns.setdefault(0, []).append((event.budgets, event))
            continue
        for window in event.budgets:
            turn = turn_of.get(window, 0)
            turn_of[window] = turn = turn + (turn % 2 != _sets_back(event))
            turns.setdefault(turn, []).append(((window,), event))
    return ((turn % 2 == 1, turns[turn]) for turn in sorted(turns))


def _end_limit(event: OutboxEntry) -> tuple[int | None, int | None, float | None]:
    """Return the limit that an entry tells, if it is of money and if it is not, and when amounts had changed."""
    of_money, of_others = (end_limit_of(event, is_money=is_money) for is_money in (True, False))
    if of_money is None or of_others is None:
        return None, None, None
    return of_money.amount, of_others.amount, of_money.changed


def _carries(placed: Placed) -> bool:
    return event_of(placed).kind == EventKind.CARRY


def _sets_back(event: OutboxEntry) -> bool:
    return event.kind == EventKind.BUDGET


def _place(placed: Placed) -> tuple[int, Any]:
    partition, (entry_id, _, _) = placed
    return partition, stream_place(entry_id)


def _rows_of(moves: Iterable[Move]) -> list[tuple[Any, ...]]:
    """Return the rows of use by window: money, tokens and requests, and the owner if it is known."""
    alike: dict[tuple[WindowKey, ...], list[Any]] = {}
    for budgets, event in moves:
        if budgets:
            sums = alike.get(budgets)
            if sums is None:
                sums = alike[budgets] = [0, 0, 0, event]
            sign = sign_of(event)
            sums[0] += sign * money_moved(event)
            sums[1] += sign * event.raw_tokens
            sums[2] += sign * event.requests
    windows: dict[WindowKey, list[Any]] = {}
    for moved, (money, tokens, requests, event) in alike.items():
        for window in moved:
            sums = windows.setdefault(window, [0, 0, 0, event])
            sums[0] += money
            sums[1] += tokens
            sums[2] += requests
    return [
        _row(window, *windows[window])
        for window in sorted(windows)
        if (0 <= window.budget_id <= INTEGER_MAX and 0 <= window.start_ms <= TIME_MS_MAX)
    ]


def _row(window: WindowKey, money: int, tokens: int, requests: int, event: OutboxEntry) -> tuple[Any, ...]:
    _, project, _ = attributed(event.attribution)
    facts = facts_of(event)
    return (
        window.budget_id, window.start_ms, stored_text(window.value), event.organization_id,
        money, *(bounded(sum_, INTEGER_MAX) for sum_ in (tokens, requests)),
        stored_text(event.user), str(event.key_id or ""), project, stored_text(facts.session),
        str(event.tenant_id or ""), tags_json(facts.tags),
    )  # fmt: skip


def _newer(connection: Connection[Any], noted: Sequence[Placed]) -> list[Placed]:
    """Return those of the entries that were not stored before; `noted` entries have no sequence numbers."""
    if not noted:
        return []
    partitions = sorted({partition for partition, _ in noted})
    newest = {
        p: stream_place(mark.encode()) for p, mark in connection.execute(statements.MARKS, (partitions,))
    }
    start = stream_place(b"")
    return [placed for placed in noted if stream_place(placed[1][0]) > newest.get(placed[0], start)]


# Units reported after their day of supply, and corrections: by days, in a roll-up.
#
# They are charged by the day of their supply, so that they have its tax. This knows nothing of prices or
# taxes.

_CORRECTS = int(EventKind.ADJUST)
_FIRST_DAY = date(1970, 1, 1).toordinal()

# A correction belongs to the day of its charge; if no row has that day, to the day it was reported on.
ROLL_UP = f"""
INSERT INTO usage_told AS u (tenant_id, day, service_id, unit_price, supplied_on, told_on, is_back,
                            organization_id, quantity)
SELECT t, d, s, p, CASE WHEN b AND NOT EXISTS (
           SELECT FROM usage_told AS o WHERE o.tenant_id = t AND o.day = l AND o.service_id = s
              AND o.unit_price = p AND o.supplied_on = w AND NOT o.is_back) THEN l ELSE w END AS supplied_on,
       l, b, o, greatest(least(sum(q), {SUM_MAX}), -{SUM_MAX})::bigint
  FROM (SELECT t, date '1970-01-01' + d AS d, s, p, date '1970-01-01' + w AS w, date '1970-01-01' + l AS l,
               b, o, q
          FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::numeric[], %s::integer[],
                      %s::integer[], %s::boolean[], %s::bigint[], %s::bigint[])
            AS n (t, d, s, p, w, l, b, o, q)) AS n
 GROUP BY t, d, s, p, 5, l, b, o ORDER BY t, d, s, p, 5, l, b
ON CONFLICT (tenant_id, day, service_id, unit_price, supplied_on, told_on, is_back)
DO UPDATE SET quantity = {added("quantity")}"""


def supplied_day(event: OutboxEntry) -> int:
    """Return the UTC day of a use, in days since 1970; a late report counts on its own day, never ahead."""
    day = event.at_ms // DAY_MS
    if event.facts is not None:
        return min(day, event.facts.used_ms // DAY_MS) if event.facts.used_ms else day
    return _day_in(event, "supplied_on", day)


def report_day(event: OutboxEntry) -> int:
    """Return the UTC day, in days since 1970, on which a use, or the use that is refunded, was counted."""
    day = event.at_ms // DAY_MS
    return _day_in(event, "told_on", day) if event.units < 0 and event.facts is None else day


def _day_in(event: OutboxEntry, name: str, day: int) -> int:
    """Return the day that a correction's metadata has under `name`, at most `day`; without one, `day`."""
    if event.kind != _CORRECTS or f'"{name}"'.encode() not in event.metadata:
        return day
    try:
        said = date.fromisoformat(str(metadata_in(event.metadata).get(name)))
    except ValueError:  # nobody of ours wrote it
        return day
    return min(day, said.toordinal() - _FIRST_DAY)


ACTIVATES, CONSUME, RESET = int(EventFlag.ACTIVATES), int(EventKind.CONSUME), int(EventKind.RESET)
ADJUST = int(EventKind.ADJUST)
INWARD, UNLIMITED = int(EventFlag.IN), int(EventFlag.UNLIMITED)

# tenant, day since 1970, service (0: none)
Bucket = tuple[int, int, int]
# The same, and the price of a unit.
PricedBucket = tuple[int, int, int, Decimal]
# And the days since 1970 of supply and of counting, and whether it is a refund.
ToldBucket = tuple[int, int, int, Decimal, int, int, bool]


@dataclass(slots=True)
class RollupDelta:
    """The last movement of each account, and use by bucket.

    `daily` holds organization, requests, tokens, credits, units. `resets` are the times of the last reset by
    tenant. `priced` holds organization, first unit, units; `told` organization and units, for units that were
    supplied on an earlier day or refunded. `beyond` are tenants with possible tokens beyond an ended cycle or
    plan, `granted` organizations that got or lost credits.
    """

    quotas: dict[int, OutboxEntry] = field(default_factory=dict)
    credits: dict[int, OutboxEntry] = field(default_factory=dict)
    spends: dict[int, OutboxEntry] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    activations: list[OutboxEntry] = field(default_factory=list)
    daily: dict[Bucket, list[int]] = field(default_factory=dict)
    priced: dict[PricedBucket, list[int]] = field(default_factory=dict)
    told: dict[ToldBucket, list[int]] = field(default_factory=dict)
    beyond: set[int] = field(default_factory=set)
    granted: set[int] = field(default_factory=set)


def add_up(fresh: Iterable[Placed]) -> RollupDelta:
    """Fold entries, in account order, into account states and sums."""
    moves = RollupDelta()
    quotas, daily = moves.quotas, moves.daily
    for _, (_, _, event) in fresh:
        assert event is not None
        flags = event.flags
        if flags & TOKENS:
            quotas[event.tenant_id] = event
        kind = event.kind
        if kind == CONSUME or (kind == ADJUST and flags & (CREDITS | USAGE)):
            bucket = (event.tenant_id, event.at_ms // DAY_MS, event.service_id)
            sums = daily.get(bucket)
            if sums is None:
                sums = daily[bucket] = [event.organization_id, 0, 0, 0, 0]
            if kind == CONSUME:
                sums[1] += 1
                if flags & TOKENS:
                    sums[2] += event.amount
            if flags & CREDITS:
                sums[3] += event.credits
                moves.credits[event.organization_id] = event
            if flags & USAGE:
                sums[4] += event.units
                _add_priced(moves, bucket, event)
                moves.spends[event.organization_id] = event
            if flags & ACTIVATES:
                moves.activations.append(event)
        else:
            _add_granted(moves, event)
    return moves


def _add_granted(moves: RollupDelta, event: OutboxEntry) -> None:
    if event.flags & CREDITS:
        moves.credits[event.organization_id] = event
        moves.granted.add(event.organization_id)
    if event.kind == RESET:
        moves.resets[event.tenant_id] = event.at_ms
    if event.flags & TOKENS:
        left = 0 if event.flags & UNLIMITED else event.remaining
        if (left - event.amount if event.flags & INWARD else left + event.amount) < 0:  # before the grant
            moves.beyond.add(event.tenant_id)


def _add_priced(moves: RollupDelta, bucket: Bucket, event: OutboxEntry) -> None:
    supplied, is_back = supplied_day(event), event.units < 0
    is_told = is_back or supplied != bucket[1]
    told = max(supplied, report_day(event))
    for first, units, price in portions(event):
        sums = moves.priced.setdefault((*bucket, price), [event.organization_id, first, 0])
        sums[1] = min(sums[1], first)
        sums[2] += units
        if is_told:
            place = (*bucket, price, supplied, told, is_back)
            moves.told.setdefault(place, [event.organization_id, 0])[1] += units
