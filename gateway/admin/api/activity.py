"""`/activity`: the tenants that are busy now, and the reasons of their refused calls, over all gateways."""

from __future__ import annotations

import time
from dataclasses import asdict

from aiohttp import web

from gateway.admin.http.callers import admit
from gateway.admin.http.requests import (
    read_numbers,
    require_read,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import REPORTS
from gateway.core.accounts.refusals import busiest

ACTIVITY_REPORT = REPORTS["activity"]


def mount_activity(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add the report of recent activity to the routes of `app`, below the path `root`."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, ACTIVITY_REPORT)
        asked = read_numbers(ACTIVITY_REPORT.numbers, request.query)
        counts, covered_s = await ports.activity.read(asked["window"])
        waiting_s = None
        if mine.actor.organization_id is None:
            _, oldest_ms = await ports.counters.depth()
            waiting_s = round(max(0.0, time.time() - oldest_ms / 1000), 3) if oldest_ms else None
        else:
            own = await mine.figures.names("tenants", {tenant_id for (tenant_id, _), _ in counts})
            counts = [count for count in counts if count[0][0] in own]
        everybody, tenants = busiest(counts, asked["limit"])
        names = await mine.figures.names("tenants", [busy.tenant_id for busy in tenants])
        items = [{**asdict(busy), "tenant": names.get(busy.tenant_id)} for busy in tenants]
        facts = {**asdict(everybody), "window_s": round(covered_s, 3), "waiting_s": waiting_s, "items": items}
        return web.json_response(ACTIVITY_REPORT.render(facts))

    app.router.add_get(f"{root}/activity", show)
