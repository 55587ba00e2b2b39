"""The usage explorer: sums of calls by group and over time; and live numbers of the gateways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiDict

from gateway.admin.api.usage import ITEMS_MAX, read
from gateway.admin.console.formatting import REST, SERIES_MAX, Amount, Chart, Used, label_of, stacked
from gateway.admin.console.home import FOUND, ConsoleShell, SignedInPerson
from gateway.admin.console.lists import FilterControl, declared_tags, find_names, unknown
from gateway.admin.http.requests import id_of
from gateway.admin.resources.form_fields import REFERS
from gateway.admin.resources.reports import REPORTS, UsageReportQuery
from gateway.admin.resources.values import show_instant
from gateway.core.accounts.administration import Row
from gateway.core.accounts.tags import GROUP, tag_in
from gateway.core.accounts.usage import GROUPS, NO_PROJECT, OTHER, UsageQuery, column_of, end_of, starts
from gateway.core.accounts.usage_sums import SUMS, USAGE_SUMS
from gateway.core.histograms import quantile_of
from gateway.errors import Unprocessable

if TYPE_CHECKING:
    from persistence.store import Store

# Sums of calls for pages: by group over a whole period, and over time for a chart.
#
# Everything is read by `Store.used`, as for the Admin API's usage report.

MEASURES = ("cost", "tokens", "requests")
TIMES_MAX = 1_000
# The values of the roll-ups for calls without a project or model.
_NOBODY: Mapping[str, object] = {"project_id": NO_PROJECT, "model": ""}
# The groups whose rows have a page.
PAGES = {name: REFERS[name] for name in GROUPS.values() if name in REFERS}
_ONE_DAY = timedelta(days=1)
# The key of a group: its values and the currency.
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class SpendSummary:
    """Sums of a period: `groups` are rows by group and currency, highest cost first; `totals` by currency."""

    groups: Sequence[Row]
    totals: Sequence[Row]
    chart: Chart | None


async def spent(
    store: Store, asked: UsageQuery, measure: str, currency: str = "", *, items_max: int = ITEMS_MAX
) -> SpendSummary:
    """Sum the calls of a usage query, with a chart of `measure` by the query's interval.

    Money is drawn in one currency only. The chart shows the largest groups over time; more than `items_max`
    groups are refused.
    """
    asked = replace(asked, rows_max=items_max + 1)
    groups = added(await _read_rows(store, replace(asked, interval="none")), asked.groups)
    totals = added(groups, ())
    if asked.interval == "none":
        return SpendSummary(groups, totals, None)
    currency = currency or (str(totals[0]["currency"]) if totals and measure == "cost" else "")
    drawn = [row for row in groups if measure != "cost" or row["currency"] == currency]
    drawn = sorted(drawn, key=lambda row: amount_of(row, measure), reverse=True)
    top = drawn if len(drawn) <= SERIES_MAX else drawn[: SERIES_MAX - 1]
    used = await _over_time(store, asked, top, measure, currency, is_cut=top is not drawn) if drawn else []
    names: dict[Hashable, str] = {(): REST}
    names |= {group_key(row, asked.groups): name_of(row, asked.groups) for row in top}
    chart = stacked(
        used, list(starts(asked)), names,
        unit=measure, currency=currency if measure == "cost" else "", interval=asked.interval,
    )  # fmt: skip
    return SpendSummary(groups, totals, chart)


def added(rows: Iterable[Row], groups: Sequence[str]) -> list[Row]:
    """Merge rows of the same group and currency into one, highest cost first."""
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
    return tuple(row[column_of(group)] for group in groups)


def name_of(row: Row, groups: Sequence[str]) -> str:
    return " · ".join(part_name(row, group) for group in groups) or "everything"


def part_name(row: Row, group: str) -> str:
    value, tag = row[column_of(group)], tag_in(group)
    if value is None:
        return f"no {tag or group.replace('_', ' ').replace('api', 'API')}"
    named = str(value) if group == "model" or tag else row.get(group)
    return str(named) if named is not None else f"{group.replace('_', ' ')} {value}"


def amount_of(row: Row, measure: str) -> Amount:
    amount: Any = row[measure]
    return amount  # type: ignore[no-any-return]  # an integer, or a decimal


def share_of_spend(part: Amount, whole: Amount) -> float:
    """Return a part of a whole in per cent, to a tenth."""
    return round(float(100 * part / whole), 1) if whole else 0.0


async def _read_rows(store: Store, whole: UsageQuery) -> Sequence[Row]:
    rows = await store.used(whole)
    if len(rows) >= whole.rows_max:
        reason = f"more than {whole.rows_max - 1:,} groups: ask for fewer, or for less of them"
        raise Unprocessable("Some query parameters are wrong.", (("group_by", reason),))
    return rows


async def _over_time(
    store: Store, asked: UsageQuery, top: Sequence[Row], measure: str, currency: str, *, is_cut: bool
) -> list[Used]:
    """Return groups over time; if `is_cut`, also the remaining groups as a single one."""
    only = tuple({_stored(row, asked.groups): None for row in top}) if asked.groups else ()
    asking = [store.used(replace(asked, only=only))]
    asking += [store.used(replace(asked, groups=()))] if is_cut else []
    rows = await asyncio.gather(*asking)
    used = _groups_of(rows[0], asked.groups, measure, currency)
    if is_cut:
        used += [(at, (), -amount) for at, _, amount in used]
        used += _groups_of(rows[1], (), measure, currency)
    return used


def _stored(row: Row, groups: Sequence[str]) -> tuple[object, ...]:
    """Return a row's group values as stored in the roll-ups (sums of usage), where 0 or "" stand for none."""
    columns = [column_of(group) for group in groups]
    return tuple(
        row[name] if row[name] is not None else _NOBODY.get(name, "" if tag_in(name) else 0)
        for name in columns
    )


