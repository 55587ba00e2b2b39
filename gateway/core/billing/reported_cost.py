"""The cost of a call by its provider's report, besides that by the price book. Pure.

It is in the report of usage: `cost` (OpenRouter), `cost.total_cost` (Perplexity), `cost_in_usd_ticks` (xAI).
All of them bill in dollars.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from gateway.core.billing.price_book import BASE_CURRENCY, charged
from gateway.core.billing.vector import Vector

BOOK, REPORTED = COSTS = ("book", "reported")
# A reported cost above this is ignored.
COST_DOLLARS_MAX: Final = 100_000
# Two costs of a call differ if it is by more than this share of the larger one.
SHARE_APART: Final = (1, 10)
_TICKS: Final = Decimal(10**10)  # xAI's ticks in a dollar
_SMALLEST: Final = Decimal(1).scaleb(-9)
_NAMED: Final = b'"cost'


class _Total(msgspec.Struct):
    total_cost: Decimal | None = None
    currency: str = BASE_CURRENCY


class _CostDetails(msgspec.Struct):
    upstream_inference_cost: Decimal | None = None


class _Report(msgspec.Struct):
    """The documented fields. With the caller's own key (`is_byok`) another provider bills the rest."""

    cost: Decimal | _Total | None = None
    is_byok: bool | None = None
    cost_details: _CostDetails | None = None
    cost_in_usd_ticks: Decimal | None = None


_read = msgspec.json.Decoder(_Report).decode


class ReportedCost(NamedTuple):
    """The cost of a call by its provider, in nano-dollars. With `decides` it replaces the price book's.

    `rate` is the price of a dollar in `currency`, the organization's. Without a rate the currency is dollars.
    """

    nano: int
    currency: str = BASE_CURRENCY
    rate: str = ""
    decides: bool = False

    def in_currency_of(self, price: Vector | None) -> int | None:
        """Return the reported cost in nano-units of the currency of `price`; None without an exchange rate.

        Without `price`, the currency is that of the report.
        """
        currency = self.currency if price is None else price.currency
        if currency == BASE_CURRENCY:
            return self.nano
        if currency != self.currency or not self.rate:
            return None
        return charged(self.nano, Fraction(self.rate).as_integer_ratio())


def read_cost(report: bytes) -> int | None:
    """Return the cost in a usage report in nano-dollars; None if missing, invalid or implausibly high."""
    if _NAMED not in report:
        return None
    try:
        said = _read(report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    cost = said.cost
    if isinstance(cost, _Total):
        cost = cost.total_cost if cost.currency.upper() == BASE_CURRENCY else None
    if cost is None and said.cost_in_usd_ticks is not None:
        ticks = said.cost_in_usd_ticks
        cost = ticks / _TICKS if ticks.is_finite() else None
    if cost is None or not _is_sane(cost):
        return None
    if said.is_byok:
        beside = None if said.cost_details is None else said.cost_details.upstream_inference_cost
        if beside is None or not _is_sane(beside):
            return None
        cost += beside
    return int(cost.quantize(_SMALLEST, ROUND_HALF_UP).scaleb(9))


def are_apart(one: int, other: int) -> bool:
    """Return whether two costs of a call differ by more than `SHARE_APART` of the larger one."""
    numerator, denominator = SHARE_APART
    return abs(one - other) * denominator > max(one, other) * numerator


def _is_sane(dollars: Decimal) -> bool:
    return dollars.is_finite() and 0 <= dollars <= COST_DOLLARS_MAX
