"""The first page: spend by model and person, budgets with little left, refusals by reason, and faults.

It is at most half a minute old, and computed once for all viewers of the same data. The page of the gateways'
health shows current numbers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin.console import records
from gateway.admin.console.formatting import (
    BudgetUse,
    Chart,
    Outcome,
    budget_selector,
    label_of,
    outcome_of,
    references,
    use_of,
)
from gateway.admin.console.home import CachedAnswer, ConsoleShell, SignedInPerson, query
from gateway.admin.console.lists import FilterControl, find_names, unknown
from gateway.admin.console.reports import (
    PAGES,
    RANGES,
    Live,
    ReportQuery,
    SpendSummary,
    amount_of,
    part_name,
    share_of_spend,
    spent,
)
from gateway.admin.console.screens import SCREENS, menu
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Realm, Row, refused_read
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.refusals import busiest
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.core.billing.outlook import looked_at_since, outlook
from gateway.core.processes import report_availability
from gateway.errors import CountersUnavailable, Forbidden, StoreUnavailable, Unprocessable

BUSIEST = 10
WINDOW_S = 60
TODAY_FRESH_S = 5.0
FIRST_WAIT_S = 0.1
# Spend changes slowly, and summing it takes longer.
SPEND_FRESH_S = 30.0
SPEND_WAIT_S = 1.0
SPEND_ROWS_MAX = 1_000
SPEND_BY = {"model": "By model", "tenant": "By tenant", "user": "By user", "api_key": "By API key"}
PARTS = 6
# Maximum of cached answers for different viewers, ranges and filters.
KEPT_MAX = 64
# Maximum of budgets read to find those with the least left, and of those among them with many accounts.
BUDGETS_READ_MAX = 200
EACH_READ_MAX = 10
BUDGETS_SHOWN = 6
# The newest calls, whose outcomes are counted.
CALLS_READ_MAX = 10_000
OUTCOMES_SHOWN = 8
TROUBLE_COUNTED_MAX = 99
TROUBLE_COUNT_MS_MAX = 200
OUTBOX_LATE_S = 60


class OpenRows(NamedTuple):
    """Rows that wait for a person's decision: their list, the filter that finds them, and a name of one of them.

    The name of several has an s after its first word.
    """

    list: str
    field: str
    value: str | bool
    name: str

    def title(self, count: int) -> str:
        """Return a number of these rows in words."""
        first, _, rest = self.name.partition(" ")
        return f"{_counted(count)} {first}{'s' if count != 1 else ''} {rest}"

    @property
    def address(self) -> str:
        return f"/{self.list}?{self.field}={str(self.value).lower()}"


def _counted(count: int) -> str:
    return f"more than {TROUBLE_COUNTED_MAX}" if count > TROUBLE_COUNTED_MAX else str(count)


TROUBLE = (
    OpenRows("dead-letters", "resolved", False, "call that could not be stored"),
    OpenRows("quarantine", "released", False, "account in quarantine"),
    OpenRows("webhook-deliveries", "state", "failed", "alert that could not be delivered"),
    OpenRows("raise-requests", "status", "open", "request for more of a budget"),
)


async def _waiting(desk: ConsoleShell, names: Collection[str]) -> list[tuple[OpenRows, int]]:
    """Return what waits for a person in the lists with these names, each with the number of its rows."""
    lists = [rows for rows in TROUBLE if rows.list in names]
    counts = await asyncio.gather(
        *(
            desk.operations[rows.list].count(
                query(1, newest_first=False, **{rows.field: rows.value}),
                TROUBLE_COUNTED_MAX,
                TROUBLE_COUNT_MS_MAX,
            )
            for rows in lists
        )
    )
    return [(rows, count) for rows, count in zip(lists, counts, strict=True) if count]


def _menu_lists(desk: ConsoleShell) -> tuple[set[str], set[str]]:
    """Return the names of the viewer's lists: those that the menu begins with, and those below *More*."""
    parts = menu(desk.ports.actor, desk.ports.off).values()
    return {name for part in parts for name, _, _ in part.shown}, {
        name for part in parts for name, _, _ in part.more
    }


# The fields that filter spend, with their resources.
_TARGETS = {"organization_id": "organizations", "tenant_id": "tenants"}


@dataclass(frozen=True, slots=True)
class TightBudget:
    """A budget with little left, and its account with the highest use if it has one for each caller."""

    row: Row
    of: str
    use: BudgetUse | None
    who: str


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """The number of failed calls with the same status and reason."""

    outcome: Outcome
    status: int
    reason: str
    calls: int


