"""Money and prices: rounding by currency, graduated tiers, credits by token, and use at cost.

Pure and exact: money is `Decimal`, tokens and credits are integers. Nothing here knows who pays, when, or on
which invoice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal, localcontext

from gateway.core.layout import Layout

# All currencies, with the decimals of their minor units: ISO 4217, list one of 2026-01-01.
#
# The library `iso4217` has the published table; a test compares the two. Codes without minor units, such as
# gold and codes for testing, are left out: nobody pays in them.

_OF_DIGITS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE "
        "CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD "
        "HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK "
        "MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD "
        "RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
        "USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_DIGITS: Mapping[str, int] = {
    code: digits for digits, codes in _OF_DIGITS.items() for code in codes.split()
}
# Decimals of a code in older rows that is not in the list.
MINOR_DIGITS_USUAL = 2


MICRO = 1_000_000
NANO = 1_000_000_000
ANY_MODEL = "*"
ENDLESS = 2**53 - 1
ONE = Decimal(1)
ONE_NANO = ONE.scaleb(-9)

# 2**53 units at a price of 12 decimals have 28 digits and more: intermediate results are never rounded.
EXACT = Context(prec=100)


@dataclass(frozen=True, slots=True)
class PriceTier:
    """A tier of a graduated price: units up to `up_to` (inclusive; None: no end) cost `unit_price` each."""

    up_to: int | None
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class Portion:
    """Units that fell into one tier. `tier` counts from 0."""

    tier: int
    quantity: int
    unit_price: Decimal


@dataclass(frozen=True, slots=True)
class CreditRates:
    """Credits per million tokens of each kind. None means the rate of the fallback kind (`cost.FALLBACK`)."""

    input: int = 0
    output: int = 0
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None


@dataclass(frozen=True, slots=True)
class CostMarkup:
    """Pricing by the cost of a call times `markup`: in money, or in credits per unit of the currency."""

    markup: Decimal = ONE
    credits_per_unit: Decimal | None = None

    @property
    def factor(self) -> tuple[int, int]:
        """The factor from a nano-unit of cost to nano-units of the charge, as (numerator, denominator)."""
        return EXACT.multiply(self.markup, self.credits_per_unit or ONE).as_integer_ratio()


@dataclass(frozen=True, slots=True)
class ServicePricing:
    """The stored price of a service: tiers, credits by model and kind of token, at cost, or none.

    `markup` multiplies credits by token. `currency` is that of the tiers; empty means the organization's.
    """

    tiers: tuple[PriceTier, ...] = ()
    per_million: Mapping[str, CreditRates] | None = None
    at_cost: CostMarkup | None = None
    markup: Decimal = ONE
    currency: str = ""

    @property
    def ladder(self) -> tuple[PriceTier, ...]:
        """The price tiers for a service's units. If use is charged at cost, units are nano-units of money."""
        return self.tiers if self.at_cost is None else IN_MONEY


# Units that are money: a billionth of the currency each, in every quantity.
IN_MONEY = (PriceTier(None, ONE_NANO),)
# As in lua/lib/spend.lua: whole millionths at any price.
FOLD = 10**15
NO_PRICING = ServicePricing()


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Round half-up (away from zero) to the currency's minor unit."""
    return amount.quantize(
        Decimal(1).scaleb(-MINOR_DIGITS.get(currency, MINOR_DIGITS_USUAL)), ROUND_HALF_UP, EXACT
    )