def _groups_of(rows: Iterable[Row], groups: Sequence[str], measure: str, currency: str) -> list[Used]:
    found: list[Used] = []
    for row in rows:
        if measure != "cost" or row["currency"] == currency:
            at = row["start"]
            assert isinstance(at, datetime)
            found.append((at.astimezone(UTC), group_key(row, groups), amount_of(row, measure)))
    return found


# The explorer: use and cost over any time, with any groups and filters.
#
# The address contains all choices, so it can be shared. The table shows the usage report; the chart is drawn
# from the table of times below it.

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
FILTERS = (*(name for name in UsageReportQuery.model_fields if name.endswith("_id")), "model", "currency")
PARAMETERS = frozenset({*FILTERS, "from", "to", "range", "group_by", "interval", "measure", "shape", "sort"})
_SHOWN = [usage_sum.name for usage_sum in USAGE_SUMS if usage_sum.on_page]
# What people look for first, then the others in the order of reports.
COLUMNS = tuple(dict.fromkeys(("cost", "requests", "refused", "tokens", *_SHOWN)))
_LOCAL = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?", re.ASCII)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row of the table: its groups' names and addresses, its share of the cost, and links to its calls."""

    row: Row
    names: Sequence[tuple[str, str]]
    share: float
    calls: str


class ReportQuery:
    """The query of the usage explorer, whose address can be made with changes."""

    def __init__(self, sent: Mapping[str, str], groups: Sequence[str], now: datetime) -> None:
        self.groups = tuple(groups)
        self.filters = {name: sent[name] for name in sent if is_filter(name) and sent[name]}
        self.since, self.until = sent.get("from", ""), sent.get("to", "")
        is_free = bool(self.since or self.until)
        self.range = "" if is_free else sent.get("range", "") or USUAL_RANGE
        self.interval = sent.get("interval", "")
        self.measure = sent.get("measure", "") if sent.get("measure") in MEASURES else MEASURES[0]
        self.shape = sent.get("shape", "") if sent.get("shape") in SHAPES else SHAPES[0]
        self.sort = sent.get("sort", "") if sent.get("sort") in COLUMNS else COLUMNS[0]
        self.tags: tuple[str, ...] = ()  # those that are offered
        self._now = now

    @property
    def span(self) -> tuple[str, str]:
        """The start and end of the report as query parameters; invalid texts are kept as typed."""
        if self.range:
            return _known_range(self.range, self._now)
        since, until = _instant(self.since, 0), _instant(self.until, 1)
        return since, until or show_instant(end_of("day", self._now))

    def query(self) -> UsageQuery:
        """Return the usage query; raise `Unprocessable` with each error."""
        since, until = self.span
        sent = MultiDict({**self.filters, "to": until} | ({"from": since} if since else {}))
        if self.groups:
            sent["group_by"] = ",".join(self.groups)
        if self.interval:
            sent["interval"] = self.interval
        query = read(sent)
        span = query.until - query.since
        best = "hour" if span <= 3 * _ONE_DAY else "day" if span <= 100 * _ONE_DAY else "month"
        interval = self.interval or best
        if interval == "hour" and span > TIMES_MAX * _HOUR:
            reason = f"of more than {TIMES_MAX} hours are not shown one by one: ask for days"
            raise Unprocessable("Some query parameters are wrong.", (("interval", reason),))
        return UsageQuery(query.since, query.until, interval, query.groups, query.filters, query.rows_max)

    def address(self, **changes: object) -> str:
        """Return this page's address with changes; values of None are left out."""
        groups = ",".join(self.groups)
        parameters: dict[str, object] = {
            "range": self.range if self.range != USUAL_RANGE else "",
            "from": self.since, "to": self.until,
            "group_by": "" if groups == USUAL_GROUP else groups or NO_GROUP,
            "interval": self.interval, **self.filters,
            "measure": self.measure if self.measure != MEASURES[0] else "",
            "shape": self.shape if self.shape != SHAPES[0] else "",
            "sort": self.sort if self.sort != COLUMNS[0] else "",
        }  # fmt: skip
        kept = {name: value for name, value in (parameters | changes).items() if value not in {None, ""}}
        return f"/usage?{urlencode(kept, safe=',:')}" if kept else "/usage"

    def file(self, query: UsageQuery, suffix: str, interval: str) -> str:
        parameters = {
            "from": show_instant(query.since), "to": show_instant(query.until), "interval": interval,
            "group_by": ",".join(self.groups), **self.filters,
        }  # fmt: skip
        return f"/usage{suffix}?" + urlencode(
            {name: value for name, value in parameters.items() if value}, safe=",:"
        )


