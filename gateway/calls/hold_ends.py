"""The end of a hold that a caller created by the API: settled by the stated usage, or released. Pure."""

from __future__ import annotations

import msgspec

from gateway.calls.charge import NO_DETAIL, Counted, MeteredUse, UseTerms, charge
from gateway.core.accounts.budget_amounts import render_amount
from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.call_facts import NONE, read_facts
from gateway.core.accounts.caller_holds import (
    RELEASED,
    UNITS_MAX,
    CallerHold,
    HoldEnd,
    SettleBody,
    money_of,
    usage_of,
)
from gateway.core.billing.price_book import NO_COUNTS, WHOLES
from gateway.core.calls.tariff import NO_PRICES, CallPrices, PriceOf, is_in_money
from gateway.core.metering.meter import Detail
from gateway.core.model import GENERIC, INTEGER_MAX
from gateway.errors import InvalidRequest

_CLIENT_CLOSED = 499


def end_released(hold: CallerHold, route: str, now_ms: int) -> HoldEnd:
    """Return the end of a hold that its caller releases."""
    use = _use(hold, route, now_ms, _CLIENT_CLOSED, NO_DETAIL)
    use.reason = RELEASED
    return _end_unused(hold, use, now_ms)


def end_settled(  # noqa: PLR0917  # a hold, what its caller says, and the prices
    hold: CallerHold, body: SettleBody, detail: Detail | None, prices: CallPrices, look_up: PriceOf,
    route: str, now_ms: int, estimated: bool,
) -> HoldEnd:  # fmt: skip
    """Return the end of a hold by the usage that its caller states; `InvalidRequest` if a value is missing.

    `prices` are those at the hold's creation. `detail` is read from a provider's answer, None without one.
    The use is `estimated` unless a provider reported it.
    """
    service, nothing = hold.service, body.usage is None and body.cost is None and body.units is None
    counts, tools, tier = usage_of(body.usage or {})
    if detail is None:
        detail = Detail()
        detail.tools, detail.service_tier = tools, tier
    use = _use(hold, route, now_ms, body.status, detail)
    if nothing and body.status >= 400:
        end = _end_unused(hold, use, now_ms)
        end.answer = _render_answer(hold, end)
        return end
    if body.usage is None and body.cost is None and (prices.vectors or service.counts_tokens):
        raise InvalidRequest(
            f"The service {service.key} is paid by what was used: say usage or cost.", param="usage"
        )
    use.used, use.counts, use.total, use.estimated = True, counts, sum(counts[:WHOLES]), estimated
    use.at_ms = now_ms
    use.units = 1 if body.units is None else body.units
    use.cost = None if body.cost is None else money_of(body.cost, "cost")
    use.sent = hold.targets[0] if hold.targets else ""
    if hold.call is not None and 200 <= body.status < 300:
        use.measured = hold.call.measured
    made = charge(look_up, now_ms, use, _terms(hold, prices))
    moved = made.settlement
    most = INTEGER_MAX if is_in_money(service) else UNITS_MAX
    if max(moved.credits, moved.units) > most or made.cost > INTEGER_MAX:
        raise InvalidRequest(
            "This comes to more than one call may.", param="usage" if body.usage else "units"
        )
    end = HoldEnd(
        False, True, moved.metadata.decode(), "", moved.tokens, moved.quota_tokens, moved.credits, moved.over,
        moved.units, moved.money, moved.budget_tokens, False, made.counted.lacks_price, made.counted.says_more,
    )  # fmt: skip
    end.answer = _render_answer(hold, end)
    return end


def counted_of(hold: CallerHold, end: HoldEnd) -> Counted | None:
    """Return the use of an ended hold for the metrics of this worker, or None if nothing was charged."""
    facts = read_facts(end.facts.encode()) if end.charge else None
    if facts is None:
        return None
    service, counts = hold.service, facts.counts
    return Counted(
        service.key, hold.tenant_id, hold.model, GENERIC if hold.call is None else hold.call.family,
        service.counts_tokens, sum(counts[: WHOLES - 1]), counts[WHOLES - 1], facts.total, facts.units,
        end.credits, facts.estimated, facts.cost, facts.currency, end.lacks_price, end.says_more,
    )  # fmt: skip


def _use(hold: CallerHold, route: str, now_ms: int, status: int, detail: Detail) -> MeteredUse:
    """Return the use of a hold without amounts, which are set later."""
    call = hold.call
    return MeteredUse(
        False, NO_COUNTS, 0, 0, False, detail, hold.model, route, GENERIC if call is None else call.family,
        status, streamed=call is not None and call.streamed,
        duration_ms=max(0, now_ms - hold.created_ms), session=hold.session,
        metadata=msgspec.Raw(hold.metadata.encode()) if hold.metadata else NONE,
    )  # fmt: skip


def _terms(hold: CallerHold, prices: CallPrices) -> UseTerms:
    return UseTerms(
        hold.caller, hold.id, hold.user, hold.service, prices, hold.budgets, bool(hold.budgets),
        hold.currency, hold.weights, hold.columns, hold.tags, hold.groups,
    )  # fmt: skip


def _end_unused(hold: CallerHold, use: MeteredUse, now_ms: int) -> HoldEnd:
    """Return the end of a hold by a use that costs nothing."""
    made = charge(lambda *_: None, now_ms, use, _terms(hold, NO_PRICES))
    return HoldEnd(use.reason == RELEASED, False, made.settlement.metadata.decode())


def _render_answer(hold: CallerHold, end: HoldEnd) -> str:
    """Return the JSON answer to the caller of an ended hold."""
    facts = read_facts(end.facts.encode())
    assert facts is not None, "they are written above"
    return msgspec.json.encode(
        {
            "id": hold.id,
            "status": facts.status,
            "charged": end.charge,
            "tokens": end.tokens,
            "credits": end.credits,
            "units": facts.units,
            "cost": None if facts.cost is None or not end.charge else render_amount(MONEY, facts.cost),
            "currency": facts.currency or None,
        }
    ).decode()
