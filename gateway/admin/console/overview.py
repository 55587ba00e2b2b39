"""The first page: what the gateway does now, what was used today, and who used most of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.admin.console.desk import Desk
from gateway.admin.console.live import Live
from gateway.admin.console.sessions import Signed
from gateway.core.accounts.activity import busiest
from gateway.core.accounts.administration import Row
from gateway.errors import CountersUnavailable, StoreUnavailable

BUSIEST = 10
WINDOW_S = 60
TODAY_FRESH_S = 5.0
FIRST_WAIT_S = 0.1


class Today:
    """The day's busiest tenants, looked up every few seconds however many people look.

    Who looks gets what was found last; only the first one waits, and not for long.
    """

    def __init__(self, desk: Desk, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._clock = clock
        self._asked_at = float("-inf")
        self._found: Sequence[Row] | None = None
        self._asking: asyncio.Task[None] | None = None

    async def now(self) -> Sequence[Row]:
        """The tenants that used most today, each with the sums of everybody."""
        if self._clock() - self._asked_at >= TODAY_FRESH_S and (self._asking is None or self._asking.done()):
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._ask())
        if self._found is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=FIRST_WAIT_S)
        return self._found or ()

    async def _ask(self) -> None:
        try:
            self._found = await self._desk.ports.figures.busiest(datetime.now(UTC).date(), BUSIEST)
        except StoreUnavailable:
            self._found = None


class Overview:
    """The pages and fragments of the overview."""

    def __init__(self, desk: Desk, live: Live, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._live = live
        self._today = Today(desk, clock)

    async def show(self, request: web.Request, signed: Signed) -> web.Response:
        """`GET /`."""
        return self._desk.answer(request, signed, "overview.html", **await self._facts())

    async def fragment(self, request: web.Request, signed: Signed) -> web.Response:
        """`GET /live`: the numbers alone, asked for every second."""
        return self._desk.answer(request, signed, "fragment.html", **await self._facts())

    async def history(self, _request: web.Request, _signed: Signed) -> web.Response:
        """`GET /live/history`: columns for the chart."""
        columns = await self._live.history()
        return web.Response(text=json.dumps(columns), content_type="application/json")

    async def _facts(self) -> dict[str, Any]:
        now, most, (well, dependencies) = await asyncio.gather(
            self._live.now(), self._today.now(), self._desk.ports.ready()
        )
        if now["is_known"] and not now["sees_gateways"]:
            now = {**now, **await self._elsewhere()}
        return {
            "now": now,
            "busiest": most,
            "well": well,
            "dependencies": dependencies,
            "at": datetime.now(UTC),
        }

    async def _elsewhere(self) -> dict[str, Any]:
        """What all gateways told Redis of the last minute, in place of what none of this machine did."""
        try:
            counts, seconds = await self._desk.ports.activity.read(WINDOW_S)
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
