"""The SQL that adds a batch of hours to the roll-ups of every span.

One statement, so that whoever adds calls up bounds their names and reaches every span.
"""

from __future__ import annotations

from gateway.core.accounts.usage import (
    DIMENSIONS,
    NO_PROJECT,
    OTHER,
    OTHER_PROJECTS,
    SPANS,
    SUMS,
)
from gateway.core.moments import DAY_MS
from persistence.ledger.sums import SUM_MAX, added

# How many models and projects of an organization's day are told apart.
MODELS_A_DAY_MAX = 500
PROJECTS_A_DAY_MAX = 5_000
_ARRAYS = {"model": "text", "currency": "text"}
# When a span began in which an hour is, where PostgreSQL has no word for it.
_STARTS = {
    "half_week": "greatest(date_trunc('week', start, 'UTC'),"
    " date_trunc('week', start - interval '72 hours', 'UTC') + interval '72 hours')"
}
_OF_SPAN = "SELECT '{span}', {dimensions}, {sums} FROM hours GROUP BY {groups}"


def start_of(unit: str) -> str:
    """SQL: when the unit began in which `start` is, in UTC."""
    return _STARTS.get(unit, f"date_trunc('{unit}', start, 'UTC')")


def _of_span(span: str) -> str:
    """What the hours of a batch add up to in a span."""
    unit, whole = SPANS[span]
    kept = [each for each in DIMENSIONS if each not in whole]
    none = {each: f"{NO_PROJECT if each == 'project_id' else 0} AS {each}" for each in whole}
    own = {each: none.get(each, each) for each in DIMENSIONS}
    own["start"] = f"{start_of(unit)} AS start"
    sums = (f"least(greatest(sum({each}), -{SUM_MAX}), {SUM_MAX})::bigint" for each in SUMS)
    groups = ", ".join(str(2 + DIMENSIONS.index(each)) for each in kept)
    return _OF_SPAN.format(span=span, dimensions=", ".join(own.values()), sums=", ".join(sums), groups=groups)


# What `hours` add up to in every span; in the order in which writers lock rows.
ADD_HOURS = f"""
INSERT INTO usage_rollup AS u (span, {", ".join(DIMENSIONS)}, {", ".join(SUMS)})
{" UNION ALL ".join(map(_of_span, SPANS))}
 ORDER BY {", ".join(str(1 + at) for at in range(1 + len(DIMENSIONS)))}
ON CONFLICT (span, {", ".join(DIMENSIONS)}) DO UPDATE SET
       {", ".join(f"{each} = {added(each)}" for each in SUMS)}"""
_NAMED = "organization_id, day, kind, name"
_KEPT = "(organization_id, day, '{0}', {1}) IN (SELECT * FROM kept)"
_SHOWN = {
    "model": f"CASE WHEN model = '' OR {_KEPT.format('model', 'model')} THEN model ELSE '{OTHER}' END",
    "project_id": f"CASE WHEN project_id < 0 OR {_KEPT.format('project', 'project_id::text')} THEN project_id"
    f" ELSE {OTHER_PROJECTS} END",
}
# What had no price is in the organization's currency, as it would be with one.
_GIVEN = {
    "start": "to_timestamp(start / 1000) AS start",
    "currency": "coalesce(nullif(n.currency, ''), o.currency) AS currency",
}
# Anybody makes up models and projects: the first ones of an organization's day are told apart. Once there are
# so many, no other name becomes one of them: a call is in the same row whenever it is added or taken out.
ROLL_UP_CALLS = f"""
WITH given AS MATERIALIZED (
SELECT {", ".join(_GIVEN.get(each, f"n.{each}") for each in DIMENSIONS)},
       {", ".join(SUMS)}, date '1970-01-01' + (start / {DAY_MS})::integer AS day
  FROM unnest({", ".join(f"%s::{_ARRAYS.get(each, 'bigint')}[]" for each in (*DIMENSIONS, *SUMS))})
       AS n ({", ".join(DIMENSIONS)}, {", ".join(SUMS)}) JOIN organization AS o ON o.id = n.organization_id
), named AS MATERIALIZED (
SELECT DISTINCT organization_id, day, kind, name, most FROM given, LATERAL (
       VALUES ('model', model, {MODELS_A_DAY_MAX}), ('project', project_id::text, {PROJECTS_A_DAY_MAX})
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
       {", ".join(SUMS)} FROM given)
{ADD_HOURS}"""  # noqa: S608  # our own words
