"""What calls came to, for pages: by group over a whole span, and over time for a chart.

Everything is read by the report of usage (`Store.used`), which the Admin API answers with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.admin.api.usage import ITEMS_MAX
from gateway.admin.console.charts import REST, SERIES_MAX, Amount, Chart, Used, stacked
from gateway.admin.ports import Store
from gateway.admin.resources.resource import REFERS
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import GROUPS, NO_PROJECT, SUMS, UsageQuery, starts
from gateway.errors import Unprocessable

MEASURES = ("cost", "tokens", "requests")
TIMES_MAX = 1_000
# What a call has none of, as the roll-ups keep it.
_NOBODY: Mapping[str, object] = {"project_id": NO_PROJECT, "model": ""}
_NONE = {"user": "no user", "project": "no project", "model": "no model", "service": "no service"}
# Where a row of a group has its own page.
PAGES = {name: REFERS[name] for name in GROUPS.values() if name in REFERS}
_DAY = timedelta(days=1)
# What each group is told by: its values and the currency.
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a span came to: `groups` are rows by group and currency, dearest first; `totals` by currency."""

    groups: Sequence[Row]
    totals: Sequence[Row]
    chart: Chart | None


async def spent(
    store: Store, asked: UsageQuery, measure: str, currency: str = "", *, items_max: int = ITEMS_MAX
) -> Spent:
    """Add up what is asked; its interval is the chart's, by `measure`, if money in one currency.

    Of more than `items_max` groups and times those with most are read by themselves; more groups are refused.
    """
    asked = replace(asked, rows_max=items_max + 1)
    whole = replace(asked, interval="none")
    if asked.interval == "none":
        groups = added(await _some(store, whole), asked.groups)
        return Spent(groups, added(groups, ()), None)
    over_time = await store.used(asked)
    found = over_time if len(over_time) <= items_max else await _some(store, whole)
    groups = added(found, asked.groups)
    totals = added(groups, ())
    currency = currency or (str(totals[0]["currency"]) if totals and measure == "cost" else "")
    drawn = [row for row in groups if measure != "cost" or row["currency"] == currency]
    if found is not over_time:
        top = sorted(drawn, key=lambda row: amount_of(row, measure), reverse=True)[: SERIES_MAX - 1]
        used = await _most(store, asked, top, measure, currency)
    else:
        used = _told_apart(over_time, asked.groups, measure, currency)
    names: dict[Hashable, str] = {(): REST}
    names |= {group_key(row, asked.groups): name_of(row, asked.groups) for row in drawn}
    chart = stacked(
        used, list(starts(asked)), names,
        unit=measure, currency=currency if measure == "cost" else "", interval=asked.interval,
    )  # fmt: skip
    return Spent(groups, totals, chart)


def added(rows: Iterable[Row], groups: Sequence[str]) -> list[Row]:
    """Rows of the same groups and currency as one, the dearest first."""
    sums: dict[Key, dict[str, Any]] = {}
    for row in rows:
        key = (*group_key(row, groups), row["currency"])
        into = sums.get(key)
        if into is None:
            sums[key] = dict(row)
        else:
            for name in SUMS:
                into[name] += row[name]
    return sorted(sums.values(), key=lambda row: (row["cost"], row["tokens"]), reverse=True)


def group_key(row: Row, groups: Sequence[str]) -> Key:
    """What tells a row's group from others."""
    return tuple(row[GROUPS[group]] for group in groups)


def name_of(row: Row, groups: Sequence[str]) -> str:
    """What a row's group is called."""
    return " · ".join(part_name(row, group) for group in groups) or "everything"


def part_name(row: Row, group: str) -> str:
    """What one of its groups is called."""
    value = row[GROUPS[group]]
    if value is None:
        return _NONE.get(group, f"no {group.replace('_', ' ')}")
    named = str(value) if group == "model" else row.get(group)
    return str(named) if named is not None else f"{group.replace('_', ' ')} {value}"


def amount_of(row: Row, measure: str) -> Amount:
    """How much of a measure a row has."""
    amount: Any = row[measure]
    return amount  # type: ignore[no-any-return]  # an integer, or a decimal


def share(part: Amount, whole: Amount) -> float:
    """A part of a whole in per cent, to a tenth."""
    return round(float(100 * part / whole), 1) if whole else 0.0


def intervals_for(since: datetime, until: datetime) -> str:
    """The interval that shows a span best."""
    return "hour" if until - since <= 3 * _DAY else "day" if until - since <= 100 * _DAY else "month"


async def _some(store: Store, whole: UsageQuery) -> Sequence[Row]:
    found = await store.used(whole)
    if len(found) >= whole.rows_max:
        reason = f"more than {whole.rows_max - 1:,} groups: ask for fewer, or for less of them"
        raise Unprocessable("Some query parameters are wrong.", (("group_by", reason),))
    return found


async def _most(
    store: Store, asked: UsageQuery, top: Sequence[Row], measure: str, currency: str
) -> list[Used]:
    """A few groups over time, each asked for by itself, and what all others are beside them."""
    everything = replace(asked, groups=())
    each = [replace(everything, filters={**asked.filters, **_only(row, asked.groups)}) for row in top]
    found = await asyncio.gather(*(store.used(query) for query in (everything, *each)))
    used: list[Used] = _told_apart(found[0], (), measure, currency)
    for row, rows in zip(top, found[1:], strict=True):
        key = group_key(row, asked.groups)
        for at, _, amount in _told_apart(rows, (), measure, currency):
            used += [(at, key, amount), (at, (), -amount)]
    return used


def _only(row: Row, groups: Sequence[str]) -> dict[str, object]:
    columns = [GROUPS[group] for group in groups]
    return {name: row[name] if row[name] is not None else _NOBODY.get(name, 0) for name in columns}


def _told_apart(rows: Iterable[Row], groups: Sequence[str], measure: str, currency: str) -> list[Used]:
    found: list[Used] = []
    for row in rows:
        if measure != "cost" or row["currency"] == currency:
            at = row["start"]
            assert isinstance(at, datetime)
            found.append((at.astimezone(UTC), group_key(row, groups), amount_of(row, measure)))
    return found
