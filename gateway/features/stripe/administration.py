"""The history of hand-overs in the console, and the endpoint for Stripe's events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.console.home import ConsoleShell, query
from gateway.admin.console.timeline import TimelineEntry, moment
from gateway.admin.http.callers import take_place
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Command
from gateway.errors import CollectorUnavailable, NotFound
from gateway.features.stripe.handover import (
    COLLECTOR,
    DONE,
    KINDS,
    CheckoutPayment,
    CollectionStatus,
    PaymentReturn,
)
from gateway.features.stripe.keeper import api_of, is_used
from gateway.features.stripe.settings import StripeSettings
from gateway.run.keeper_parts import AdminParts, Routes

if TYPE_CHECKING:
    from persistence.store import Store


async def handed_over(desk: ConsoleShell, invoice_id: int) -> list[TimelineEntry]:
    """Return what happened with an invoice at Stripe, for the invoice's history in the console."""
    events = []
    handed, _ = await desk.operations["handovers"].list(query(len(KINDS), invoice_id=invoice_id))
    for handover in handed:
        title = f"Stripe has {handover['remote']}" if handover["state"] == DONE else "For Stripe"
        what = f"{title}: {str(handover['kind']).replace('_', ' ')}"
        at = moment(handover["done_at"] or handover["created_at"])
        events.append(TimelineEntry(at, what, str(handover["state"]), f"/handovers/{handover['id']}"))
    return events


PATH = "/stripe/events"
SIGNATURE = "Stripe-Signature"
Told = CollectionStatus | PaymentReturn | CheckoutPayment | None
Reader = Callable[[bytes, str], Told]
LookUp = Callable[[PaymentReturn], Awaitable[Sequence[CollectionStatus]]]


def mount_events(
    read: Reader | None, look_up: LookUp | None, app: web.Application, ports: AdminPorts, _: str
) -> None:
    """`POST /stripe/events`: Stripe's webhook events on invoices and payments, authenticated by signature.

    Without the webhook secret `read` is None, and the path answers 404. `look_up` finds the invoices of a
    refund; it is None without an API key.
    """

    async def take(request: web.Request) -> web.Response:
        if read is None:
            raise NotFound
        notice = read(await request.read(), request.headers.get(SIGNATURE, ""))
        await take_place(request, None)
        taken = any([await collected(ports.store, status) for status in await statuses_of(notice)])
        return answer(200, {"taken": taken})

    async def statuses_of(notice: Told) -> Sequence[CollectionStatus | CheckoutPayment]:
        if notice is None:
            return ()
        if not isinstance(notice, PaymentReturn):
            return (notice,)
        if look_up is None:
            raise CollectorUnavailable(
                "Without TOLLKEEPER_STRIPE_API_KEY nobody knows which invoice it is about."
            )
        return await look_up(notice)

    app.router.add_post(PATH, take)


async def collected(store: Store, status: CollectionStatus | CheckoutPayment) -> bool:
    """Store Stripe's report about a purchase or an invoice; return False if it is about none of ours."""
    resource = "checkouts" if isinstance(status, CheckoutPayment) else "handover-events"
    taken = Command(resource, "take", COLLECTOR, str(uuid4()), lambda _: {}, None, {"told": status})
    with suppress(NotFound):
        await store.write(taken)
        return True
    return False


def routes(parts: AdminParts) -> Routes:
    """Return the routes for Stripe's events. The webhook secret enables events, the API key look-ups."""
    settings, own = parts.settings, parts.settings.select(StripeSettings)
    read, look_up, aclose, checkout = None, None, None, None
    if is_used(settings):
        from gateway.features.stripe.service import (  # large
            StripeCheckout,
            StripeEvents,
            StripeReturns,
        )

        if own.stripe_webhook_secret:
            read = StripeEvents(parts.later.saying("stripe_webhook_secret")).read
        if own.stripe_api_key:
            api = api_of(settings, parts.later)
            look_up, aclose = StripeReturns(api).look_up, api.aclose
            # Without the secret no payment would be reported.
            if read is not None and own.stripe_checkout_max and settings.links_url:
                checkout = StripeCheckout(api, own.stripe_checkout_max, settings.links_url)
    routes_ = Routes(mount=partial(mount_events, read, look_up), checkout=checkout)
    return routes_ if aclose is None else replace(routes_, aclose=aclose)
