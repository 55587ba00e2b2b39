"""`/programs`: which gateway workers and keepers run."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.http.auth import admit, require_read
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import REPORTS
from gateway.core.accounts.administration import Row

REPORT = REPORTS["programs"]


def mount_programs(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the report."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORT)
        return web.json_response(await running(mine))

    app.router.add_get(f"{root}/programs", show)


async def running(ports: AdminPorts) -> Row:
    """The report as JSON; `CountersUnavailable` where nobody knows."""
    return REPORT.render(await ports.programs())
