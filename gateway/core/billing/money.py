"""What use costs: money rounded as currencies are, graduated tiers, credits by token, and at cost.

Pure and exact: money is `Decimal`, tokens and credits are integers. Nothing here knows who
pays, when, or on which invoice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal, localcontext

from gateway.core.layout import Layout

# Which currencies there are, with the decimals of their minor units: ISO 4217, list one of 2026-01-01.
#
# The library `iso4217` has the same table as it is published; a test compares the two. Codes without minor
# units, as gold and those for testing, are no currency that anybody pays in.

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
# Of a code that rows from before have, and that is not of the list.
MINOR_DIGITS_USUAL = 2


MICRO = 1_000_000
NANO = 1_000_000_000
ANY_MODEL = "*"
ENDLESS = 2**53 - 1
ONE = Decimal(1)
ONE_NANO = ONE.scaleb(-9)

# 2**53 units at a price of 12 decimals have 28 digits and more: never round on the way.
EXACT = Context(prec=100)


@dataclass(frozen=True, slots=True)
class PriceTier:
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
class CreditRates:
    """Credits a million tokens of each kind cost; None is what its kind falls back to (`cost.FALLBACK`)."""

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
    """What a call costs by the price book, times `markup`: in money, or in credits, so many to a unit."""

    markup: Decimal = ONE
    credits_per_unit: Decimal | None = None

    @property
    def factor(self) -> tuple[int, int]:
        """What a nano-unit of cost is charged, as an exact fraction."""
        return EXACT.multiply(self.markup, self.credits_per_unit or ONE).as_integer_ratio()


@dataclass(frozen=True, slots=True)
class ServicePricing:
    """The price of a service as it is stored: tiers, credits by model and token kind, at cost, or none.

    `markup` is what credits by token are multiplied by. `currency` is what tiers are in; empty: whatever the
    organization pays in.
    """

    tiers: tuple[PriceTier, ...] = ()
    per_million: Mapping[str, CreditRates] | None = None
    at_cost: CostMarkup | None = None
    markup: Decimal = ONE
    currency: str = ""

    @property
    def ladder(self) -> tuple[PriceTier, ...]:
        """What units cost: those of a call at cost are nano-units of its currency."""
        return self.tiers if self.at_cost is None else IN_MONEY


# Units that are money: a billionth of the currency each, in every quantity.
IN_MONEY = (PriceTier(None, ONE_NANO),)
# As in lua/lib/tiers.lua: whole millionths at any price.
FOLD = 10**15
NO_PRICING = ServicePricing()


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Round half-up (away from zero) to the currency's minor unit: what a person pays."""
    return amount.quantize(
        Decimal(1).scaleb(-MINOR_DIGITS.get(currency, MINOR_DIGITS_USUAL)), ROUND_HALF_UP, EXACT
    )


def whole_credits(nano: int) -> tuple[int, int]:
    """Return credits that cover so many nano-credits, and how many of those they are over."""
    credits_ = -(-nano // NANO)
    return credits_, credits_ * NANO - nano


def times(quantity: int, unit_price: Decimal) -> Decimal:
    """Multiply without rounding."""
    return EXACT.multiply(Decimal(quantity), unit_price)


def read_pricing(document: Mapping[str, object] | None) -> ServicePricing:
    """Read the `pricing` of a service or of an organization's override; None has no price."""
    document = document or {}
    tiers, prices, at_cost = document.get("tiers"), document.get("per_million"), document.get("at_cost")
    return ServicePricing(
        tuple(PriceTier(each.get("up_to"), Decimal(each["unit_price"])) for each in tiers)
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
    """Return a price by kind; `cached` is another name of `cache_read`."""
    return CreditRates(**{"cache_read" if kind == "cached" else kind: each for kind, each in price.items()})


def graduated(tiers: Sequence[PriceTier], already: int, quantity: int) -> list[Portion]:
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


def spread(tiers: Sequence[PriceTier], already: int, quantity: int) -> list[Portion]:
    """Spread units as `graduated` does; below zero they are given back.

    An amount given back beyond a month's first unit is worth the price of the first units.
    """
    if quantity < 0:
        given = spread(tiers, already + quantity, -quantity)
        return [Portion(each.tier, -each.quantity, each.unit_price) for each in given]
    owed = min(quantity, max(0, -already))
    return [
        *(graduated(tiers, -already - owed, owed) if owed else ()),
        *graduated(tiers, max(0, already), quantity - owed),
    ]


def spend_micro(tiers: Sequence[PriceTier], already: int, quantity: int) -> int:
    """Return the cost of `quantity` more units, in millionths of the currency.

    The cost of all units so far is rounded up, and the difference taken: however units are cut into requests,
    the sum is the cost of the whole, at most one millionth above the exact one.
    """
    return _whole_micro(tiers, already + quantity) - _whole_micro(tiers, already)


def folded(units: int) -> int:
    """Return a month's units of money as the counters keep them: they cost the same a `FOLD` further on."""
    return units if units < 2 * FOLD else FOLD + units % FOLD


def _whole_micro(tiers: Sequence[PriceTier], units: int) -> int:
    if units < 0:
        return -_whole_micro(tiers, -units)
    with localcontext(EXACT):
        cost = sum((part.quantity * part.unit_price for part in graduated(tiers, 0, units)), Decimal(0))
        return int((cost * MICRO).to_integral_value(ROUND_CEILING))


# Graduated prices as the scripts take them: a tier is three doubles that hold integers.
#
# The end of the tier (-1: none), and what a unit costs: whole millionths of the currency, and
# millionths of one. So a price may have twelve decimals and nothing is ever rounded but the sum.

DECIMALS = 12
MILLION = 10**6
TIER = Layout("TIER", "f64 up_to whole part")
TIER_BYTES = TIER.size


def pack_tiers(tiers: Sequence[PriceTier]) -> bytes:
    """Return the tiers as an argument; empty where there are none."""
    packed = []
    for tier in tiers:
        price = EXACT.scaleb(tier.unit_price, DECIMALS).to_integral_value(ROUND_CEILING)
        up_to = -1 if tier.up_to is None else tier.up_to
        packed.append(TIER.pack(up_to, *divmod(int(price), MILLION)))
    return b"".join(packed)


def are_money(packed: bytes) -> bool:
    """Return whether units at these tiers are money: billionths of the currency."""
    return packed == _MONEY


def read_tiers(packed: bytes) -> tuple[PriceTier, ...]:
    """Return the tiers of an argument."""
    return tuple(
        PriceTier(
            None if up_to < 0 else int(up_to), Decimal(int(whole) * MILLION + int(part)).scaleb(-DECIMALS)
        )
        for up_to, whole, part in TIER.struct.iter_unpack(packed)
    )


_MONEY = pack_tiers(IN_MONEY)
