"""The explorer: what was used and what it cost, over any time, told apart and narrowed by anything.

The address says everything that is shown, so it can be sent to others. The table is made of the report of
usage; the chart is drawn from the table of times below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiDict

from gateway.admin.api.usage import read
from gateway.admin.console import spending
from gateway.admin.console.cells import label_of
from gateway.admin.console.desk import Desk
from gateway.admin.console.lists import Control
from gateway.admin.console.sessions import Signed
from gateway.admin.console.spending import MEASURES, Spent
from gateway.admin.resources.reports import REPORTS, UsageAsked
from gateway.admin.resources.resource import REFERS
from gateway.admin.resources.values import show_instant
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.errors import Unprocessable

ROWS_MAX = 100
RANGES = {
    "24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days",
    "today": "Today", "month": "This month", "last-month": "Last month",
}  # fmt: skip
USUAL_RANGE = "30d"
USUAL_GROUP = "model"
NO_GROUP = "none"
SHAPES = ("stacked", "lines")
INTERVALS = ("hour", "day", "month", "none")
FILTERS = (*(name for name in UsageAsked.model_fields if name.endswith("_id")), "model", "currency")
COLUMNS = ("cost", "requests", "refused", "tokens", "input", "cache_read", "cache_write", "output")
_LOCAL = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?", re.ASCII)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: names of its groups with where they lead, its share of the cost, its calls."""

    row: Row
    names: Sequence[tuple[str, str]]
    share: float
    calls: str


class Asked:
    """What an address asks; everything of it can be said again with a change."""

    def __init__(self, sent: Mapping[str, str], groups: Sequence[str], now: datetime) -> None:
        self.groups = tuple(groups)
        self.filters = {name: sent[name] for name in FILTERS if sent.get(name)}
        self.since, self.until = sent.get("from", ""), sent.get("to", "")
        is_free = bool(self.since or self.until)
        self.range = "" if is_free else sent.get("range", "") or USUAL_RANGE
        self.interval = sent.get("interval", "")
        self.measure = sent.get("measure", "") if sent.get("measure") in MEASURES else MEASURES[0]
        self.shape = sent.get("shape", "") if sent.get("shape") in SHAPES else SHAPES[0]
        self.sort = sent.get("sort", "") if sent.get("sort") in COLUMNS else COLUMNS[0]
        self._now = now

    @property
    def span(self) -> tuple[str, str]:
        """From when to when, as the report is asked; what cannot be read stays as it was typed."""
        if self.range:
            return _known_range(self.range, self._now)
        since, until = _instant(self.since, 0), _instant(self.until, 1)
        return since, until or show_instant(end_of("day", self._now))

    def query(self) -> UsageQuery:
        """The report that is asked for; `Unprocessable` names what is wrong with it."""
        since, until = self.span
        sent = MultiDict({**self.filters, "to": until} | ({"from": since} if since else {}))
        if self.groups:
            sent["group_by"] = ",".join(self.groups)
        if self.interval:
            sent["interval"] = self.interval
        found = read(sent)
        interval = self.interval or spending.intervals_for(found.since, found.until)
        if interval == "hour" and found.until - found.since > spending.TIMES_MAX * _HOUR:
            reason = f"of more than {spending.TIMES_MAX} hours are not shown one by one: ask for days"
            raise Unprocessable("Some query parameters are wrong.", (("interval", reason),))
        return UsageQuery(found.since, found.until, interval, found.groups, found.filters, found.rows_max)

    def address(self, **changes: object) -> str:
        """This page with changes; what is None is left out."""
        groups = ",".join(self.groups)
        said: dict[str, object] = {
            "range": self.range if self.range != USUAL_RANGE else "",
            "from": self.since, "to": self.until,
            "group_by": "" if groups == USUAL_GROUP else groups or NO_GROUP,
            "interval": self.interval, **self.filters,
            "measure": self.measure if self.measure != MEASURES[0] else "",
            "shape": self.shape if self.shape != SHAPES[0] else "",
            "sort": self.sort if self.sort != COLUMNS[0] else "",
        }  # fmt: skip
        kept = {name: value for name, value in (said | changes).items() if value not in {None, ""}}
        return f"/usage?{urlencode(kept, safe=',:')}" if kept else "/usage"

    def file(self, query: UsageQuery, suffix: str, interval: str) -> str:
        """The same as a file."""
        said = {
            "from": show_instant(query.since), "to": show_instant(query.until), "interval": interval,
            "group_by": ",".join(self.groups), **self.filters,
        }  # fmt: skip
        return f"/usage{suffix}?" + urlencode(
            {name: value for name, value in said.items() if value}, safe=",:"
        )