class OverviewQuery:
    """The query of the overview: a range of time, and filters of spend; `errors` by field."""

    def __init__(self, typed: Mapping[str, str], realm: Realm | None, errors: Mapping[str, str]) -> None:
        self.realm, self.asked, self.errors = realm, dict(typed), dict(errors)
        self._report = ReportQuery(self.asked, ["model"], datetime.now(UTC))
        self.range = self._report.range
        # Validated here, since a cached query is sent to the store without checks.
        try:
            self.query()
        except Unprocessable as wrong:
            self.errors = dict(wrong.errors) | self.errors

    @classmethod
    async def read(cls, desk: ConsoleShell, request: web.Request) -> Self:
        """Read the query parameters, in which rows may be named."""
        realm = desk.ports.actor.realm
        names = ("range", *(["organization_id"] if realm is None else []), "tenant_id")
        typed = {name: text for name in names if (text := request.query.get(name, "").strip())}
        ids, errors = await find_names(desk, typed, _TARGETS)
        return cls(typed | ids, realm, errors | unknown(request.query, names))

    @property
    def key(self) -> tuple[Realm | None, tuple[tuple[str, str], ...]]:
        return self.realm, tuple(sorted(self.asked.items()))

    def query(self) -> UsageQuery:
        """Return the usage query for this page's time range, by model, with the best interval for a chart."""
        return ReportQuery(self.asked, ["model"], datetime.now(UTC)).query()

    def address(self, path: str = "/", **changes: str) -> str:
        parameters = {name: text for name, text in (self.asked | changes).items() if text}
        return f"{path}?{urlencode(parameters)}" if parameters else path

    def usage(self, group: str) -> str:
        """Return the address of the usage explorer with this page's range and filters, by a group."""
        return self._report.address(group_by=group)

    def calls(self, **filters: str) -> str:
        """Return the address of the list of calls with this page's filters, and more `filters`."""
        parameters = {name: text for name, text in self.asked.items() if name != "range"} | filters
        return f"/calls?{urlencode(parameters)}"

    def file(self) -> str:
        """Return the address of the chart's numbers as CSV."""
        query = self.query()
        return self._report.file(query, ".csv", query.interval)

    def controls(self) -> list[FilterControl]:
        return [
            FilterControl(
                name,
                label_of(name),
                "named",
                self.asked.get(name, ""),
                refers=target,
                error=self.errors.get(name, ""),
            )
            for name, target in _TARGETS.items()
            if self.realm is None or (name == "tenant_id" and self.realm.tenant_id is None)
        ]


