"""Uses in the journal: priced again after a late price, and itemized line by line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gateway.calls.rating import ModelPart, cost_of
from gateway.core.accounts.call_facts import named_unpriced
from gateway.core.billing.hours import decimal_of, factor_at
from gateway.core.billing.money import EXACT, ONE_NANO
from gateway.core.billing.price_book import (
    KINDS,
    CostLine,
    Counts,
    at_factor,
    choose,
    folded,
    lines,
    read_price,
    unpriced_names,
    vector_in,
)
from gateway.core.billing.vector import ModelPrice, Vector
from gateway.core.calls.tariff import of_hour
from gateway.core.model import INTEGER_MAX
from gateway.core.times import began, ms_of

UNEXPLAINED: Final = (
    "the prices of its models do not make up its cost, as where its upstream has a price_factor"
)
UNKNOWN_MODEL: Final = "its price was for all models of a name, and nobody knows for which"
AMENDED: Final = "its charge was amended by hand"


class UseHour(NamedTuple):
    """When a use began and ended (Unix ms), for prices that change by the hour.

    `priced_ms` is which of the two it was charged by, if its price changed by the hour; else 0.
    """

    began_ms: int
    ended_ms: int
    priced_ms: int = 0

    @classmethod
    def of(cls, request_id: str, stored_ms: int, duration_ms: int, priced_ms: int) -> UseHour:
        """Return the times of a use by its id, the time of its row, its duration, and the time of its hour."""
        ids = began(request_id)
        return cls(stored_ms - duration_ms if ids is None else ms_of(ids), stored_ms, priced_ms)

    def charged_by(self, price: ModelPrice | None) -> UseHour:
        """Return these times where the price of the use is known: its `priced_ms` is exact."""
        if not self.priced_ms:
            return self
        if price is not None and price.vector.hours is not None and price.vector.hours.by_end:
            return self._replace(ended_ms=self.priced_ms)
        return self._replace(began_ms=self.priced_ms)


class JournalUse(NamedTuple):
    """A charged use, as the journal and the ledger store it.

    `at_ms` is the time of its charge. `beside` are its parts of other models, as in `CallFacts`.
    """

    model: str
    response_model: str
    currency: str
    exchange_rate: str
    price_id: int
    cost: int
    at_ms: int
    counts: Counts
    tools: Mapping[str, int]
    service_tier: str
    beside: Sequence[tuple[str, int, Counts]] = ()
    hour: UseHour = UseHour(0, 0)


class Rating(NamedTuple):
    """The cost of a use by the prices of today. `left_out` is the reason if the use keeps its cost.

    `priced_ms` and `hour_factor` are as in `CallFacts`.
    """

    cost: int
    price_id: int
    unpriced: str
    left_out: str = ""
    priced_ms: int = 0
    hour_factor: str = ""


class PricesThen:
    """Prices the uses of one currency again, by all prices that were ever set.

    `amends` has the ids of prices that stand in the place of another one, which was never in force then.
    """

    __slots__ = ("_amends", "_book", "_by_id", "_currency", "_named")

    def __init__(
        self, prices: Iterable[ModelPrice], currency: str, amends: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        self._by_id = {price.vector.price_id: price for price in prices}
        self._currency, self._amends = currency, amends
        replaced = set(amends.values())
        self._book = [
            vector
            for price_id, vector in self._by_id.items()
            if vector.vector.currency == currency and price_id not in replaced
        ]
        self._named: dict[str, list[ModelPrice]] = {}

    def _amended_by(self, price_id: int) -> list[int]:
        """Return the ids of the prices in whose place this one stands, the latest first."""
        amended = list[int]()
        at = self._amends.get(price_id)
        while at is not None:
            amended.append(at)
            at = self._amends.get(at)
        return amended

    def rate_again(self, use: JournalUse, ours: int) -> Rating | None:
        """Return the new cost of a use after the price with the id `ours` was added.

        Return None unless tokens of the use were charged by an earlier price of the new price's model, under
        any name of the call. A use whose stored prices do not give its stored cost keeps this cost.
        """
        about = self._by_id[ours]
        use = use._replace(hour=use.hour.charged_by(self._by_id.get(use.price_id)))
        charged: list[tuple[int, tuple[str, ...]]] = [(use.price_id, (use.model, use.response_model))]
        charged += [(price_id, (model,)) for model, price_id, _ in use.beside]
        before = [self._by_id.get(price_id) for price_id, _ in charged]
        in_force = [
            self._prices_at(was, names, use.at_ms, about)
            for was, (_, names) in zip(before, charged, strict=True)
        ]
        now = [price for price, _ in in_force]
        if not any(new is about and old is not about for old, new in zip(before, now, strict=True)):
            was = before[0]
            unsure = was is not None and now[0] is None and about.model.startswith(was.model)
            return Rating(use.cost, use.price_id, "", UNKNOWN_MODEL) if unsure else None
        # The facts do not show whether a part was priced again before.
        without = [before[0], *(price for _, price in in_force[1:])]
        cost, main = self._cost(use, now), now[0]
        known = {self._cost(use, before), self._cost(use, without)}
        if cost is None or main is None or use.cost not in known:
            return Rating(use.cost, use.price_id, "", UNEXPLAINED)
        lacking = unpriced_names(main.vector, use.tools, use.counts, use.service_tier)
        priced_ms, factor = use.hour.priced_ms, ""
        if main.vector.hours is not None:
            priced_ms = use.hour.ended_ms if main.vector.hours.by_end else use.hour.began_ms
            factor = decimal_of(factor_at(main.vector.hours, priced_ms))
        return Rating(cost, main.vector.price_id, named_unpriced(lacking), "", priced_ms, factor)

    def _prices_at(
        self, was: ModelPrice | None, names: tuple[str, ...], at_ms: int, about: ModelPrice
    ) -> tuple[ModelPrice | None, ModelPrice | None]:
        """Return the price in force at `at_ms`, with and without the price `about`.

        It is for the model of `was`, the price that was charged, or both are None if the model is unknown.
        `names` are the names of the model in the call.
        """
        if was is None:
            return None, None
        amended = self._amended_by(about.vector.price_id)
        if was.vector.price_id in amended:
            return about, self._by_id[amended[0]]
        name = was.model
        if was.is_prefix:
            name = next((name for name in map(folded, names) if name.startswith(was.model)), "")
        if not name:
            return None, None
        if name not in self._named:
            self._named[name] = [
                price
                for price in self._book
                if choose([price], name, self._currency, INTEGER_MAX, price.provider)
            ]
        of_name = self._named[name]
        others = [price for price in of_name if price is not about]
        # If only the prices of its upstream's provider explain the earlier price, that provider counts.
        provider, without = "", choose(others, name, self._currency, at_ms)
        of_provider = choose(others, name, self._currency, at_ms, was.provider)
        if without is not was and of_provider is was:
            provider, without = was.provider, was
        return choose(of_name, name, self._currency, at_ms, provider) or was, without or was

    def _cost(self, use: JournalUse, prices: Sequence[ModelPrice | None]) -> int | None:
        """Return the cost of a use in nano-units by these prices; None if one is unknown.

        The first price is that of the use's model, and the others are those of the further models in the
        call.
        """
        vectors = list[Vector]()
        for price in prices:
            own = price is not None and price.vector.currency == use.currency
            if price is None or not (own or use.exchange_rate):
                return None
            vectors.append(_charging(price, use.currency, "" if own else use.exchange_rate, use.hour))
        parts = [
            ModelPart(model, counts, vector)
            for (model, _, counts), vector in zip(use.beside, vectors[1:], strict=True)
        ]
        return cost_of(vectors[0], use.counts, use.tools, use.service_tier, parts)


def _charging(price: ModelPrice, currency: str, rate: str, hour: UseHour) -> Vector:
    """Return the price by which a use is charged: in its currency, and of its hour."""
    vector = vector_in(price, currency, rate)
    return of_hour(vector, hour.began_ms, hour.ended_ms) or vector


class Itemized(NamedTuple):
    """The lines of a cost, and whether their sum is the cost."""

    lines: list[CostLine]
    adds_up: bool


def itemize(call: Mapping[str, Any], price: Mapping[str, Any]) -> Itemized:
    """Return the lines that make up a call's cost, such as input and output tokens.

    `call` is the call in the journal, `price` the row of its price. The result says if the lines add up to
    the cost.
    """
    usage = call["usage"]
    vector = vector_in(read_price(price), str(call["currency"]), str(call["exchange_rate"] or ""))
    if vector.hours is not None and call["hour_factor"]:
        vector = at_factor(vector, Fraction(call["hour_factor"]).as_integer_ratio())
    counts = [usage.get(kind, 0) for kind in KINDS]
    items = lines(vector, counts, usage.get("tools") or {}, str(call["service_tier"] or ""))
    whole = sum((line.amount for line in items), Decimal(0)).quantize(ONE_NANO, "ROUND_HALF_UP", EXACT)
    return Itemized(items, call["cost"] is not None and whole == Decimal(str(call["cost"])))
