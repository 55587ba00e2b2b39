"""What use costs: money rounded as currencies are, graduated tiers, credits by token.

Pure and exact: money is `Decimal`, tokens and credits are integers. Nothing here knows who
pays, when, or on which invoice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal, localcontext

MICRO = 1_000_000
NANO = 1_000_000_000
ANY_MODEL = "*"
ENDLESS = 2**53 - 1

# Decimals of a currency's minor unit where they are not two (ISO 4217, table A.1).
MINOR_DIGITS: Mapping[str, int] = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV",
         "XAF", "XOF", "XPF"),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip
MINOR_DIGITS_USUAL = 2

# 2**53 units at a price of 12 decimals have 28 digits and more: never round on the way.
EXACT = Context(prec=100)


@dataclass(frozen=True, slots=True)
class Tier:
    """Units up to and including `up_to` (None: without end) cost `unit_price` each."""

    up_to: int | None
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class Portion:
    """Units that fell into one tier, counted from 0."""

    tier: int
    quantity: int
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Credits a million tokens cost; `cached` None is the price of input."""

    input: int = 0
    output: int = 0
    cached: int | None = None

    def credits(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Credits of one request, rounded up once."""
        return whole_credits(self.nano(input_tokens, output_tokens, cached_tokens))[0]

    def nano(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Nano-credits of one request, exact; `cached_tokens` are part of its `input_tokens`.

        A price of p credits a million is p micro-credits a token.
        """
        cached = min(cached_tokens, input_tokens)
        micro = (
            (input_tokens - cached) * self.input + cached * self.cached_price + output_tokens * self.output
        )
        return micro * (NANO // MICRO)

    @property
    def cached_price(self) -> int:
        """What a million cached tokens cost."""
        return self.input if self.cached is None else self.cached

    def dearest(self, other: TokenPrice) -> TokenPrice:
        """Of each kind the dearer price."""
        return TokenPrice(
            max(self.input, other.input),
            max(self.output, other.output),
            max(self.cached_price, other.cached_price),
        )


@dataclass(frozen=True, slots=True)
class TokenRate:
    """What a call under way costs by the tokens seen of it: the first `read` were its input.

    Prices are micro-credits a token.
    """

    read: int
    input: int
    output: int

    def credits(self, tokens: int) -> int:
        """Credits of so many tokens, rounded up."""
        read = min(tokens, self.read)
        return -(-(read * self.input + (tokens - read) * self.output) // MICRO)

    def covered(self, credits_: int) -> int:
        """Return the most tokens so many credits pay; more than any call has where they cost nothing."""
        left = credits_ * MICRO - self.read * self.input
        if left < 0:
            return credits_ * MICRO // self.input
        return self.read + left // self.output if self.output else ENDLESS


@dataclass(frozen=True, slots=True)
class Pricing:
    """The price of a service as it is stored: tiers, or credits by model and token kind; or neither."""

    tiers: tuple[Tier, ...] = ()
    per_million: Mapping[str, TokenPrice] | None = None


NO_PRICING = Pricing()


def minor_digits(currency: str) -> int:
    """Decimals of a currency's minor unit."""
    return MINOR_DIGITS.get(currency, MINOR_DIGITS_USUAL)


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Round half-up (away from zero) to the currency's minor unit: what a person pays."""
    return amount.quantize(Decimal(1).scaleb(-minor_digits(currency)), ROUND_HALF_UP, EXACT)


def whole_credits(nano: int) -> tuple[int, int]:
    """Credits that cover so many nano-credits, and how many of those they are over."""
    credits_ = -(-nano // NANO)
    return credits_, credits_ * NANO - nano


def times(quantity: int, unit_price: Decimal) -> Decimal:
    """Multiply without rounding."""
    return EXACT.multiply(Decimal(quantity), unit_price)


def read_pricing(document: Mapping[str, object] | None) -> Pricing:
    """Read the `pricing` of a service or of an organization's override; None has no price."""
    document = document or {}
    tiers, prices = document.get("tiers"), document.get("per_million")
    return Pricing(
        tuple(Tier(each.get("up_to"), Decimal(each["unit_price"])) for each in tiers)
        if isinstance(tiers, list)
        else (),
        {model: TokenPrice(**price) for model, price in prices.items()} if isinstance(prices, dict) else None,
    )


def graduated(tiers: Sequence[Tier], already: int, quantity: int) -> list[Portion]:
    """Spread `quantity` units over tiers, `already` units of the same month lying below them.

    Units beyond the last tier's end cost what the last tier costs. Spreading 0 to a and then
    a to b comes to the same as spreading 0 to b.
    """
    assert already >= 0
    assert quantity >= 0
    portions: list[Portion] = []
    at, end = already, already + quantity
    for number, tier in enumerate(tiers):
        last = tier.up_to is None or number == len(tiers) - 1
        until = end if last else min(end, tier.up_to or 0)
        if until > at:
            portions.append(Portion(number, until - at, tier.unit_price))
            at = until
    return portions


def spread(tiers: Sequence[Tier], already: int, quantity: int) -> list[Portion]:
    """Spread units as `graduated` does; below zero they are given back.

    What is given back beyond a month's first unit is worth what the first units cost.
    """
    if quantity < 0:
        given = spread(tiers, already + quantity, -quantity)
        return [Portion(each.tier, -each.quantity, each.unit_price) for each in given]
    owed = min(quantity, max(0, -already))
    return [
        *(graduated(tiers, -already - owed, owed) if owed else ()),
        *graduated(tiers, max(0, already), quantity - owed),
    ]


def spend_micro(tiers: Sequence[Tier], already: int, quantity: int) -> int:
    """What `quantity` more units cost, in millionths of the currency.

    The cost of all units so far is rounded up, and the difference taken: however units are cut
    into requests, the sum is the cost of the whole, at most one millionth above the exact one.
    """
    return _whole_micro(tiers, already + quantity) - _whole_micro(tiers, already)


def _whole_micro(tiers: Sequence[Tier], units: int) -> int:
    if units < 0:
        return -_whole_micro(tiers, -units)
    with localcontext(EXACT):
        cost = sum((part.quantity * part.unit_price for part in graduated(tiers, 0, units)), Decimal(0))
        return int((cost * MICRO).to_integral_value(ROUND_CEILING))
