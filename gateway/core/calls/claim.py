"""What a call claims of tokens and credits before it is made, and to how much output its hold binds it.

Pure. Under a strict plan the hold in tokens is the call's limit, and where credits are paid by token the hold
in credits is: a call that states no maximum is then sent with one.
"""

from __future__ import annotations

from gateway.core.billing.pricing import ENDLESS
from gateway.core.billing.rate import Asks, TokenRate, dearest_kinds, dearest_rate, prices_within
from gateway.core.billing.vector import NO_COUNTS
from gateway.core.calls.call import Call
from gateway.core.calls.estimate import Estimate
from gateway.core.calls.tariff import Vectors, charge_of, factor_of, is_in_money
from gateway.core.calls.tool_uses import priced_tools, uses_of
from gateway.core.families.registry import OF_METER
from gateway.core.model import Decision, Service


def dearest_of(service: Service, vectors: Vectors, estimate: Estimate, call: Call) -> TokenRate | None:
    """The most a call could cost by its tokens; None where they do not set the price."""
    if not vectors:
        return None
    asks = asks_of(call, vectors, estimate.read)
    return dearest_rate(vectors, estimate.read, asks, factor_of(service), in_money=is_in_money(service))


def claimed(service: Service, rate: TokenRate | None, estimate: Estimate, units: int) -> tuple[int, int, int]:
    """Credits of all a call could use, the least they may be cut to (0: they are held whole), and units."""
    if rate is None:
        credits_, _, units = charge_of(service, (), NO_COUNTS, None, units)
        return credits_, 0, units
    most = max(estimate.read, estimate.ceiling)
    if rate.in_money:
        return 0, 0, rate.seen(most)
    return rate.credits(most), rate.credits(estimate.least) if estimate.least else 0, units


def output_bound(rate: TokenRate | None, call: Call, estimate: Estimate, decision: Decision) -> int | None:
    """The most tokens of one answer that the hold covers; None where nothing binds the call."""
    most = ENDLESS
    if decision.bounded:
        held, weights = decision.held_tokens, decision.weights
        most = held if weights is None else weights.covered(held, estimate.read)
    if rate is not None:
        most = min(most, rate.covered(decision.held_credits))
    return None if most >= ENDLESS else estimate.bound(most, call)


def asks_of(call: Call, vectors: Vectors, read: int = ENDLESS) -> Asks:
    """Which prices a call may have that reads so many tokens: all but what its family excludes.

    Where no request can be read, all. What makes no call of these prices dearer is not looked for.
    """
    document, names, family = call.document, call.names, OF_METER.get(call.meter)
    if document is None or family is None:
        return Asks()
    caches = blobs = sound = tools = False
    for one in vectors:
        tools = tools or bool(one.tools)
        for prices in prices_within(one, read):
            dearest = dearest_kinds(prices)
            caches, blobs = caches or dearest.caches > dearest.text, blobs or dearest.blobs > dearest.text
            sound = sound or dearest.sound > dearest.written
    excluded = family.exclusions
    tiers = {tier for one in vectors for tier in one.service_tiers if not excluded.tier(document, tier)}
    return Asks(
        caches and not excluded.cache(document, names),
        blobs and not (not call.blob_tokens and not call.named and excluded.media(document, names)),
        sound and not excluded.sound(document, names),
        tiers,
        uses_of(call, document, priced_tools(vectors)) if tools else None,
    )
