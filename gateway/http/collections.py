"""Collections of stored objects: a request lists one, or makes or changes an object of it.

An upstream may bill an object by time, such as cached contents. The call that makes it pays for all of its
time, and one that extends the time pays what it adds. So what is paid is stored with the object's owner.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from gateway.calls.permit import check_objects
from gateway.core.accounts.cache_payment import CachePayment, read_payment, write_payment
from gateway.core.families.objects import places_of
from gateway.core.wait import OVER
from gateway.errors import CountersUnavailable, ModelNotPriced
from gateway.http.admission import admit, cached_caller, identify
from gateway.http.admitted_call import AdmittedCall
from gateway.http.forward import forward
from gateway.http.lists import list_objects
from gateway.http.proxy import proxy
from gateway.http.relay import relay
from gateway.http.routing.routes import is_lasting
from gateway.http.server.exchange import Exchange


def at_collection(exchange: Exchange) -> Coroutine[Any, Any, None]:
    """List the objects of a collection, or make or change one, which may be metered."""
    routed = exchange.head.routed
    if routed.owned is not None and routed.owned.lists:
        return list_objects(exchange)
    if not is_lasting(routed.route):
        return proxy(exchange)

    async def pay_storage() -> None:
        """Handle a call as `proxy` does, and store how long it has paid for."""
        caller = cached_caller(exchange) or await identify(exchange)
        ports, payment = exchange.worker.ports, None
        name, *others = {place.id for place in places_of(routed.family, routed.sent)} or ("",)
        if name and not others:
            payment = read_payment(await ports.objects.noted(name))
        words = {"now": str(ports.refusals.now_ms() // 1000)}
        if payment is not None and payment.organization_id == caller.organization_id:
            words |= payment.words
        try:
            admitted = await admit(exchange, caller, words)
        except ModelNotPriced:
            if exchange.call is not None:  # an object that is not the caller's is unknown, whatever it costs
                await check_objects(ports.objects, caller, exchange.call, exchange.call.objects.named)
            raise
        exchange.before_end = partial(_note_payment, admitted, name)
        answer = await forward(exchange, admitted)
        await relay(exchange, admitted, answer)
        await OVER

    return pay_storage()


async def _note_payment(admitted: AdmittedCall, name: str, made: list[str]) -> None:
    """Store what a call pays of contents: those with this `name`, or new ones, whose name was `made`.

    Calls may extend contents at the same time. Then each pays what it adds to what the others have paid.
    """
    storage, meter, caller = admitted.call.storage, admitted.meter, admitted.caller
    extends, name = bool(name), name or (made[0] if made else "")
    tokens = 0 if storage is None or meter is None else storage.tokens or meter.usage().input
    if storage is None or not (name and tokens) or not 200 <= admitted.attempt.status < 300:
        return
    payment = CachePayment(caller.organization_id, admitted.call.spec.model, tokens, storage.until_s)
    try:
        before = read_payment(await admitted.worker.ports.objects.note(name, write_payment(payment)))
    except CountersUnavailable:
        return  # nobody knows the payment then: an extension costs all of its time
    if extends and before is not None and before.organization_id == caller.organization_id:
        seconds = min(storage.seconds, storage.until_s - before.until_s)
        admitted.call.storage = replace(storage, seconds=seconds) if seconds > 0 else None