class Overview:
    def __init__(self, ports: AdminPorts, live: Live, clock: Callable[[], float]) -> None:
        self._ports = ports
        self._live = live
        self._clock = clock
        self._today: CachedAnswer[Sequence[Row]] = CachedAnswer(
            lambda: ports.figures.busiest(datetime.now(UTC).date(), BUSIEST),
            clock,
            fresh_s=TODAY_FRESH_S,
            wait_s=FIRST_WAIT_S,
        )
        # By viewer and query; the most recently used one is last.
        self._kept: dict[object, CachedAnswer[dict[str, Any]]] = {}

    async def show(self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /?range=7d&tenant_id=5`: the overview page."""
        asked = await OverviewQuery.read(desk, request)
        spend, trouble = await asyncio.gather(self._spent(desk, asked), self._trouble(desk))
        status = 422 if asked.errors else 200
        page_values = self._page_values(desk, asked, spend)
        return desk.answer(request, signed, "overview.html", status, trouble=trouble, **page_values)

    async def spend(self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /spend`: the spend alone, for periodic updates."""
        asked = await OverviewQuery.read(desk, request)
        page_values = self._page_values(desk, asked, await self._spent(desk, asked))
        return desk.answer(request, signed, "spend.html", 422 if asked.errors else 200, **page_values)

    async def health(self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /health`: the gateways' current numbers, and today's busiest tenants."""
        _require_all(desk)
        return desk.answer(request, signed, "health.html", **await self._facts())

    async def fragment(
        self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson
    ) -> web.Response:
        """`GET /live`: the numbers alone, for updates each second."""
        _require_all(desk)
        return desk.answer(request, signed, "fragment.html", **await self._facts())

    async def history(
        self, desk: ConsoleShell, _request: web.Request, _signed: SignedInPerson
    ) -> web.Response:
        """`GET /live/history`: the columns of the live chart as JSON."""
        _require_all(desk)
        columns = await self._live.history()
        return web.Response(text=json.dumps(columns), content_type="application/json")

    async def _facts(self) -> dict[str, Any]:
        now, most, (well, dependencies) = await asyncio.gather(
            self._live.now(), self._today.now(), self._ports.ready()
        )
        if now["is_known"] and not now["sees_gateways"]:
            now = {**now, **await self._elsewhere()}
        return {
            "now": now,
            "busiest": most or (),
            "well": well,
            "dependencies": report_availability(dependencies),
            "at": datetime.now(UTC),
        }

    async def _trouble(self, desk: ConsoleShell) -> list[tuple[str, str]] | None:
        """Return faults and what waits for the viewer, each with the address of its page.

        Faults of gateways are for staff alone. None where others have nothing to do.
        """
        shown, folded = _menu_lists(desk)
        waiting = await _waiting(desk, shown | folded)
        open_rows = [(rows.title(count), rows.address) for rows, count in waiting]
        if desk.ports.actor.realm is not None:
            return open_rows or None
        (_, dependencies), now = await asyncio.gather(self._ports.ready(), self._live.now())
        facts = now["facts"]
        troubles = [
            (f"{name} is away", "/health")
            for name, well in report_availability(dependencies).items()
            if not well
        ]
        if facts.get("outbox_oldest_seconds", 0) > OUTBOX_LATE_S:
            troubles.append(("calls wait to be stored", "/health"))
        if facts.get("drift_tokens") or facts.get("drift_credits"):
            troubles.append(("counters and ledger differ", "/reconciliation"))
        return troubles + open_rows

    async def waiting(self, desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /waiting`: the numbers of open rows for the lists in the viewer's menu."""
        shown, folded = _menu_lists(desk)
        try:
            waiting = await _waiting(desk, shown | folded)
        except StoreUnavailable:
            waiting = []  # pages that need the store report this themselves
        hidden = [rows.title(count) for rows, count in waiting if rows.list in folded]
        entries = [(rows.list, _counted(count), rows.title(count)) for rows, count in waiting]
        return desk.answer(request, signed, "waiting.html", waiting=entries, hidden=hidden)

    def _page_values(self, desk: ConsoleShell, asked: OverviewQuery, spend: object) -> dict[str, Any]:
        budgets, actor = SCREENS["budgets"].resource, desk.ports.actor
        return {
            "spend": spend,
            "asked": asked,
            "ranges": RANGES,
            "reads_budgets": refused_read(actor, budgets.name, budgets.access) is None,
        }

    async def _spent(self, desk: ConsoleShell, asked: OverviewQuery) -> object:
        return None if asked.errors else await self._kept_for(desk, asked).now()

    def _kept_for(self, desk: ConsoleShell, asked: OverviewQuery) -> CachedAnswer[dict[str, Any]]:
        """Return the cached spend for everybody with the same rights and query."""
        kept = self._kept.pop(asked.key, None) or CachedAnswer(
            partial(_spend, desk, asked), self._clock, fresh_s=SPEND_FRESH_S, wait_s=SPEND_WAIT_S
        )
        self._kept[asked.key] = kept
        if len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        return kept

    async def _elsewhere(self) -> dict[str, Any]:
        """Return the traffic of the last minute, summed over all gateways, from Redis; {} if there is none.

        It serves a machine without an own gateway.
        """
        try:
            counts, seconds = await self._ports.activity.read(WINDOW_S)
        except CountersUnavailable:
            return {}
        everybody, _ = busiest(counts, 0)
        refused = sum(everybody.refused.values())
        if not everybody.requests + refused or seconds <= 0:
            return {}
        return {
            "is_of_all": True,
            "requests": everybody.requests + refused,
            "requests_s": (everybody.requests + refused) / seconds,
            "tokens_s": everybody.tokens / seconds,
            "refused_s": refused / seconds,
            "reasons": [
                (reason, count, None)
                for reason, count in sorted(everybody.refused.items(), key=lambda pair: (-pair[1], pair[0]))
            ],
        }


def _require_all(desk: ConsoleShell) -> None:
    if desk.ports.actor.realm is not None:
        raise Forbidden("What all gateways do is seen with a token of all organizations.")


async def _spend(desk: ConsoleShell, asked: OverviewQuery) -> dict[str, Any]:
    sums, (parts, chart, totals), budgets, failed = await asyncio.gather(
        _sums(desk.ports, asked),
        _parts(desk.ports, asked),
        _tightest(desk, asked),
        _failed(desk.ports, asked),
    )
    return {
        "sums": sums,
        "parts": parts,
        "chart": chart,
        "requests": sum(int(str(row["requests"])) for row in totals),
        "refused": sum(int(str(row["refused"])) for row in totals),
        "budgets": budgets[:BUDGETS_SHOWN],
        "budgets_read": len(budgets),
        "used_up": sum(budget.use is not None and budget.use.tone == "bad" for budget in budgets),
        "failed": failed,
    }


async def _sums(ports: AdminPorts, asked: OverviewQuery) -> Sequence[tuple[str, Any]]:
    """Return, by currency, the spend of today, of this month, and expected for the month; largest first."""
    now = datetime.now(UTC)
    whole = UsageQuery(
        looked_at_since(now), end_of("day", now), "day", (), asked.query().filters, SPEND_ROWS_MAX
    )
    days: dict[str, dict[date, Decimal]] = {}
    for row in await ports.store.used(whole):
        start, cost, currency = row["start"], row["cost"], str(row["currency"])
        assert isinstance(start, datetime)
        assert isinstance(cost, Decimal)
        days.setdefault(currency, {})[start.astimezone(UTC).date()] = cost
    sums = {currency: outlook(day, now) for currency, day in days.items()}
    return sorted(sums.items(), key=lambda pair: pair[1].month, reverse=True)


async def _parts(
    ports: AdminPorts, asked: OverviewQuery
) -> tuple[list[tuple[str, str, list[dict[str, Any]]]], Chart | None, Sequence[Row]]:
    """Return the spend in the chosen range: tables by group, a chart by model, totals by currency."""
    over_time = asked.query()
    whole = replace(over_time, interval="none", rows_max=PARTS)
    asking = (ports.store.used(replace(whole, groups=(group,))) for group in SPEND_BY if group != "model")
    found, others = await asyncio.gather(_by_model(ports, over_time), asyncio.gather(*asking))
    # If no model has a price, tokens are shown.
    measure = "cost" if any(row["cost"] for row in found.totals) else "tokens"
    sums = {str(row["currency"]): amount_of(row, measure) for row in found.totals}
    parts = [
        (title, group, [_part(row, group, measure, sums) for row in rows])
        for (group, title), rows in zip(SPEND_BY.items(), (found.groups[:PARTS], *others), strict=True)
    ]
    return parts, found.chart, found.totals


async def _by_model(ports: AdminPorts, over_time: UsageQuery) -> SpendSummary:
    """Return the range's spend by model; without a chart if there are too many models."""
    try:
        rows = await spent(ports.store, over_time, "cost")
    except Unprocessable:
        groups = await ports.store.used(replace(over_time, interval="none", rows_max=PARTS))
        totals = await ports.store.used(replace(over_time, interval="none", groups=()))
        return SpendSummary(groups, totals, None)
    is_free = rows.totals and not any(row["cost"] for row in rows.totals)
    return await spent(ports.store, over_time, "tokens") if is_free else rows


def _part(row: Row, group: str, measure: str, sums: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a spend table for the page, with its share of its currency's total in `sums`.

    `measure` is the shared amount: cost or tokens.
    """
    column = GROUPS[group]
    page = PAGES.get(column) if row[column] is not None else None
    return {
        "name": part_name(row, group),
        "href": f"/{page}/{row[column]}" if page else "",
        "cost": row["cost"],
        "tokens": row["tokens"],
        "currency": row["currency"],
        "share": share_of_spend(amount_of(row, measure), sums.get(str(row["currency"]), 0)),
    }


async def _tightest(desk: ConsoleShell, asked: OverviewQuery) -> list[TightBudget]:
    """Return the budgets that were read, those with least left first."""
    own = {name: int(text) for name, text in asked.asked.items() if name != "range"}
    rows, _ = await desk.operations["budgets"].list(query(BUDGETS_READ_MAX, newest_first=False, **own))
    screen = SCREENS["budgets"]
    targets = {name: screen.resource.target(name) for name in SELECTING}
    scopes = [row for row in rows if row["each"] is not None][:EACH_READ_MAX]
    names, *most = await asyncio.gather(
        desk.names(references(screen, rows)), *(records.accounts_of(desk, row, 1) for row in scopes)
    )
    used: list[TightBudget] = []
    for row, accounts in zip(scopes, most, strict=True):
        who, name, use, *_ = next(iter(accounts["accounts"]), ("", "", None))
        used.append(TightBudget(row, budget_selector(row, names, targets), use, name or who))
    used += [
        TightBudget(row, budget_selector(row, names, targets), use_of(row), "")
        for row in rows
        if row["each"] is None
    ]
    return sorted(used, key=lambda budget: -budget.use.used_share if budget.use else 1.0)


async def _failed(ports: AdminPorts, asked: OverviewQuery) -> tuple[list[RefusalCount], bool] | None:
    """Return failures of the range's newest calls by frequency, and whether all calls were read."""
    span = asked.query()
    outcomes = await ports.figures.outcomes(span.since, span.filters, CALLS_READ_MAX)
    if outcomes is None:
        return None
    counts = [
        RefusalCount(
            outcome_of(status := int(str(row["status"]))),
            status,
            str(row["reason"] or ""),
            int(str(row["calls"])),
        )
        for row in outcomes
    ]
    read = sum(count.calls for count in counts)
    failed = sorted((count for count in counts if count.status >= 400), key=lambda count: -count.calls)
    return failed[:OUTCOMES_SHOWN], read < CALLS_READ_MAX