async def show(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /usage`."""
    sent = {name: text.strip() for name, text in request.query.items()}
    groups = ",".join(request.query.getall("group_by", [USUAL_GROUP])).split(",")
    groups = [each for each in groups if each not in {"", NO_GROUP}]
    asked = Asked(sent, groups, datetime.now(UTC))
    errors: Mapping[str, str] = {}
    typed = (asked.since, asked.until)
    found, facts = Spent((), (), None), {}
    try:
        query = asked.query()
        found = await spending.spent(
            desk.ports.store, query, asked.measure, asked.filters.get("currency", "")
        )
        typed = ("", "") if asked.range else (_field(query.since), _field(query.until))
        facts = {
            "span": (query.since, query.until),
            "files": [
                (f"{file.suffix.removeprefix('.').upper()}{told}", asked.file(query, file.suffix, interval))
                for file in REPORTS["usage"].documents
                if file.suffix.startswith(".")
                for told, interval in _files(query.interval)
            ],
        }
    except Unprocessable as wrong:
        errors = dict(wrong.errors)
    lines = _lines(found, asked)
    choices = await desk.choices({"services"})
    return desk.answer(
        request, signed, "usage.html", 422 if errors else 200,
        asked=asked, errors=errors, found=found, lines=lines[:ROWS_MAX], more=max(0, len(lines) - ROWS_MAX),
        places=_places(found.groups), labels=[(name, label_of(name)) for name in COLUMNS],
        chips=await _chips(desk, asked, errors), controls=_controls(asked, choices, errors),
        ranges=RANGES, measures=MEASURES, shapes=SHAPES, intervals=INTERVALS,
        typed=typed, titles={group: label_of(column) for group, column in GROUPS.items()},
        **({"span": None, "files": []} | facts),
    )  # fmt: skip


def _files(interval: str) -> list[tuple[str, str]]:
    """What a file may hold: the table, and each of its rows over time."""
    return [("", "none")] + ([(f" by {interval}", interval)] if interval != "none" else [])


def _lines(found: Spent, asked: Asked) -> list[Line]:
    whole = {row["currency"]: spending.amount_of(row, "cost") for row in found.totals}
    rows = sorted(found.groups, key=lambda row: spending.amount_of(row, asked.sort), reverse=True)
    return [
        Line(
            row,
            [(spending.part_name(row, group), _narrowed(asked, row, group)) for group in asked.groups],
            spending.share(spending.amount_of(row, "cost"), whole[row["currency"]]),
            _calls(asked, row),
        )
        for row in rows
    ]


def _narrowed(asked: Asked, row: Row, group: str) -> str:
    """The explorer for one value of a group; empty for what has none."""
    column = GROUPS[group]
    if row[column] is None:
        return ""
    others = ",".join(each for each in asked.groups if each != group)
    then = others or ("tenant" if group == USUAL_GROUP else None)
    return asked.address(**{column: row[column], "group_by": then})


def _calls(asked: Asked, row: Row) -> str:
    """The calls behind a row; empty where a list of calls cannot be asked for them."""
    columns = [GROUPS[group] for group in asked.groups]
    if any(row[name] is None for name in columns) or "currency" in asked.filters:
        return ""
    wanted = {**asked.filters, **{name: row[name] for name in columns}}
    since, until = asked.span
    return f"/calls?{urlencode({**wanted, 'from': since, 'to': until}, safe=':')}"


def _places(rows: Sequence[Row]) -> int:
    """How many decimals stand below each other."""
    exponents = [spending.amount_of(row, "cost").normalize().as_tuple().exponent for row in rows]  # type: ignore[union-attr]  # decimals
    return max((-int(each) for each in exponents), default=0)


async def _chips(desk: Desk, asked: Asked, errors: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The filters in force: what they are called, of what, and the address without them."""
    ids = {name: int(text) for name, text in asked.filters.items() if name in REFERS and text.isdecimal()}
    wanted = {REFERS[name]: {value} for name, value in ids.items() if name not in errors}
    names = await desk.names(wanted)
    return [
        (
            label_of(name),
            names.get((REFERS.get(name, ""), ids.get(name, 0)), text),
            asked.address(**{name: None}),
        )
        for name, text in asked.filters.items()
    ]


def _controls(
    asked: Asked, choices: Mapping[str, Sequence[tuple[str, str]]], errors: Mapping[str, str]
) -> list[Control]:
    found = []
    for name in FILTERS:
        refers = REFERS.get(name, "")
        offered = choices.get(refers, ())
        kind = "choice" if offered else "named" if refers in {"organizations", "tenants"} else "id"
        kind = kind if name.endswith("_id") else "text"
        value, error = asked.filters.get(name, ""), errors.get(name, "")
        found.append(Control(name, label_of(name), kind, value, offered, refers, error))
    return found


def _known_range(name: str, now: datetime) -> tuple[str, str]:
    # Whole days, today's too: they are read from few rows.
    end, hour = end_of("day", now), end_of("hour", now)
    today, month = end - _DAY, (end - _DAY).replace(day=1)
    spans = {
        "24h": (hour - _DAY, hour), "today": (today, end), "month": (month, end),
        "last-month": ((month - _DAY).replace(day=1), month),
        **{f"{days}d": (end - days * _DAY, end) for days in (7, 30, 90)},
    }  # fmt: skip
    if name not in spans:
        return name, show_instant(end)
    since, until = spans[name]
    return show_instant(since), show_instant(until)


def _field(at: datetime) -> str:
    """A time as a field of a form holds it."""
    return at.strftime("%Y-%m-%dT%H:%M")


def _instant(text: str, days: int) -> str:
    """A time as it is typed into a field, UTC; of a whole day its beginning, or its end."""
    if _LOCAL.fullmatch(text) is None:
        return text
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        return show_instant(at if "T" in text else at + days * _DAY)
    except (ValueError, OverflowError):
        return text
