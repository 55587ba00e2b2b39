"""Calls added up by hour and by every dimension of reports, and the SQL that adds hours to every span.

Each call is in one row of its hour; a correction subtracts the call's old row and adds the new one. One statement
adds a batch, so that all writers limit names and reach every span.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.core.accounts.call_facts import CACHE_WRITE, CACHE_WRITE_1H, CallFacts
from gateway.core.accounts.outbox import OutboxEntry, attributed
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
from gateway.core.times import DAY_MS, HOUR_MS
from persistence.ledger.rows import amounts_of, counts_of, stored_text, used_at
from persistence.ledger.statements import SUM_MAX, added, bounded, columns_of

# Organization, start in ms, tenant, key, user (0: none), project (-1: none), service, model, currency, and tags
# as JSON.
UsageBucket = tuple[int, int, int, int, int, int, int, str, str, str]
Rollup = dict[UsageBucket, list[int]]


def add_call(hours: Rollup, event: OutboxEntry, facts: CallFacts, user_id: int | None) -> None:
    """Add a call to the sums of its bucket in `hours`."""
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


def _sum_span(span: str, whole: Sequence[str] = (), tags: str = "") -> str:
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
    "usage_rollup", UNTAGGED, UNTAGGED, [_sum_span(span, level.whole) for span, level in SPANS.items()]
)
_TAGGED = "WHERE tags <> '{}'"
_HASH = "sha256(convert_to(tags::text, 'UTF8')), tags,"
ADD_TAGS = _added(
    "usage_tag", (*UNTAGGED, "tags_hash"), (*UNTAGGED, "tags_hash", "tags"),
    [_sum_span(span, tags=_HASH) for span in TAG_SPANS],
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
