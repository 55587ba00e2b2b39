"""`/activity`: which tenants are busy now, and what they are refused for, over all gateways."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from gateway.admin.http.auth import admit, require_read
from gateway.admin.http.listing import read_numbers
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import REPORTS
from gateway.core.accounts.activity import busiest

REPORT = REPORTS["activity"]


def mount_activity(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the report."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORT)
        asked = read_numbers(REPORT.numbers, request.query)
        counts, covered_s = await ports.activity.read(asked["window"])
        if mine.actor.organization_id is not None:
            own = await mine.figures.names("tenants", {tenant_id for (tenant_id, _), _ in counts})
            counts = [each for each in counts if each[0][0] in own]
        everybody, tenants = busiest(counts, asked["limit"])
        names = await mine.figures.names("tenants", [busy.tenant_id for busy in tenants])
        items = [{**asdict(busy), "tenant": names.get(busy.tenant_id)} for busy in tenants]
        facts = {**asdict(everybody), "window_s": round(covered_s, 3), "items": items}
        return web.json_response(REPORT.render(facts))

    app.router.add_get(f"{root}/activity", show)
