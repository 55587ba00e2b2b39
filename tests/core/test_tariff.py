"""Credits of a use: by the unit, once, by token; never past what is counted exactly."""

from __future__ import annotations

import pytest

from gateway.core.model import INTEGER_MAX, Service, Usage
from gateway.core.pricing import Pricing, TokenPrice
from gateway.core.tariff import credits_of, is_by_token

PRICES = {"small": TokenPrice(3, 15, 1), "large": TokenPrice(input=3_000_000, output=15_000_000)}
UNIT = Service(1, "images", "consumption", credits=6)
ONCE = Service(2, "setup", "consumption", credits=500, one_time=True)
TOKEN = Service(3, "chat", "consumption", credits=6, pricing=Pricing(per_million=PRICES))


@pytest.mark.parametrize(
    ("service", "by_token"),
    [
        (UNIT, False),
        (ONCE, False),
        (TOKEN, True),
        (Service(4, "x", "pay_per_use", pricing=TOKEN.pricing), False),
        (Service(5, "y", "consumption", one_time=True, pricing=TOKEN.pricing), False),
    ],
)
def test_only_consumption_may_be_priced_by_token(service: Service, by_token: bool) -> None:
    assert is_by_token(service) is by_token


@pytest.mark.parametrize(
    ("service", "model", "units", "tokens", "expected"),
    [
        (UNIT, "small", 4, (10, 10, 0), 24),
        (UNIT, "small", 0, (10, 10, 0), 0),
        (ONCE, "small", 4, (0, 0, 0), 500),
        (TOKEN, "small", 4, (1_000_000, 1_000_000, 0), 18),
        (TOKEN, "small", 1, (1, 0, 0), 1),
        (TOKEN, "small", 1, (1_000_000, 0, 1_000_000), 1),
        (TOKEN, "large", 1, (2, 3, 2), 51),
        (TOKEN, "unpriced", 2, (10, 10, 0), 12),
        (Service(4, "x", "pay_per_use", credits=6), "small", 4, (0, 0, 0), 0),
        (Service(5, "y", "subscription", credits=6), "small", 4, (0, 0, 0), 0),
    ],
)
def test_what_a_use_costs(
    service: Service, model: str, units: int, tokens: tuple[int, int, int], expected: int
) -> None:
    read, written, cached = tokens
    assert credits_of(service, model, Usage(read, written, cached, units=units)) == expected


def test_no_use_costs_more_than_is_counted_exactly() -> None:
    assert credits_of(Service(1, "x", "consumption", credits=INTEGER_MAX), "", Usage(units=2)) == INTEGER_MAX
