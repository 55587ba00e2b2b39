"""The one charge of a use: its cost, its facts, its settlement, and its counts.

A use is a call, a turn of a socket, a job or a line of one, a hold of a caller, or an event. Its module
provides the usage (`MeteredUse`) and the terms of its admission (`UseTerms`). Nothing else writes the facts
of a use. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from gateway.calls.rating import NO_PARTS, ModelPart, cost_of, parts_of, price_of, served_tier
from gateway.core.accounts.call_facts import NONE, TEXT_CHARACTERS_MAX, briefly, named_unpriced, write_facts
from gateway.core.accounts.steps import Substitution
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.weights import Weights
from gateway.core.billing.hours import decimal_of
from gateway.core.billing.money import whole_credits
from gateway.core.billing.price_book import (
    NO_COUNTS,
    WHOLES,
    Counts,
    charged,
    find_kind_of_unit,
    is_by_dearest,
    is_paid_by_tokens,
    unpriced_names,
)
from gateway.core.billing.reported_cost import ReportedCost, are_apart
from gateway.core.billing.unbilled import is_billed
from gateway.core.billing.vector import CACHE_HOUR, Vector
from gateway.core.calls.tariff import (
    CONSUMPTION,
    UNPRICED,
    CallPrices,
    PriceOf,
    charge_of,
    factor_of,
    of_hour,
)
from gateway.core.metering.meter import Detail
from gateway.core.model import INTEGER_MAX, Caller, Service, Settlement

NO_DETAIL: Final = Detail()
_NO_TAGS: Final[dict[str, str]] = {}
# The reason of a use whose upstream answered with an error.
UPSTREAM_ERROR: Final = "upstream_error"


@dataclass(slots=True)
class UseTerms:
    """The terms at which a use was admitted: its caller, its prices, and its hold.

    `accounts` are the names of its budgets' accounts, whose money is in `currency`. `weights` are those of
    the plan, and `columns` is the attribution in its settlement. `tags` and `groups` are those of its call. Where a
    step of a budget sent it as another model, `asked_prices` are those of the model that its caller named.
    """

    caller: Caller
    request_id: str
    user: str
    service: Service
    prices: CallPrices
    accounts: tuple[str, ...] = ()
    budgeted: bool = False
    currency: str = ""
    weights: Weights | None = None
    columns: str = ""
    tags: Tags = ()
    groups: tuple[int, ...] = ()
    substitution: Substitution | None = None
    asked_prices: CallPrices | None = None


@dataclass(slots=True)
class MeteredUse:
    """A use that has ended, with its measured amounts. If not `used`, it is free and its hold is released."""

    used: bool
    counts: Counts  # tokens by `KINDS`
    total: int  # tokens to charge
    units: int
    estimated: bool
    detail: Detail  # the rest of the answer
    model: str
    route: str
    family: str  # of its route
    status: int
    metadata: msgspec.Raw
    reason: str = ""
    streamed: bool = False
    duration_ms: int = 0
    first_token_ms: int | None = None
    session: str = ""
    upstream_id: str = ""
    sent: str = ""  # the model's name at the upstream
    measured: Mapping[str, int] | None = None  # uses of tools, if the answer has none
    cost: int | None = None  # nano-units that its caller states, instead of the price book's
    used_ms: int = 0  # time of a use in the past
    at_ms: int = 0  # wall-clock time of the use, if `detail.declined` is not empty
    reported: ReportedCost | None = None  # the provider's own cost
    tiers: tuple[str, ...] = ()  # requested service tiers


@dataclass(slots=True)
class Held:
    """The amounts of a hold by account, and its estimated cost in nano-units."""

    tokens: int
    credits: int
    money: int
    budget_tokens: int
    cost: int


@dataclass(slots=True)
class Counted:
    """The numbers that a worker's metrics count for a use."""

    service: str
    tenant_id: int
    model: str
    family: str
    counts_tokens: bool
    input: int  # tokens
    output: int  # tokens
    total: int  # tokens, if the service counts tokens
    units: int
    credits: int
    estimated: bool
    cost: int | None
    currency: str
    lacks_price: bool = False  # tokens or a tool have no price
    says_more: bool = False  # the provider reported undocumented fields
    contradicted: bool = False  # the content disproves a report
    # the cost by the price book and the reported one, if they differ much
    apart: tuple[int, int] | None = None


