"""The first page: what the gateway does now, what was used today, and who used most of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.admin.console.desk import Desk
from gateway.admin.console.live import Live
from gateway.admin.console.sessions import Signed
from gateway.core.administration import Row

BUSIEST = 10
TODAY_FRESH_S = 5.0


@dataclass(slots=True)
class Today:
    """Sums of the day, looked up at most every few seconds however many people look."""

    desk: Desk
    clock: Callable[[], float]
    _at: float = float("-inf")
    _found: tuple[Row, Any] | None = None

    async def now(self) -> tuple[Row, Any]:
        """Everybody's use of this UTC day, and its busiest tenants."""
        if self._found is None or self.clock() - self._at >= TODAY_FRESH_S:
            self._at = self.clock()
            day, figures = datetime.now(UTC).date(), self.desk.ports.figures
            self._found = await asyncio.gather(figures.day(day), figures.busiest(day, BUSIEST))
        return self._found


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
        now, (today, busiest), (well, dependencies) = await asyncio.gather(
            self._live.now(), self._today.now(), self._desk.ports.ready()
        )
        return {
            "now": now,
            "today": today,
            "busiest": busiest,
            "most": max((int(row["tokens"]) for row in busiest), default=0),
            "well": well,
            "dependencies": dependencies,
            "at": datetime.now(UTC),
        }
