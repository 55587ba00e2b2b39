"""`POST /stripe/events`: what Stripe tells of invoices and money. Its signature is its credential."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http.auth import take_place
from gateway.admin.ports import AdminPorts
from gateway.core.billing.handover import Collected, Returned
from gateway.errors import CollectorUnavailable, NotFound

PATH = "/stripe/events"
SIGNATURE = "Stripe-Signature"


def mount_collected(app: web.Application, ports: AdminPorts) -> None:
    """Take Stripe's messages in; where no secret of it is set there is nothing at this address."""

    async def take(request: web.Request) -> web.Response:
        if ports.read_collected is None:
            raise NotFound
        told = ports.read_collected(await request.read(), request.headers.get(SIGNATURE, ""))
        await take_place(request, None)
        ours = [await ports.store.collected(each) for each in await _found(ports, told)]
        return answer(200, {"taken": any(ours)})

    app.router.add_post(PATH, take)


async def _found(ports: AdminPorts, told: Collected | Returned | None) -> Sequence[Collected]:
    """What is told of each invoice."""
    if told is None:
        return ()
    if isinstance(told, Collected):
        return (told,)
    if ports.look_up_returned is None:
        raise CollectorUnavailable(
            "Without TOLLKEEPER_STRIPE_API_KEY nobody knows which invoice it is about."
        )
    return await ports.look_up_returned(told)