async def show_explorer(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /usage`: the page of the usage explorer."""
    sent = {name: text.strip() for name, text in request.query.items()}
    ids, errors = await find_names(desk, sent, REFERS)
    errors |= unknown([name for name in sent if not is_filter(name)], PARAMETERS)
    sent |= ids
    groups = ",".join(request.query.getall("group_by", [USUAL_GROUP])).split(",")
    groups = [group for group in groups if group not in {"", NO_GROUP}]
    asked = ReportQuery(sent, groups, datetime.now(UTC))
    stated = [name for name in (*asked.groups, *asked.filters) if tag_in(name)]
    asked.tags = tuple(dict.fromkeys((*await declared_tags(desk, asked.filters), *stated)))
    typed = (asked.since, asked.until)
    summary, facts = SpendSummary((), (), None), {}
    saved: Sequence[Row] = ()
    try:
        query = asked.query()
        summary = await spent(desk.ports.store, query, asked.measure, asked.filters.get("currency", ""))
        saved = await desk.ports.store.substitutions(query)
        typed = ("", "") if asked.range else (_field(query.since), _field(query.until))
        facts = {
            "span": (query.since, query.until),
            "files": [
                (f"{file.suffix.removeprefix('.').upper()}{title}", asked.file(query, file.suffix, interval))
                for file in REPORTS["usage"].documents
                if file.suffix.startswith(".")
                for title, interval in _files(query.interval)
            ],
        }
    except Unprocessable as wrong:
        errors = {**dict(wrong.errors), **errors}
    lines = _lines(summary, asked)
    choices = await desk.choices({"services"})
    return desk.answer(
        request, signed, "usage.html", 422 if errors else 200,
        asked=asked, errors=errors, found=summary, saved=saved, lines=lines, more=max(0, len(summary.groups) - ROWS_MAX),
        places=_places([line.row for line in lines]), labels=[(name, label_of(name)) for name in COLUMNS],
        chips=await _chips(desk, asked, errors), controls=_controls(asked, choices, errors),
        ranges=RANGES, measures=MEASURES, shapes=SHAPES, intervals=INTERVALS,
        typed=typed, titles=_titles(asked),
        **({"span": None, "files": []} | facts),
    )  # fmt: skip


def is_filter(name: str) -> bool:
    return name in FILTERS or GROUP.fullmatch(name) is not None


def _label(name: str) -> str:
    """Return the label of a filter or group; a tag's is its name as it is declared."""
    return f"Tag {tag}" if (tag := tag_in(name)) else label_of(name)


def _titles(asked: ReportQuery) -> dict[str, str]:
    """Return the groups that a report offers, with their labels."""
    titles = {group: label_of(column) for group, column in GROUPS.items()}
    return titles | {tag: _label(tag) for tag in asked.tags}


def _files(interval: str) -> list[tuple[str, str]]:
    """Return the choices for a file's interval: the table's sums, or each group over time."""
    return [("", "none")] + ([(f" by {interval}", interval)] if interval != "none" else [])


def _lines(summary: SpendSummary, asked: ReportQuery) -> list[ReportRow]:
    whole = {row["currency"]: amount_of(row, "cost") for row in summary.totals}
    rows = sorted(summary.groups, key=lambda row: amount_of(row, asked.sort), reverse=True)[:ROWS_MAX]
    return [
        ReportRow(
            row,
            [(part_name(row, group), _narrowed(asked, row, group)) for group in asked.groups],
            share_of_spend(amount_of(row, "cost"), whole[row["currency"]]),
            _calls(asked, row),
        )
        for row in rows
    ]


def _narrowed(asked: ReportQuery, row: Row, group: str) -> str:
    """Return the explorer's address for one value of a group; "" if the row has none."""
    column = column_of(group)
    if row[column] is None:
        return ""
    others = ",".join(group_ for group_ in asked.groups if group_ != group)
    then = others or ("tenant" if group == USUAL_GROUP else None)
    return asked.address(**{column: row[column], "group_by": then})


def _calls(asked: ReportQuery, row: Row) -> str:
    """Return the address of the calls of a row; "" if the list of calls has no such filter."""
    columns = [column_of(group) for group in asked.groups]
    if any(row[name] is None for name in columns) or "currency" in asked.filters:
        return ""
    wanted = {**asked.filters, **{name: row[name] for name in columns}}
    if any(tag_in(name) and value in {"", OTHER} for name, value in wanted.items()):
        return ""
    since, until = asked.span
    return f"/calls?{urlencode({**wanted, 'from': since, 'to': until}, safe=':')}"


def _places(rows: Sequence[Row]) -> int:
    exponents = [amount_of(row, "cost").normalize().as_tuple().exponent for row in rows]  # type: ignore[union-attr]  # decimals
    return max((-int(exponent) for exponent in exponents), default=0)


async def _chips(
    desk: ConsoleShell, asked: ReportQuery, errors: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Return the active filters as name, value, and the page's address without the filter."""
    typed = {name: id_of(text) for name, text in asked.filters.items() if name in REFERS}
    ids = {name: id_ for name, id_ in typed.items() if id_ is not None}
    wanted = {REFERS[name]: {value} for name, value in ids.items() if name not in errors}
    names = await desk.names(wanted)
    return [
        (
            _label(name),
            names.get((REFERS.get(name, ""), ids.get(name, 0)), text),
            asked.address(**{name: None}),
        )
        for name, text in asked.filters.items()
    ]


def _controls(
    asked: ReportQuery, choices: Mapping[str, Sequence[tuple[str, str]]], errors: Mapping[str, str]
) -> list[FilterControl]:
    controls = []
    for name in (*FILTERS, *asked.tags):
        refers = REFERS.get(name, "")
        offered = choices.get(refers, ())
        kind = "choice" if offered else "named" if refers in FOUND else "id"
        kind = kind if name.endswith("_id") else "text"
        value, error = asked.filters.get(name, ""), errors.get(name, "")
        controls.append(FilterControl(name, _label(name), kind, value, offered, refers, error))
    return controls


def _known_range(name: str, now: datetime) -> tuple[str, str]:
    # Whole days, including today: they are read from few rows.
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
    return at.strftime("%Y-%m-%dT%H:%M")


def _instant(text: str, days: int) -> str:
    """Return a typed UTC time in RFC 3339; a date becomes the start of the day `days` later."""
    if _LOCAL.fullmatch(text) is None:
        return text
    try:
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        return show_instant(at if "T" in text else at + days * _DAY)
    except (ValueError, OverflowError):
        return text


# Live numbers of the gateways: samples of the last minutes, and rates between them.
#
# Samples are taken often while somebody watches, and rarely otherwise, so that a chart has a past.

Snapshot = Mapping[str, Any]

WATCHED_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 15.0
WATCHED_S = 30.0
SAMPLES_MAX = 600
FRESH_S = 0.5
RATE_S = 10.0
SMOOTHED_S = 4.0
MINUTE_S = 60.0
REASONS_MAX = 12
FACTS = ("holds", "outbox_entries", "outbox_oldest_seconds", "drift_tokens", "drift_credits")

_log = logging.getLogger("tollkeeper.console")


@dataclass(frozen=True, slots=True)
class MetricSample:
    """Sums since the start at a time; `facts` are current values."""

    at: float
    requests: int
    tokens: int
    reasons: Mapping[str, int]
    request_buckets: Sequence[int]
    overhead_buckets: Sequence[int]
    bounds: Sequence[float]
    facts: Mapping[str, float]

    @property
    def refused(self) -> int:
        return sum(self.reasons.values())


class Live:
    """Samples the gateways' metrics, and computes rates and latencies from the samples."""

    def __init__(self, snapshot: Callable[[], Awaitable[Snapshot]], clock: Callable[[], float]) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._samples: deque[MetricSample] = deque(maxlen=SAMPLES_MAX)
        self._watched_at = -WATCHED_S
        self._taking = asyncio.Lock()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        while True:
            await self._sample()
            self._woken.clear()
            watched = self._clock() - self._watched_at < WATCHED_S
            if watched:
                await asyncio.sleep(WATCHED_INTERVAL_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), IDLE_INTERVAL_S)

    async def now(self) -> dict[str, Any]:
        """Return the current numbers of the gateway, with rates of the last seconds or the last minute."""
        await self._fresh()
        if not self._samples:
            return {"is_known": False, "is_of_all": False, "sees_gateways": False, "facts": {}, "reasons": []}
        last = self._samples[-1]
        return {
            "is_known": True,
            "is_of_all": False,
            "sees_gateways": bool(last.bounds) and bool(last.request_buckets),
            "requests": last.requests,
            "facts": last.facts,
            **rates(self._since(RATE_S), last),
            **latencies(self._since(MINUTE_S), last),
            "reasons": _reasons(self._since(MINUTE_S), last),
        }

    async def history(self) -> list[list[float | None]]:
        """Return columns for a chart: time, requests/s, refused/s, tokens/s, p50 and p99 in milliseconds."""
        await self._fresh()
        columns: list[list[float | None]] = [[] for _ in range(6)]
        samples = list(self._samples)
        before = 0
        for after in range(1, len(samples)):
            # Gateways report once a second, so shorter steps would alternate between zero and double values.
            while before + 1 < after and samples[after].at - samples[before + 1].at >= SMOOTHED_S:
                before += 1
            rate, late = rates(samples[before], samples[after]), latencies(samples[before], samples[after])
            values = (
                round(samples[after].at, 3), rate["requests_s"], rate["refused_s"], rate["tokens_s"],
                _milli(late["p50"]), _milli(late["p99"]),
            )  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return columns

    async def _fresh(self) -> None:
        self._watched_at = self._clock()
        self._woken.set()
        if not self._samples or self._clock() - self._samples[-1].at >= FRESH_S:
            await self._sample()

    async def _sample(self) -> None:
        async with self._taking:
            now = self._clock()
            if self._samples and now - self._samples[-1].at < FRESH_S:
                return
            try:
                sample = sample_of(await self._snapshot(), now)
            except Exception:  # noqa: BLE001  # a page without numbers is better than no page
                _log.warning("no sample", exc_info=True)
                return
            if self._samples and sample.requests < self._samples[-1].requests:
                self._samples.clear()  # counted again: what was before says nothing of it
            self._samples.append(sample)

    def _since(self, seconds: float) -> MetricSample:
        """Return the latest sample that is at least `seconds` old, else the oldest one."""
        edge = self._samples[-1].at - seconds
        return next((sample for sample in reversed(self._samples) if sample.at <= edge), self._samples[0])


def sample_of(snapshot: Snapshot, at: float) -> MetricSample:
    reasons = Counter[str]()
    for _, _, reason, count in snapshot.get("requests", ()):
        reasons[reason] += count
    requests = reasons.total()
    del reasons[""]
    return MetricSample(
        at,
        requests,
        sum(count for _, kind, count in snapshot.get("tokens", ()) if kind == "total"),
        reasons,
        snapshot.get("request_seconds", {}).get("buckets", ()),
        snapshot.get("overhead_seconds", {}).get("buckets", ()),
        snapshot.get("bounds", ()),
        {name: snapshot[name] for name in FACTS if name in snapshot},
    )


def rates(before: MetricSample, after: MetricSample) -> dict[str, float]:
    """Return events per second between two samples; zero if they have the same time."""
    seconds = after.at - before.at
    more = {
        "requests_s": after.requests - before.requests,
        "refused_s": after.refused - before.refused,
        "tokens_s": after.tokens - before.tokens,
    }
    return {name: round(max(0, n) / seconds, 3) if seconds > 0 else 0.0 for name, n in more.items()}


def latencies(before: MetricSample, after: MetricSample) -> dict[str, float | None]:
    """Return latency quantiles of the requests between two samples, in seconds; None without requests."""
    latencies_: dict[str, float | None] = {}
    for prefix, new, old in (
        ("", after.request_buckets, before.request_buckets),
        ("overhead_", after.overhead_buckets, before.overhead_buckets),
    ):
        counts = [max(0, n - earlier) for n, earlier in zip_longest(new, old[: len(new)], fillvalue=0)]
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            latencies_[prefix + label] = quantile_of(counts, after.bounds, share)
    return latencies_


def _reasons(before: MetricSample, after: MetricSample) -> list[tuple[str, int, int]]:
    """Return refusals by reason: in the last minute and since the start, most frequent first."""
    reasons = [(name, count - before.reasons.get(name, 0), count) for name, count in after.reasons.items()]
    return sorted(reasons, key=lambda reason: (-reason[1], -reason[2], reason[0]))[:REASONS_MAX]


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
