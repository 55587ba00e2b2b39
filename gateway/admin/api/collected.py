"""`POST /stripe/events`: what Stripe tells of invoices. Its signature is its credential, not a token."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http.server import IDENTIFIED
from gateway.admin.ports import AdminPorts
from gateway.errors import NotFound

PATH = "/stripe/events"
SIGNATURE = "Stripe-Signature"


def mount_collected(app: web.Application, ports: AdminPorts) -> None:
    """Take Stripe's messages in; where no secret of it is set there is nothing at this address."""

    async def take(request: web.Request) -> web.Response:
        if ports.read_collected is None:
            raise NotFound
        told = ports.read_collected(await request.read(), request.headers.get(SIGNATURE, ""))
        request[IDENTIFIED] = True
        ours = told is not None and await ports.store.collected(told)
        return answer(200, {"taken": ours})

    app.router.add_post(PATH, take)
