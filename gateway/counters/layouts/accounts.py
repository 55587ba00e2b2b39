"""The keys of what a call moves, and the tiers that price it: both follow from who calls what. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.billing.pricing import IN_MONEY
from gateway.core.billing.tiers import pack_tiers
from gateway.core.model import HoldRequest, Settlement
from gateway.counters.layouts.flags import FLAG_ONE_TIME, FLAG_USES, service_flags
from gateway.counters.redis import keys


def accounts_of(call: HoldRequest | Settlement) -> Iterator[str]:
    """The keys of what a call moves: tenant, organization and API key, its user, its service's month."""
    caller, p, flags = call.caller, call.caller.partition, service_flags(call)
    yield keys.tenant_state(p, caller.tenant_id)
    yield keys.organization_state(p, caller.organization_id)
    yield keys.key_state(p, caller.key_id)
    if call.user:
        yield keys.user_state(p, caller.tenant_id, call.user)
    if flags & (FLAG_ONE_TIME | FLAG_USES):
        in_money = bool(flags & FLAG_USES) and call.service.pricing.ladder == IN_MONEY
        yield keys.activation(p, caller.organization_id, call.service.id, in_money=in_money)


def tiers_of(call: HoldRequest | Settlement) -> tuple[bytes, ...]:
    """The tiers of a service that is priced by them."""
    return (pack_tiers(call.service.pricing.ladder),) if service_flags(call) & FLAG_USES else ()
