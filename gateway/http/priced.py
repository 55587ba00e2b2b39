"""Which prices a call may have: those of all models it names, as they are when it is admitted.

The hold, the charge and the cost go by these, whatever is set while the call runs. Only what has no price at
its admission, where money does not decide, has that of the name which answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.facts import OUTPUT, REASONING
from gateway.core.billing.cost import cost_nano
from gateway.core.billing.vector import Counts, Vector
from gateway.core.calls.answering import Priced, answering, is_model
from gateway.core.calls.call import Call
from gateway.core.calls.tariff import UNPRICED, Vectors, vectors_of
from gateway.core.calls.tool_uses import unpriced_tools
from gateway.core.families.registry import SHAPES
from gateway.core.metering.detail import Detail
from gateway.core.model import Attribution, Caller, Service
from gateway.errors import ModelNotPriced
from gateway.http.ports import Directory, Ports


@dataclass(slots=True)
class Admitted:
    """The prices of an admission at this second: `vectors` by which credits or money are charged, none where
    tokens do not set the price, and of the price book those of each model `named`, the asked one's first.
    """

    vectors: Vectors = UNPRICED
    named: tuple[Priced, ...] = ()
    at_s: float = 0.0
    own: bool = False


NO_PRICES: Final = Admitted()
_NO_PRICE: Final = Priced("", None)
_BY_COST: Final = "its service is charged what it costs"


def admitted_at(
    ports: Ports, caller: Caller, service: Service, said: Attribution, call: Call
) -> tuple[Admitted, CallBudgets | None]:
    """The prices of a call and the budgets it takes from; `ModelNotPriced` where one is missing."""
    budgets = ports.directory.budgets(caller, service.id, said, call) if service.id else None
    return prices_under(ports, caller, service, call, budgets), budgets


def prices_under(
    ports: Ports, caller: Caller, service: Service, call: Call, budgets: CallBudgets | None
) -> Admitted:
    """The prices of a call that takes from these budgets; `ModelNotPriced` where one is missing."""
    budgeted = budgets is not None and MONEY in budgets.enforced
    prices = prices_of(ports.directory, caller, service, call, ports.seconds(), budgeted)
    by_cost, asking = service.pricing.at_cost is not None, budgets if budgeted else None
    if ports.refuse_unpriced or budgeted:
        check_known(prices, call, asking)
    if ports.refuse_unpriced or budgeted or by_cost:
        _check_tools(prices, call, _BY_COST if by_cost else _why(asking))
    return prices


def prices_of(  # noqa: PLR0917  # whose call, of what, and whether budgets of money go by it
    directory: Directory, caller: Caller, service: Service, call: Call, now_s: float, budgeted: bool = False
) -> Admitted:
    """The prices a call may have; `ModelNotPriced` where one decides that nobody says.

    Where money of the organization decides, no price is in another currency than its own.
    """
    pricing, at_cost = service.pricing, service.pricing.at_cost is not None
    own = at_cost or budgeted
    named: tuple[Priced, ...] = ()
    if call.model:
        named = (_book(directory, caller, call.model, own),)
        if call.models_beside:
            beside = [model for model in dict.fromkeys(call.models_beside) if model != call.model]
            named += tuple([_book(directory, caller, model, own) for model in beside])
    if not at_cost and pricing.per_million is None and not pricing.tiers:
        return Admitted(UNPRICED, named, now_s, own)
    book = {one.model: one.vector for one in named}
    vectors = vectors_of(service, (call.model, *call.models_beside), book.get)
    return Admitted(vectors, named, now_s, own)


def in_currency(admitted: Admitted, currency: str) -> tuple[Vector, ...]:
    """The prices of the models that may answer, but for those that are in another currency."""
    found = (one.vector for one in admitted.named)
    return tuple([vector for vector in found if vector is not None and vector.currency == currency])


def price_of(  # noqa: PLR0917  # whose call, at which prices it was admitted, and what came of it
    directory: Directory, caller: Caller, admitted: Admitted, detail: Detail, counts: tuple[int, ...],
    now_s: float,
) -> Priced:  # fmt: skip
    """The price of a call of its admission, now that it is known what answered and how much was used."""
    named, answered = admitted.named, detail.model
    if not named:
        return _NO_PRICE
    found = named[0]
    if len(named) > 1:
        found = answering(named, answered, counts, detail.tools, detail.service_tier)
    if (found.vector is None or found.stands_in) and answered and not admitted.own:
        if answered.lower() == found.model.lower():
            return found
        vector = directory.price(caller, answered, now_s - admitted.at_s)
        if vector is not None:
            return Priced(answered, vector)
    return found


def cost_of(  # noqa: PLR0917  # as `price_of`, whose answer `price` is
    directory: Directory, caller: Caller, admitted: Admitted, price: Priced, detail: Detail, counts: Counts,
    now_s: float,
) -> int | None:  # fmt: skip
    """What a call costs in nano-units; tokens of another model within it cost what that model's do."""
    vector = price.vector
    if vector is None:
        return None
    whole, left = 0, counts
    for model, said in detail.beside:
        part = tuple([min(each, most) for each, most in zip(said, left, strict=True)])
        left = tuple([most - each for each, most in zip(part, left, strict=True)])
        known = [one for one in admitted.named if is_model(model, one.model)]
        own = max(known, key=lambda one: len(one.model)).vector if known else None
        if own is None and model:
            own = directory.price(caller, model, now_s - admitted.at_s, admitted.own)
        if own is not None and own.currency == vector.currency:
            vectors: tuple[Vector, ...] = (own,)
        else:
            vectors = (vector, *in_currency(admitted, vector.currency))
        whole += max(cost_nano(one._replace(request=0), part, tier=detail.service_tier) for one in vectors)
    if detail.beside:  # reasoning is of the output that is left
        left = (*left[:REASONING], min(left[REASONING], left[OUTPUT]), *left[REASONING + 1 :])
    return whole + cost_nano(vector, left, detail.tools, detail.service_tier)


def check_known(admitted: Admitted, call: Call, budgets: CallBudgets | None = None) -> None:
    """`ModelNotPriced` where a model that may answer has no price; it says which of `budgets` asks for one.

    Under a budget of money a call of a model must say which: what its upstream would choose nobody can price.
    """
    if budgets is not None and not call.model and call.meter in SHAPES:
        name = budgets.refusing(MONEY)
        raise ModelNotPriced(f"The budget {name} limits what calls cost, and this one names no model.")
    for one in admitted.named:
        if one.vector is None:
            raise ModelNotPriced(f"The model {one.model} has no price here, and {_why(budgets)}.")


def _check_tools(admitted: Admitted, call: Call, why: str) -> None:
    """`ModelNotPriced` where a tool that the call may use has no price."""
    vectors = [one.vector for one in admitted.named if one.vector is not None]
    found = unpriced_tools(call, vectors)
    if found:
        of = " or ".join([one.model for one in admitted.named])
        raise ModelNotPriced(f"The tool {found[0]} of {of} has no price here, and {why}.", param="tools")


def _why(budgets: CallBudgets | None) -> str:
    if budgets is None:
        return "calls without one are refused"
    return f"the budget {budgets.refusing(MONEY)} limits what calls cost"


def _book(directory: Directory, caller: Caller, model: str, own: bool) -> Priced:
    found: Vector | None = directory.price(caller, model, 0.0, own)
    if found is not None:
        return Priced(model, found)
    found = directory.price_as(caller, model, 0.0, own)
    return Priced(model, found, found is not None)
