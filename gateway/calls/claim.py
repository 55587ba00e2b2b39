"""What a use claims of each limit, and the request that reserves it as a hold: then it is prepared."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

from gateway.calls.ports import AdmissionPorts
from gateway.calls.terms import AdmissionTerms
from gateway.core.accounts.budgets import MAXIMUM, MONEY, TOKENS
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import CallClaim, claim_of
from gateway.core.calls.estimate import NO_ESTIMATE, Estimate
from gateway.core.calls.tariff import CallPrices
from gateway.core.calls.use_request import UseRequest
from gateway.core.model import Caller, HoldRequest, Service
from gateway.core.value import Value
from gateway.errors import InvalidRequest

# The life of a hold until its job is stored; no lease admits it.
OPENING_MS: Final = 60_000


class Entrance(Protocol):
    """The door that a use comes in by. `is_held`: a request and a slot are reserved, by its head alone."""

    is_held: bool

    def check_paused(self, call: CallRequest) -> None:
        """Raise a `Refusal` if the circuit breaker pauses every upstream that a call may ask."""

    def hold_by_head(self) -> Awaitable[object]:
        """Reserve by the head, unless that is done: no run opens and nothing is told before."""

    def shield(self) -> None:
        """Stop interruptions until the use is admitted or refused."""


class PreparedUse(Value, frozen=True):
    """A use that may begin, with what it would hold; nothing is reserved yet.

    `binds`: its hold may become the limit of its answer.
    """

    asked: UseRequest
    entrance: Entrance
    terms: AdmissionTerms
    claim: CallClaim
    request: HoldRequest
    binds: bool


def prepare(
    ports: AdmissionPorts, asked: UseRequest, entrance: Entrance, terms: AdmissionTerms
) -> PreparedUse:
    """Return a use with the claim of its call, the request for its hold, and whether the hold bounds its answer."""
    call, caller, estimator, binds = asked.call, asked.caller, ports.estimator, False
    service, prices, budgets, _ = terms
    estimate = NO_ESTIMATE
    if service.counts_tokens or prices.vectors or budgets is not None:
        binds = bool(prices.vectors) or caller.tenant_id not in estimator.unbound
        binds = binds or (budgets is not None and budgets.hold == MAXIMUM)
        estimate = estimator.hold(call, caller.organization_id, service.key, caller.key_id, binds=binds)
    claim, request = hold_request(
        caller, asked.id, asked.user, service, call, estimate, prices, budgets, asked.units, False,
        OPENING_MS if call.spec.background else 0,
    )  # fmt: skip
    return PreparedUse(asked, entrance, terms, claim, request, binds)


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
