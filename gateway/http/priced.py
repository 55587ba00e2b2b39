"""Which price a call has: of the model that answered, of the one asked for, or of one that stands in."""

from __future__ import annotations

from typing import NamedTuple

from gateway.core.billing.cost import Vector
from gateway.core.calls.call import Call
from gateway.core.calls.tariff import UNPRICED, Vectors, vectors_of
from gateway.core.model import Caller, Service
from gateway.errors import ModelNotPriced
from gateway.http.ports import Directory


class Priced(NamedTuple):
    """A price, None where nobody says one; `stands_in` where it is another model's, as it is configured."""

    vector: Vector | None
    stands_in: bool = False


def price_of(  # noqa: PLR0917  # whose call, at which prices it was admitted, and which model answered
    directory: Directory, caller: Caller, service: Service, admitted: Vectors, call: Call, answered: str,
    ago_s: float,
) -> Priced:  # fmt: skip
    """The price of a call's admission, so many seconds ago; at cost in its payer's own currency alone."""
    asked, at_cost = call.model, service.pricing.at_cost is not None
    if not asked:
        return Priced(None)
    found = directory.price(caller, answered, ago_s, at_cost) if answered and answered != asked else None
    found = found or directory.price(caller, asked, ago_s, at_cost)
    if found is not None:
        return Priced(found)
    found = directory.price_as(caller, asked, ago_s, at_cost)
    if found is None and at_cost and admitted:  # taken back meanwhile
        return Priced(admitted[0])
    return Priced(found, found is not None)


def prices_of(directory: Directory, caller: Caller, service: Service, call: Call) -> tuple[Vector, ...]:
    """The prices by which a call is charged, of each model that may answer; `ModelNotPriced` without one."""
    pricing = service.pricing
    if pricing.at_cost is None and pricing.per_million is None and not pricing.tiers:
        return UNPRICED
    return vectors_of(
        service, (call.model, *call.models_beside), lambda model: _book(directory, caller, model, True)
    )


def check_known(directory: Directory, caller: Caller, call: Call) -> None:
    """`ModelNotPriced` where a model that may answer has no price."""
    for model in (call.model, *call.models_beside):
        if _book(directory, caller, model, False) is None:
            raise ModelNotPriced(f"The model {model} has no price here.")


def _book(directory: Directory, caller: Caller, model: str, own: bool) -> Vector | None:
    return directory.price(caller, model, 0.0, own) or directory.price_as(caller, model, 0.0, own)
