"""The first page: what is spent and where it leads to, what the gateway does now, and who used most today."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from aiohttp import web

from gateway.admin.console import spending
from gateway.admin.console.desk import Desk
from gateway.admin.console.kept import Kept
from gateway.admin.console.live import Live
from gateway.admin.console.sessions import Signed
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.activity import busiest
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.core.billing.outlook import Outlook, looked_at_since, outlook
from gateway.core.readiness import there
from gateway.errors import CountersUnavailable, Forbidden

BUSIEST = 10
WINDOW_S = 60
TODAY_FRESH_S = 5.0
FIRST_WAIT_S = 0.1
# What is spent moves by the minute, and adding it up takes longer.
SPEND_FRESH_S = 30.0
SPEND_WAIT_S = 1.0
SPEND_ROWS_MAX = 1_000
SPEND_BY = {"model": "By model", "tenant": "By tenant", "api_key": "By API key"}
PARTS = 8
# Organizations whose sums are kept, beside those of all.
OWNERS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Sums:
    """What pages of one organization, or of all, show for a while."""

    today: Kept[Sequence[Row]]
    spend: Kept[dict[str, Any]]


class Overview:
    """The pages and fragments of the overview."""

    def __init__(self, ports: AdminPorts, live: Live, clock: Callable[[], float]) -> None:
        self._ports = ports
        self._live = live
        self._clock = clock
        # By organization, of those that somebody of one looked at last; None is all of them.
        self._sums: dict[int | None, _Sums] = {}

    async def show(self, desk: Desk, request: web.Request, signed: Signed) -> web.Response:
        """`GET /`."""
        facts, spend = await asyncio.gather(self._facts(desk), self._sums_of(desk).spend.now())
        return desk.answer(request, signed, "overview.html", spend=spend, **facts)

    async def spend(self, desk: Desk, request: web.Request, signed: Signed) -> web.Response:
        """`GET /spend`: what is spent, alone, asked for now and then."""
        return desk.answer(request, signed, "spend.html", spend=await self._sums_of(desk).spend.now())

    async def fragment(self, desk: Desk, request: web.Request, signed: Signed) -> web.Response:
        """`GET /live`: the numbers alone, asked for every second."""
        _require_all(desk)
        return desk.answer(request, signed, "fragment.html", **await self._facts(desk))

    async def history(self, desk: Desk, _request: web.Request, _signed: Signed) -> web.Response:
        """`GET /live/history`: columns for the chart."""
        _require_all(desk)
        columns = await self._live.history()
        return web.Response(text=json.dumps(columns), content_type="application/json")

    async def _facts(self, desk: Desk) -> dict[str, Any]:
        """What everything does now, and who used most today; of one organization the latter alone."""
        today = self._sums_of(desk).today
        if _owner(desk) is not None:
            return {"now": None, "busiest": await today.now() or ()}
        now, most, (well, dependencies) = await asyncio.gather(
            self._live.now(), today.now(), self._ports.ready()
        )
        if now["is_known"] and not now["sees_gateways"]:
            now = {**now, **await self._elsewhere()}
        return {
            "now": now,
            "busiest": most or (),
            "well": well,
            "dependencies": there(dependencies),
            "at": datetime.now(UTC),
        }

    def _sums_of(self, desk: Desk) -> _Sums:
        """What is kept for everybody with the same organization."""
        owner, ports = _owner(desk), desk.ports
        kept = self._sums.pop(owner, None) or _Sums(
            Kept(partial(_busiest, ports), self._clock, fresh_s=TODAY_FRESH_S, wait_s=FIRST_WAIT_S),
            Kept(partial(_spent, ports), self._clock, fresh_s=SPEND_FRESH_S, wait_s=SPEND_WAIT_S),
        )
        self._sums[owner] = kept
        if len(self._sums) > OWNERS_MAX:
            del self._sums[next(iter(self._sums))]
        return kept

    async def _elsewhere(self) -> dict[str, Any]:
        """What all gateways told Redis of the last minute, in place of what none of this machine did."""
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
                for reason, count in sorted(everybody.refused.items(), key=lambda each: (-each[1], each[0]))
            ],
        }


def _owner(desk: Desk) -> int | None:
    return desk.ports.actor.organization_id


def _require_all(desk: Desk) -> None:
    if _owner(desk) is not None:
        raise Forbidden("What all gateways do is seen with a token of all organizations.")


async def _busiest(ports: AdminPorts) -> Sequence[Row]:
    return await ports.figures.busiest(datetime.now(UTC).date(), BUSIEST)


async def _spent(ports: AdminPorts) -> dict[str, Any]:
    """Today, this month and its end in each currency, and who and what the month's spend was for."""
    now, store = datetime.now(UTC), ports.store
    until = end_of("day", now)
    whole = UsageQuery(looked_at_since(now), until, "day", (), {}, SPEND_ROWS_MAX)
    month = replace(whole, since=(until - timedelta(days=1)).replace(day=1), interval="none")
    by_day, *parts = await asyncio.gather(
        store.used(whole),
        *(store.used(replace(month, groups=(group,), rows_max=PARTS)) for group in SPEND_BY),
    )
    days: dict[str, dict[date, Decimal]] = {}
    for row in by_day:
        start, cost, currency = row["start"], row["cost"], str(row["currency"])
        assert isinstance(start, datetime)
        assert isinstance(cost, Decimal)
        days.setdefault(currency, {})[start.astimezone(UTC).date()] = cost
    sums = {currency: outlook(each, now) for currency, each in days.items()}
    return {
        "sums": sorted(sums.items(), key=lambda each: each[1].month, reverse=True),
        "parts": [
            (title, group, [_part(row, group, sums) for row in rows if row["cost"]])
            for (group, title), rows in zip(SPEND_BY.items(), parts, strict=True)
        ],
    }


def _part(row: Row, group: str, sums: Mapping[str, Outlook]) -> dict[str, Any]:
    """One line of what the month's spend was for, with its share of its currency's."""
    column, whole = GROUPS[group], sums[str(row["currency"])].month
    page = spending.PAGES.get(column) if row[column] is not None else None
    return {
        "name": spending.part_name(row, group),
        "href": f"/{page}/{row[column]}" if page else "",
        "cost": row["cost"],
        "currency": row["currency"],
        "share": spending.share(spending.amount_of(row, "cost"), whole),
    }
