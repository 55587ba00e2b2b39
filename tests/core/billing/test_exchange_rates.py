"""A price is converted by the rate in force: exactly, and rounded once."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import (
    KINDS,
    PriceBook,
    PriceQualifiers,
    choose_converted,
    converted,
    cost_nano,
    dearest_rate,
    lines,
    read_price,
    without_request,
)
from gateway.core.billing.vector import ExchangeRate, Vector
from tests.core.billing.prices import price_row

PRICES = {"input": "2.5", "cache_read": "1.25", "output": "10", "request": "0.000000007"}
TOOLS = {"web_search": "10"}


def rate(value: str = "0.92", at_ms: int = 0, currency: str = "EUR", base: str = "USD") -> ExchangeRate:
    return ExchangeRate(currency, base, value, at_ms)


def vector(**over: object) -> Vector:
    return read_price(price_row(**PRICES, tools=TOOLS, **over)).vector


def counts(**tokens: int) -> list[int]:
    return [tokens.get(kind, 0) for kind in KINDS]


def half_up(amount: Fraction) -> int:
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


# Written by hand: tokens, uses of web search, rate, and the cost in billionths of the other currency.
BY_HAND = [
    # 1,000 * 2.5 + 200 * 10 = 4,500 millionths and 7 billionths: 4,500,007 * 0.92 = 4,140,006.44
    ({"input": 1_000, "output": 200}, 0, "0.92", 4_140_006),
    # 1 * 1.25 = 1,250 and 7: 1,257 * 0.5 = 628.5, up
    ({"cache_read": 1}, 0, "0.5", 629),
    # 3 searches are 0.03, and 7 billionths: 30,000,007 * 147.123456789 = 4,413,704,733.53...
    ({}, 3, "147.123456789", 4_413_704_734),
    # 2.5 of a million tokens and 7 billionths: 2,500,000,007 * 0.000000001 = 2.500000007
    ({"input": 1_000_000}, 0, "0.000000001", 3),
    # 7 * 0.0714285 = 0.4999995
    ({}, 0, "0.0714285", 0),
]


@pytest.mark.parametrize(("tokens", "searches", "by", "nano"), BY_HAND)
def test_costs_by_a_rate_are_those_of_a_hand(
    tokens: dict[str, int], searches: int, by: str, nano: int
) -> None:
    price = converted(vector(), rate(by))
    assert cost_nano(price, counts(**tokens), {"web_search": searches}) == nano
    assert (price.currency, price.rate, price.price_id) == ("EUR", by, 1)


@given(
    st.lists(st.integers(0, 10**7), min_size=4, max_size=4),
    st.integers(1, 10**12),
    st.sampled_from(("", "flex")),
    st.integers(0, 40),
)
def test_a_cost_is_the_product_rounded_once(
    read: list[int], billionths: int, tier: str, searches: int
) -> None:
    own = vector(service_tiers={"flex": "0.3"}, context_tiers=[{"above": 200_000, "input": "3.333333333"}])
    price = converted(own, rate(f"{billionths / 10**9:.9f}"))
    by = Fraction(price.rate)
    said = dict(zip(("input", "cache_read", "cache_write", "output"), read, strict=True))
    fresh = Fraction("3.333333333") if sum(read[:3]) > 200_000 else Fraction("2.5")
    whole = Fraction(7, 10**9) + sum(
        (Fraction(count, 10**6) * each)
        for count, each in zip(read, (fresh, Fraction("1.25"), fresh, Fraction(10)), strict=True)
    )
    whole = whole * (Fraction("0.3") if tier else 1) + Fraction(10) * searches / 1_000
    found = cost_nano(price, counts(**said), {"web_search": searches}, tier)
    assert found == half_up(whole * by * 10**9)
    shown = sum(
        (Fraction(line.amount) for line in lines(price, counts(**said), {"web_search": searches}, tier)),
        Fraction(0),
    )
    assert abs(shown - whole * by) < Fraction(1, 10**30), "the lines of a quote add up to it"


def test_a_hold_is_no_less_than_the_charge() -> None:
    price = converted(vector(), rate("0.333333333"))
    asks = PriceQualifiers(tools={"web_search": 1})
    held = dearest_rate([price], 7, asks, in_money=True).cost(7, 13)
    assert held >= cost_nano(price, counts(input=7, output=13), {"web_search": 1})


def test_a_call_within_a_call_has_no_price_of_a_call() -> None:
    alone = without_request(converted(vector(), rate("0.5")))
    assert cost_nano(alone, counts()) == 0
    assert cost_nano(alone, counts(input=1_000)) == 1_250_000


def found(book: PriceBook, at_ms: int = 0, currency: str = "EUR", model: str = "m") -> tuple[int, str] | None:
    one = book.vector(model, currency, at_ms)
    return None if one is None else (one.price_id, one.rate)


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


def test_the_rate_and_the_price_in_force_at_its_moment_count() -> None:
    prices = [
        read_price(price_row(id=1, input="1")),
        read_price(price_row(id=2, input="2", effective_from=at(2_000))),
    ]
    rates = [rate("0.9", 1_000), rate("0.8", 3_000), rate("0.7", 4_000, currency="CHF")]
    book = PriceBook(prices, rates)
    told = [found(book, moment) for moment in (0, 999, 1_000, 2_000, 2_999, 3_000, 10**6)]
    assert told == [None, None, (1, "0.9"), (2, "0.9"), (2, "0.9"), (2, "0.8"), (2, "0.8")]
    assert found(book, 10**6, "CHF") == (2, "0.7")
    assert found(book, 10**6, "GBP") is None
    for moment in (0, 1_000, 2_000, 3_000):
        one = choose_converted(prices, rates, "m", "EUR", moment)
        mine = None if one is None or one[1] is None else (one[0].vector.price_id, one[1].rate)
        assert mine == found(book, moment), "a quote says the same"


def test_a_price_in_the_currency_itself_stands_above_every_rate() -> None:
    own = read_price(price_row(id=3, currency="EUR", input="3", source="bundled", effective_from=at(5_000)))
    book = PriceBook([read_price(price_row(id=1, input="1")), own], [rate()])
    assert found(book) == (1, "0.92")
    assert found(book, 5_000) == (3, "")
    assert found(book, currency="USD") == (1, "")


def test_dollars_are_looked_at_before_other_currencies() -> None:
    prices = [
        read_price(price_row(id=1, currency="CHF", input="1")),
        read_price(price_row(id=2, input="1", effective_from=at(9))),
    ]
    book = PriceBook(prices, [rate("1.05", base="CHF"), rate("0.92")])
    assert [found(book, moment) for moment in (0, 9)] == [(1, "1.05"), (2, "0.92")]
