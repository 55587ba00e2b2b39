"""Running programs: who runs which version, and who is too old for what is stored."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.api import programs
from gateway.admin.console.desk import Desk
from gateway.admin.console.sessions import Signed
from gateway.admin.http.auth import require_read

PROGRAMS_SHOWN_MAX = 500


async def show(desk: Desk, request: web.Request, signed: Signed) -> web.Response:
    """`GET /programs`."""
    require_read(desk.ports.actor, programs.REPORT)
    found = await programs.running(desk.ports)
    items = found["items"]
    assert isinstance(items, list)
    shown = sorted(items, key=lambda one: one["refused"] is None)[:PROGRAMS_SHOWN_MAX]
    return desk.answer(
        request, signed, "programs.html", found=found, items=shown, more=len(items) - len(shown),
        refused=sum(one["refused"] is not None for one in items),
    )  # fmt: skip
