"""`/programs`: the running gateway workers and keepers."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.http.callers import admit
from gateway.admin.http.requests import (
    require_read,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import REPORTS
from gateway.core.accounts.administration import (
    Row,
)

PROGRAMS_REPORT = REPORTS["programs"]


def mount_programs(app: web.Application, ports: AdminPorts, root: str) -> None:
    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, PROGRAMS_REPORT)
        return web.json_response(await running_programs(mine))

    app.router.add_get(f"{root}/programs", show)


async def running_programs(ports: AdminPorts) -> Row:
    """Return the programs report as JSON; raise `CountersUnavailable` if the counters cannot be read."""
    return PROGRAMS_REPORT.render(await ports.programs())
