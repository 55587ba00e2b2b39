"""Tiers as the scripts take them: every price that can be set comes back as it was."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.core.billing.money import PriceTier, pack_tiers, read_tiers


@pytest.mark.parametrize(
    "prices", [(), ("0",), ("0.001", "0.0008"), ("0.000000000001", "123456.789012345678"), ("9000000000",)]
)
def test_tiers_survive_the_way(prices: tuple[str, ...]) -> None:
    ends = [*range(1000, 1000 * len(prices), 1000), None]
    tiers = tuple(PriceTier(end, Decimal(price)) for end, price in zip(ends, prices, strict=False))
    assert read_tiers(pack_tiers(tiers)) == tiers
    assert len(pack_tiers(tiers)) == 24 * len(tiers)


def test_what_is_finer_than_twelve_decimals_is_rounded_up() -> None:
    (tier,) = read_tiers(pack_tiers([PriceTier(None, Decimal("0.0000000000001"))]))
    assert tier.unit_price == Decimal("0.000000000001")
