"""The keys that a call moves, and the price tiers of its service, from its caller and its service. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.accounts.budgets import FLAG_CUT, FLAG_ENFORCE
from gateway.core.billing.money import IN_MONEY, pack_tiers
from gateway.core.calls.tariff import CONSUMPTION, is_by_token
from gateway.core.model import HoldRequest, Settlement
from gateway.counters.redis import keys

# The flags of a call: one byte that tells `reserve` and `settle` which accounts to move, and how.

FLAG_USER, FLAG_ONE_TIME, FLAG_COUNTS, FLAG_SUBSCRIPTION, FLAG_USES, FLAG_PAYS = 1, 2, 4, 8, 16, 32
FLAG_BY_TOKEN, FLAG_RAISES = 64, 128
# Flags of a budget's window, besides its unit. A window that is gone is in no definition, and refuses no
# call.
WINDOW_ENFORCES, WINDOW_CUTS, WINDOW_GONE = FLAG_ENFORCE, FLAG_CUT, 32


def service_flags(request: HoldRequest | Settlement) -> int:
    """Return the flag byte of a call for `reserve` and `settle`, from its service and user."""
    service = request.service
    flags = FLAG_USER if request.user else 0
    if service.counts_tokens:
        flags |= FLAG_COUNTS
    if service.meter == "subscription":
        flags |= FLAG_SUBSCRIPTION if service.needs_plan else 0
    elif service.meter == CONSUMPTION:
        flags |= FLAG_PAYS | (FLAG_ONE_TIME if service.one_time else 0)
        flags |= FLAG_BY_TOKEN if is_by_token(service) else 0
    else:
        flags |= FLAG_USES
    return flags


def accounts_of(call: HoldRequest | Settlement) -> Iterator[str]:
    """Yield the keys of the accounts that a call changes.

    They are those of the tenant, organization, API key, user, and the service's use.
    """
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
    """Return the packed price tiers of a call's service; () if it has none."""
    return (pack_tiers(call.service.pricing.ladder),) if service_flags(call) & FLAG_USES else ()
