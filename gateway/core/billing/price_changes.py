"""The difference of two price lists as rows to add. Pure.

A list has a price for each name at every time from `at` on. If the stored list has another one, a row is
added for that time; if a row of that time exists, which cannot be changed, the new one is a second later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from gateway.core.billing.hours import BEGIN
from gateway.core.billing.price_book import KINDS, UNITS, folded

Row = Mapping[str, Any]
Name = tuple[str, str, str, str]  # provider, model, match, currency
Timeline = dict[datetime, Row]

A_MOMENT = timedelta(seconds=1)
# Since when a listed price without a date is in force.
UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
# What a price says of amounts, and of hours that multiply them.
AMOUNTS = (
    *KINDS,
    "request",
    "tools",
    "images",
    *UNITS,
    "context_tiers",
    "service_tiers",
    "hours",
    "hours_at",
)


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One difference: a row to add from `at` on, or (`gone`) a row in force that the new list lacks.

    `before` is the row in force until then; None without one.
    """

    kind: Literal["new", "changed", "gone"]
    row: Row
    at: datetime
    before: Row | None = None

    @property
    def says(self) -> dict[str, tuple[object, object]]:
        """The changed fields, with their values before and after."""
        before, after = self.before or {}, {} if self.kind == "gone" else self.row
        was, becomes = amounts_in(before), amounts_in(after)
        names = [name for name in AMOUNTS if was.get(name) != becomes.get(name)]
        return {name: (before.get(name), after.get(name)) for name in names}

    @property
    def is_dearer(self) -> bool:
        return self.before is not None and _is_above(amounts_in(self.row), amounts_in(self.before))


def missing(listed: Iterable[Row], kept: Iterable[Row], at: datetime) -> str:
    """Return what to say of listed prices, in force at a time or later, that are not kept; "" without one."""
    missing_prices = [change for change in changes(listed, kept, at) if change.kind != "gone"]
    if not missing_prices:
        return ""
    rises = [change for change in missing_prices if change.is_dearer]
    # Announced rises are counted if there is no other.
    dearer = [change for change in rises if change.row["effective_from"] <= at] or rises
    dates = [since for change in dearer if (since := change.row["effective_from"]) > UNDATED]
    since = f" {'since' if min(dates) <= at else 'from'} {min(dates):%Y-%m-%d}" if dates else ""
    of_them = f", {len(dearer):,} of them dearer{since}" if dearer else ""
    return f"the bundled list has {len(missing_prices):,} prices that are not here{of_them}: tollkeeper prices diff"


def changes(listed: Iterable[Row], kept: Iterable[Row], at: datetime) -> Iterator[PriceChange]:
    """Yield the changes that make the stored prices `kept` equal to the list `listed` from `at` on.

    A price that is no longer listed is yielded as gone, and stays stored.
    """
    wanted, there = timelines(listed), timelines(kept)
    for name, timeline in wanted.items():
        yield from _catch_up(timeline, there.get(name, {}), at)
    for name, timeline in there.items():
        last = row_in_force(timeline, at)
        if name not in wanted and last is not None:
            yield PriceChange("gone", last, at, last)


def _catch_up(wanted: Timeline, kept: Timeline, at: datetime) -> Iterator[PriceChange]:
    """Yield the changes that give `kept` the prices of `wanted` from the time `at` on."""
    kind: Literal["new", "changed"] = "changed" if kept else "new"
    there = dict(kept)
    for moment in (at, *sorted(start for start in {*wanted, *kept} if start > at)):
        row, since = row_in_force(wanted, moment), moment
        if row is None:
            continue
        while since in there and amounts_in(there[since]) != amounts_in(row):
            since += A_MOMENT
        before = row_in_force(there, since)
        if before is None or amounts_in(before) != amounts_in(row):
            there[since] = row
            yield PriceChange(kind, row, since, before)


def timelines(rows: Iterable[Row]) -> dict[Name, Timeline]:
    """Return the rows of each name by the time from which they are in force."""
    found: dict[Name, Timeline] = {}
    for row in rows:
        name = folded(row["provider"] or ""), folded(row["model"]), row["match"], row["currency"]
        found.setdefault(name, {})[row["effective_from"]] = row
    return found


def row_in_force(timeline: Timeline, at: datetime) -> Row | None:
    """Return the row of `timeline` that is in force at a time, or None."""
    since = max((moment for moment in timeline if moment <= at), default=None)
    return None if since is None else timeline[since]


def amounts_in(row: Row) -> dict[str, object]:
    """Return the set fields of a price row in a normal form, in which equal prices compare equal."""
    return {
        name: _parse_decimals(row[name]) for name in AMOUNTS if row.get(name) not in (None, {}, [], BEGIN)
    }


def _is_above(becomes: object, was: object) -> bool:
    """Return whether a number is above the one at the same place in `was`; both are in the normal form."""
    if isinstance(becomes, Decimal) and isinstance(was, Decimal):
        return becomes > was
    if isinstance(becomes, dict) and isinstance(was, dict):
        return any(_is_above(part, was.get(name)) for name, part in becomes.items() if name != "above")
    if isinstance(becomes, list) and isinstance(was, list):
        return any(map(_is_above, becomes, was))
    return False


def _parse_decimals(value: object) -> object:
    """Return a JSON value with its numbers, also those in texts, as `Decimal`."""
    if isinstance(value, Mapping):
        return {name: _parse_decimals(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_parse_decimals(part) for part in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
        return value
    return Decimal(value) if isinstance(value, str | int) else value