def whole_credits(nano: int) -> tuple[int, int]:
    """Return the whole credits that cover `nano` nano-credits, and the nano-credits left over."""
    credits_ = -(-nano // NANO)
    return credits_, credits_ * NANO - nano


def times(quantity: int, unit_price: Decimal) -> Decimal:
    """Return the exact product."""
    return EXACT.multiply(Decimal(quantity), unit_price)


def read_pricing(document: Mapping[str, object] | None) -> ServicePricing:
    """Return the pricing in the `pricing` field of a service or an override; None means no price."""
    document = document or {}
    tiers, prices, at_cost = document.get("tiers"), document.get("per_million"), document.get("at_cost")
    return ServicePricing(
        tuple(PriceTier(tier.get("up_to"), Decimal(tier["unit_price"])) for tier in tiers)
        if isinstance(tiers, list)
        else (),
        {model: _token_price(price) for model, price in prices.items()} if isinstance(prices, dict) else None,
        CostMarkup(**{name: Decimal(number) for name, number in at_cost.items() if number is not None})
        if isinstance(at_cost, dict)
        else None,
        Decimal(str(document.get("markup") or ONE)),
        str(document.get("currency") or ""),
    )


def _token_price(price: Mapping[str, int]) -> CreditRates:
    """Return the rates in credits by kind of token. The key `cached` is another name of `cache_read`."""
    return CreditRates(**{"cache_read" if kind == "cached" else kind: rate for kind, rate in price.items()})


def graduated(tiers: Sequence[PriceTier], already: int, quantity: int) -> list[Portion]:
    """Split `quantity` units into portions by price tier, after `already` units of the same month.

    Units beyond the last tier's end cost as much as that tier. Spreading 0 to a and then a to b gives the
    same as spreading 0 to b.
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


def spread(tiers: Sequence[PriceTier], already: int, quantity: int) -> list[Portion]:
    """Split units into portions by price tier, after `already` units; a negative `quantity` gives units back.

    If more is given back than the month had, units below 0 are worth the price of the first units.
    """
    if quantity < 0:
        given = spread(tiers, already + quantity, -quantity)
        return [Portion(portion.tier, -portion.quantity, portion.unit_price) for portion in given]
    owed = min(quantity, max(0, -already))
    return [
        *(graduated(tiers, -already - owed, owed) if owed else ()),
        *graduated(tiers, max(0, already), quantity - owed),
    ]


def spend_micro(tiers: Sequence[PriceTier], already: int, quantity: int) -> int:
    """Return the cost of `quantity` units after `already` others of the month, in currency millionths.

    It is the difference of two costs that are rounded up: of all units, and of those before. So the sum
    over many requests is the cost of all their units together, at most one millionth above the exact one.
    """
    return _whole_micro(tiers, already + quantity) - _whole_micro(tiers, already)


def folded(units: int) -> int:
    """Return a month's units of money as Redis stores them: reduced to a number below 2 × `FOLD`."""
    return units if units < 2 * FOLD else FOLD + units % FOLD


def _whole_micro(tiers: Sequence[PriceTier], units: int) -> int:
    if units < 0:
        return -_whole_micro(tiers, -units)
    with localcontext(EXACT):
        cost = sum((part.quantity * part.unit_price for part in graduated(tiers, 0, units)), Decimal(0))
        return int((cost * MICRO).to_integral_value(ROUND_CEILING))


# Graduated prices as arguments of scripts: a tier is three doubles that hold integers.
#
# The end of the tier (-1: none), and the price of a unit: whole millionths of the currency, and millionths
# of a millionth. So a price may have twelve decimals, and only the sum is rounded.

DECIMALS = 12
MILLION = 10**6
TIER = Layout("TIER", "f64 up_to whole part")
TIER_BYTES = TIER.size


def pack_tiers(tiers: Sequence[PriceTier]) -> bytes:
    """Return the price tiers packed as an argument for the Lua scripts; empty without tiers."""
    packed = []
    for tier in tiers:
        price = EXACT.scaleb(tier.unit_price, DECIMALS).to_integral_value(ROUND_CEILING)
        up_to = -1 if tier.up_to is None else tier.up_to
        packed.append(TIER.pack(up_to, *divmod(int(price), MILLION)))
    return b"".join(packed)


def are_money(packed: bytes) -> bool:
    """Return whether packed tiers price units that are money, in billionths of the currency."""
    return packed == _MONEY


def read_tiers(packed: bytes) -> tuple[PriceTier, ...]:
    """Return the tiers of a packed argument."""
    return tuple(
        PriceTier(
            None if up_to < 0 else int(up_to), Decimal(int(whole) * MILLION + int(part)).scaleb(-DECIMALS)
        )
        for up_to, whole, part in TIER.struct.iter_unpack(packed)
    )


_MONEY = pack_tiers(IN_MONEY)