@dataclass(slots=True)
class ChargedUse:
    """The charge of a use. `facts` are the values of `CallFacts` in their order."""

    facts: tuple[Any, ...]
    settlement: Settlement
    counted: Counted

    @property
    def cost(self) -> int:
        """The cost of the use in nano-units; 0 if it has no price."""
        return self.counted.cost or 0


def charge(look_up: PriceOf, ended_ms: int, use: MeteredUse, terms: UseTerms) -> ChargedUse:
    """Return the charge of a use that ended at `ended_ms` (Unix ms) by the prices at its admission.

    `ended_ms` may be 0 if the prices do not change by the hour. If a model answered that the call did not name,
    `look_up` finds its price.
    """
    use = _billed_use(use)
    has_uses = bool(use.detail.tools)
    detail, counts, used = _add_measured(use), use.counts, use.used
    prices, tools = terms.prices, detail.tools
    ended_ms = ended_ms or prices.at_ms + use.duration_ms
    prices = prices.of_hour(ended_ms) if prices.hourly else prices
    priced = price_of(look_up, terms.caller, prices, detail, counts, ended_ms, use.sent)
    price = priced.vector
    use = _adapt_to_price(use, detail, price, has_uses)
    parts, cost, told = NO_PARTS, use.cost, use.cost is not None
    currency, price_id, rate, without = "", 0, "", ""
    if price is not None:
        currency, price_id, rate = price.currency, price.price_id, price.rate
        if use.tiers:
            detail = _add_asked_tier(use, price, detail)
        if detail.beside:
            parts = parts_of(look_up, terms.caller, prices, price, detail, counts, ended_ms)
        if not told:
            cost = cost_of(price, counts, tools, detail.service_tier, parts) if used else 0
    said = use.reported if used and not told else None
    reported, apart = (None, None) if said is None else _reported_charge(said, use, price, cost)
    if reported is not None:
        parts, told, price_id = NO_PARTS, True, 0
        cost, currency, rate = reported
    elif told:
        currency, price_id, rate = terms.currency or currency, 0, ""
    elif price is not None:
        without = named_unpriced(
            [
                *unpriced_names(price, tools, counts, detail.service_tier),
                *[part.model for part in parts if part.model and not part.is_own],
            ]
        )
    elif tools:
        without = named_unpriced(tools)
    hour = _hour_of(price if price_id else None, parts, prices, ended_ms)
    facts = _facts_of(
        use, detail, cost, currency, price_id, without, rate, parts, hour, terms,
        None if terms.asked_prices is None
        else _saved_cost(use, detail, terms, cost=cost, currency=currency, ended_ms=ended_ms),
    )  # fmt: skip
    settlement = release(terms)
    settlement.metadata = write_facts(facts if used else briefly(facts))
    if used:
        settlement.charge = True
        _take(settlement, use, terms, cost)
        if terms.budgeted:
            settlement.budget_tokens = use.total
            # Without a price in the currency of its budgets, a use charges no money to them.
            if cost is not None and currency == terms.currency:
                settlement.money = min(cost, INTEGER_MAX)
    counted = _count_use(use, terms, settlement, cost, currency)
    stands_in = priced.stands_in and not told
    counted.lacks_price = without != "" or (use.total > 0 and (cost is None or stands_in))
    counted.says_more, counted.contradicted = detail.says_more, detail.contradicted
    counted.apart = apart
    return ChargedUse(facts, settlement, counted)


