"""The flags of a call: one byte that says to `reserve` and `settle` which accounts it moves and how."""

from __future__ import annotations

from gateway.core.accounts.budgets import FLAG_CUT, FLAG_ENFORCE
from gateway.core.calls.tariff import CONSUMPTION, is_by_token
from gateway.core.model import HoldRequest, Settlement

FLAG_USER, FLAG_ONE_TIME, FLAG_COUNTS, FLAG_SUBSCRIPTION, FLAG_USES, FLAG_PAYS = 1, 2, 4, 8, 16, 32
FLAG_BY_TOKEN, FLAG_RAISES = 64, 128
# Of a window of a budget, besides its unit. One that is gone is in no definition any more: it refuses nobody.
WINDOW_ENFORCES, WINDOW_CUTS, WINDOW_GONE = FLAG_ENFORCE, FLAG_CUT, 32


def service_flags(request: HoldRequest | Settlement) -> int:
    """The flag byte both `reserve` and `settle` take, from the service and the caller."""
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
