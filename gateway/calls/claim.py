"""What a use claims of each limit, and the request that reserves it as a hold."""

from __future__ import annotations

from typing import Final

from gateway.core.accounts.budgets import MONEY, TOKENS
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim, claim_of
from gateway.core.calls.estimate import NO_ESTIMATE, Estimate
from gateway.core.calls.tariff import CallPrices
from gateway.core.model import Caller, HoldRequest, Service
from gateway.errors import InvalidRequest

# The life of a hold until its job is stored; no lease admits it.
OPENING_MS: Final = 60_000


def hold_request(  # noqa: PLR0917  # who asks for what, and what it costs
    caller: Caller, request_id: str, user: str, service: Service, call: CallRequest, estimate: Estimate,
    prices: CallPrices, budgets: CallBudgets | None, units: int, raises: bool, ttl_ms: int = 0,
) -> tuple[CallClaim, HoldRequest]:  # fmt: skip
    """Return what a call claims of each limit, and the request that reserves it as a hold.

    `units` are those that the client states. With `raises`, the request enlarges an existing hold. Raise
    `InvalidRequest` for a background call without a life of its own, `ttl_ms`.
    """
    if call.spec.background and not ttl_ms:
        raise InvalidRequest("background: only a call by itself is made so.", param="background")
    of_budgets = None
    if budgets is not None:
        of_budgets = prices.in_currency(budgets.currency) if MONEY in budgets.units else ()
    hold = "" if budgets is None else budgets.hold
    claim = claim_of(call, service, prices.vectors, estimate, units, of_budgets, hold)
    held = estimate if service.counts_tokens else NO_ESTIMATE
    request = HoldRequest(
        caller, request_id, user, service, held.need, held.ceiling, claim.credits, claim.units, raises,
        held.least, claim.credits_least, held.read, call.input_estimate if held.need else 0, ttl_ms=ttl_ms,
    )  # fmt: skip
    if budgets is not None and claim.budget is not None:
        asks = claim.budget
        request.budgets, request.names = budgets.accounts, budgets.names
        request.money, request.money_most, request.money_least = (
            asks.money, asks.money_most, asks.money_least,
        )  # fmt: skip
        if TOKENS in budgets.units:
            request.budget_tokens, request.budget_tokens_most = asks.budget_tokens, asks.budget_tokens_most
            request.budget_tokens_least = min(estimate.least, asks.budget_tokens)
    return claim, request
