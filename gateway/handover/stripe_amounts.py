"""Money as Stripe counts it: whole numbers of a currency's smallest unit, of which it has its own idea.

https://docs.stripe.com/currencies: sixteen currencies have no decimals, some of them two by ISO 4217. Two
that have none by it are counted in hundredths, and those with three end in a zero.
"""

from __future__ import annotations

from decimal import Decimal

from gateway.core.billing.currencies import MINOR_DIGITS, MINOR_DIGITS_USUAL

_WITHOUT_DECIMALS = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
_IN_HUNDREDTHS = frozenset(("ISK", "UGX"))


class Unspeakable(ValueError):
    """An amount that Stripe has no number for."""


def to_stripe(amount: Decimal, currency: str) -> int:
    """An amount as Stripe counts it; `Unspeakable` where it has no such amounts."""
    number = amount.scaleb(_digits(currency))
    step = 10 if _digits(currency) == 3 else 100 if currency in _IN_HUNDREDTHS else 1
    if number % step:
        raise Unspeakable(f"Stripe has no amounts such as {currency} {amount.normalize():f}")
    return int(number)


def from_stripe(number: int, currency: str) -> Decimal:
    """The amount that a number of Stripe's stands for."""
    return Decimal(number).scaleb(-_digits(currency))


def _digits(currency: str) -> int:
    if currency in _WITHOUT_DECIMALS:
        return 0
    return 2 if currency in _IN_HUNDREDTHS else MINOR_DIGITS.get(currency, MINOR_DIGITS_USUAL)
