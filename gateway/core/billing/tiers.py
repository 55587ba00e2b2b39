"""Graduated prices as the scripts take them: a tier is three doubles that hold integers.

The end of the tier (-1: none), and what a unit costs: whole millionths of the currency, and
millionths of one. So a price may have twelve decimals and nothing is ever rounded but the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

from gateway.core.billing.pricing import EXACT, IN_MONEY, Tier
from gateway.core.layout import Layout

DECIMALS = 12
MILLION = 10**6
TIER = Layout("TIER", "f64 up_to whole part")
TIER_BYTES = TIER.size


def pack_tiers(tiers: Sequence[Tier]) -> bytes:
    """The tiers as an argument; empty where there are none."""
    packed = []
    for tier in tiers:
        price = EXACT.scaleb(tier.unit_price, DECIMALS).to_integral_value(ROUND_CEILING)
        up_to = -1 if tier.up_to is None else tier.up_to
        packed.append(TIER.pack(up_to, *divmod(int(price), MILLION)))
    return b"".join(packed)


def are_money(packed: bytes) -> bool:
    """Whether units at these tiers are money: billionths of the currency."""
    return packed == _MONEY


def read_tiers(packed: bytes) -> tuple[Tier, ...]:
    """The tiers of an argument."""
    return tuple(
        Tier(None if up_to < 0 else int(up_to), Decimal(int(whole) * MILLION + int(part)).scaleb(-DECIMALS))
        for up_to, whole, part in TIER.struct.iter_unpack(packed)
    )


_MONEY = pack_tiers(IN_MONEY)
