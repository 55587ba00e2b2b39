"""What a call that is about to be settled is stored as: what it used and cost, how it went, why it failed."""

from __future__ import annotations

import msgspec

from gateway.core.accounts.facts import NONE, TEXT_CHARACTERS_MAX, CallFacts, named_unpriced
from gateway.core.billing.cost import unpriced
from gateway.core.billing.vector import Counts, Vector
from gateway.core.calls.call import Call
from gateway.core.metering.detail import Detail
from gateway.core.metering.making import AnswerMeter
from gateway.core.model import Usage
from gateway.http.server.exchange import Exchange

NO_DETAIL = Detail()
# Why a call failed whose upstream said so.
UPSTREAM_ERROR = "upstream_error"


def settled_facts(  # noqa: PLR0917  # what a call was, part by part
    exchange: Exchange, call: Call, meter: AnswerMeter | None, usage: Usage, counts: Counts, status: int,
    first_token: float, upstream_id: bytes, price: Vector | None, cost: int | None, reason: str,
) -> CallFacts:  # fmt: skip
    """The facts of a call, whose `first_token` came at this second of the exchange's clock, 0 for never.

    `reason` says why it failed, empty where it did not.
    """
    started = exchange.started
    took = exchange.worker.ports.seconds() - started
    if first_token:
        first_token -= started
    elif call.streamed and meter is not None and meter.produced:
        first_token = took  # all of it came at once
    detail = NO_DETAIL if meter is None else meter.detail
    head = exchange.head
    stated = head.attribution.metadata
    return CallFacts(
        model=call.model,
        response_model=detail.model,
        streamed=call.streamed,
        status=status,
        duration_ms=int(took * 1000),
        first_token_ms=int(first_token * 1000) if first_token else None,
        counts=counts,
        total=usage.total,
        units=usage.units,
        estimated=usage.estimated,
        tools=detail.tools,
        service_tier=detail.service_tier,
        cost=cost,
        currency="" if price is None else price.currency,
        price_id=0 if price is None else price.price_id,
        route=exchange.routed.label,
        session=head.attribution.session,
        upstream_request_id=upstream_id[:TEXT_CHARACTERS_MAX].decode("latin-1"),
        metadata=msgspec.Raw(stated) if stated else NONE,
        unknown=msgspec.Raw(detail.unknown) if detail.unknown else NONE,
        reason=reason or (UPSTREAM_ERROR if status >= 400 else ""),
        unpriced=named_unpriced(unpriced(price, detail.tools)) if price is not None and detail.tools else "",
    )