def _adapt_to_price(use: MeteredUse, detail: Detail, price: Vector | None, has_uses: bool) -> MeteredUse:
    """Return a use with its tokens by the kinds that its price has.

    If its answer does not report tools (`has_uses`), units are dropped from `detail` where tokens pay for the same.
    """
    if price is None or not use.used:
        return use
    if detail.main_output and "image_output" in price.lacks:
        use = replace(use, counts=detail.count_in_wholes(use.counts))
    if is_by_dearest(price, use.counts):
        use = replace(use, estimated=True)
    if detail.tools and not has_uses:
        for name in [name for name in detail.tools if find_kind_of_unit(name).endswith("input")]:
            if is_paid_by_tokens(price, name, use.counts):
                del detail.tools[name]
    return use


def _hour_of(
    price: Vector | None, parts: tuple[ModelPart, ...], prices: CallPrices, ended_ms: int
) -> tuple[int, str] | None:
    """Return the hour of a use whose prices change by the hour: its time (Unix ms), and the factor then."""
    if price is not None and price.hours is not None:
        return ended_ms if price.hours.by_end else prices.at_ms, decimal_of(price.hours.factor)
    return (prices.at_ms, "") if parts and any(part.vector.hours is not None for part in parts) else None


def _billed_use(use: MeteredUse) -> MeteredUse:
    """Return a use without the attempts that their vendor reports and does not bill."""
    detail, counts = use.detail, use.counts
    if not (use.used and detail.declined):
        return use
    for outcome, part in detail.declined:
        if is_billed(outcome, use.at_ms):
            continue
        unbilled = counts if part is None else part[1]
        counts = tuple([max(0, count - free) for count, free in zip(counts, unbilled, strict=True)])
        if part is not None and part in detail.beside:  # by its value: compiled, a tuple has no identity
            detail.beside.remove(part)
    if counts == use.counts:
        return use
    if not any(counts):
        return replace(use, used=False, counts=NO_COUNTS, total=0, units=0)
    free = sum(use.counts[:WHOLES]) - sum(counts[:WHOLES])
    return replace(use, counts=counts, total=max(0, use.total - free))


def _add_measured(use: MeteredUse) -> Detail:
    """Return the detail of an answer; if it reports no uses of tools, add those that the gateway measured."""
    detail = use.detail
    if use.measured and use.used and not detail.tools:
        detail = detail if detail is not NO_DETAIL else Detail()
        for name, times in use.measured.items():
            if detail.used_tool(name, times) and name == CACHE_HOUR:
                detail.tools[name] = times  # more than a provider may report
    return detail


def _add_asked_tier(use: MeteredUse, price: Vector, detail: Detail) -> Detail:
    """Return the detail of an answer; if it reports no service tier, add the tier that the request named.

    The tier is added only if that does not lower the price.
    """
    if use.used and not detail.service_tier:
        tier = served_tier(price, use.tiers, use.counts, detail.tools)
        if tier:
            detail = detail if detail is not NO_DETAIL else Detail()
            detail.service_tier = tier
    return detail


def _reported_charge(
    said: ReportedCost, use: MeteredUse, price: Vector | None, book: int | None
) -> tuple[tuple[int, str, str] | None, tuple[int, int] | None]:
    """Return the charge by the provider's reported cost, and the costs that differ.

    The charge is the cost with its currency and exchange rate; it is None unless the reported cost decides.
    The second is `book`, the cost by the price book, with the reported one; it is None unless they are far
    apart. If the gateway itself counted tokens, the reported cost is raised to `book`.
    """
    cost = said.in_currency_of(price)
    if cost is None:
        return None, None
    apart = (book, cost) if book is not None and not use.estimated and are_apart(book, cost) else None
    if use.estimated and book is not None:
        cost = max(cost, book)
    if not said.decides:
        return None, apart
    currency = said.currency if price is None else price.currency
    return (cost, currency, said.rate if currency == said.currency else ""), apart


