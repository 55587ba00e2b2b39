"""`/calls/{id}/explanation`, by a request id or the id of a row: the steps of a call."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from aiohttp import web

from gateway.admin.api.views import answer, row_id
from gateway.admin.explanation import explain, find_call
from gateway.admin.http import bodies
from gateway.admin.http.callers import admit
from gateway.admin.http.requests import read_once, require_read
from gateway.admin.operations import Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.journal import EXPLANATION
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Row
from gateway.errors import NotFound

# `/calls/{id}/explanation`, by a request id or the id of a row: the steps of a call.
CALLS = RESOURCES["calls"]


def mount_explanations(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add the explanation of a call to the routes of `app`, below the path `root`."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, CALLS)
        bodies.check_body(EXPLANATION.asked, dict(read_once(request.query)))
        steps = await explain(mine, await _called(mine, request))
        explanation = EXPLANATION.out.model_validate({"steps": [asdict(step) for step in steps]})
        return answer(200, explanation.model_dump(mode="json"))

    app.router.add_get(f"{root}/calls/{{id}}/{EXPLANATION.name}", show)


async def _called(ports: AdminPorts, request: web.Request) -> Row:
    """Return the call whose request id or row id is in the path."""
    name = request.match_info["id"]
    if name.isdigit():
        return await Operations(ports, CALLS).show(row_id(request))
    try:
        return await find_call(ports, str(UUID(name)))
    except ValueError:
        raise NotFound from None
