"""Calls for contents that an upstream keeps for money by time: what is paid of them is stored, and read.

Such a call is charged when it is made, for all of its time. One that extends the time pays what it adds. So
the size of the contents, and the end of the time that is paid, are stored with their owner.
"""

from __future__ import annotations

from functools import partial

from gateway.core.calls.kept import KeptContents, read_kept, words_of, write_kept
from gateway.core.families.objects import places_of
from gateway.core.families.registry import SHAPES
from gateway.core.wait import OVER
from gateway.errors import CountersUnavailable
from gateway.http.admission import admit, identify, known
from gateway.http.charge import AdmittedCall
from gateway.http.forward import forward
from gateway.http.lists import list_objects
from gateway.http.proxy import proxy
from gateway.http.relay import relay
from gateway.http.server.exchange import Exchange


async def keep_contents(exchange: Exchange) -> None:
    """Make or extend contents that an upstream keeps; other calls on such a route are handled as usual."""
    routed = exchange.head.routed
    shape = None if routed.route is None else SHAPES.get(routed.route.meter)
    if shape is None or not shape.lasts:
        await (list_objects(exchange) if routed.owned is not None and routed.owned.lists else proxy(exchange))
        return
    caller = known(exchange) or await identify(exchange)
    ports, kept = exchange.worker.ports, None
    name, *others = {place.id for place in places_of(routed.family, routed.sent)} or ("",)
    if name and not others:
        kept = read_kept(await ports.objects.noted(name))
        if kept is not None and kept.organization_id != caller.organization_id:
            kept = None
    admitted = await admit(exchange, caller, words_of(ports.refusals.now_ms() // 1000, kept))
    exchange.before_end = partial(_note, admitted, name)
    answer = await forward(exchange, admitted)
    await relay(exchange, admitted, answer)
    await OVER


async def _note(admitted: AdmittedCall, name: str, told: list[str]) -> None:
    """Store what a call pays of contents: those with this `name`, or new ones, whose name was `told`."""
    kept, meter, caller = admitted.call.kept, admitted.meter, admitted.caller
    name = name or (told[0] if told else "")
    tokens = 0 if kept is None or meter is None else kept.tokens or meter.usage().input
    if kept is None or not (name and tokens) or not 200 <= admitted.attempt.status < 300:
        return
    paid = KeptContents(caller.organization_id, admitted.call.model, tokens, kept.until_s)
    try:
        await admitted.worker.ports.objects.note(name, write_kept(paid), kept.until_s)
    except CountersUnavailable:
        return  # nobody knows them then: an extension costs all of its time