def charge_as_held(use: MeteredUse, terms: UseTerms, held: Held) -> ChargedUse:
    """Return the charge of a use that cannot be read, which is the whole amount `held`."""
    cost = held.cost if terms.currency else None
    facts = _facts_of(use, use.detail, cost, terms.currency, 0, "", "", NO_PARTS, None, terms, None)
    settlement = release(terms)
    settlement.charge, settlement.metadata = True, write_facts(facts)
    settlement.tokens = held.tokens if terms.service.counts_tokens else 0
    settlement.credits, settlement.units = held.credits, use.units
    settlement.money, settlement.budget_tokens = held.money, held.budget_tokens
    counted = _count_use(use, terms, settlement, cost, terms.currency)
    counted.lacks_price = cost is None and use.total > 0
    return ChargedUse(facts, settlement, counted)


def release(terms: UseTerms, hold_ttl_ms: int = 0) -> Settlement:
    """Return the settlement that releases a hold."""
    return Settlement(
        terms.caller, terms.request_id, terms.user, terms.service, False, attribution=terms.columns,
        budgets=terms.accounts, hold_ttl_ms=hold_ttl_ms,
    )  # fmt: skip


def _facts_of(  # noqa: PLR0917  # the values that no use says by itself
    use: MeteredUse, detail: Detail, cost: int | None, currency: str, price_id: int, without: str, rate: str,
    parts: tuple[ModelPart, ...], hour: tuple[int, str] | None, terms: UseTerms, saved: int | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the facts of a use in the order in which the outbox encodes them."""
    return (
        use.model, detail.model, use.streamed, use.status, use.duration_ms, use.first_token_ms,
        use.counts, use.total, use.units, use.estimated, detail.tools, detail.service_tier,
        cost, currency, price_id, use.route, use.session, use.upstream_id[:TEXT_CHARACTERS_MAX],
        use.metadata, msgspec.Raw(detail.unknown) if detail.unknown else NONE,
        "",  # the use corrects no other one
        use.reason or (UPSTREAM_ERROR if use.status >= 400 else ""),
        use.used_ms, without, rate,
        tuple([(part.model, part.vector.price_id, part.counts) for part in parts]) if parts else (), hour,
        dict(terms.tags) if terms.tags else _NO_TAGS, terms.groups,
        None if terms.substitution is None else (*terms.substitution, saved),
    )  # fmt: skip


def _saved_cost(
    use: MeteredUse, detail: Detail, terms: UseTerms, *, cost: int | None, currency: str, ended_ms: int
) -> int | None:
    """Return what a use would have cost more, with the same tokens, as the model that its caller named.

    None if the use has no cost, or that model no price in its `currency`.
    """
    asked = terms.asked_prices
    if terms.substitution is None or asked is None or not asked.named or cost is None or not use.used:
        return None
    price = of_hour(asked.named[0].vector, asked.at_ms, ended_ms)
    if price is None or price.currency != currency:
        return None
    return cost_of(price, use.counts, detail.tools, detail.service_tier) - cost


def _take(settlement: Settlement, use: MeteredUse, terms: UseTerms, cost: int | None) -> None:
    """Set the amounts that a settlement takes from the limits, such as tokens, credits and units.

    `cost` is the cost of the use. A cost that the caller stated replaces the cost of tokens.
    """
    service, weights, counts = terms.service, terms.weights, use.counts
    if use.cost is not None and service.meter == CONSUMPTION and service.pricing.at_cost is not None:
        settlement.credits, settlement.over = whole_credits(charged(use.cost, factor_of(service)))
        settlement.units = use.units
    else:
        vectors = terms.prices.vectors if use.cost is None else UNPRICED
        settlement.credits, settlement.over, settlement.units = charge_of(
            service, vectors, counts, cost, use.units
        )
    settlement.tokens = use.total if service.counts_tokens else 0
    settlement.quota_tokens = None if weights is None else weights.count(counts, use.total)


def _count_use(
    use: MeteredUse, terms: UseTerms, settlement: Settlement, cost: int | None, currency: str
) -> Counted:
    counts, service = use.counts, terms.service
    return Counted(
        service.key, terms.caller.tenant_id, use.model, use.family, service.counts_tokens,
        counts[0] + counts[1] + counts[2] + counts[3], counts[4], use.total, use.units,
        settlement.credits, use.estimated, cost, currency,
    )  # fmt: skip
