"""Credits by model and kind, against a calculation in fractions written by hand."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing import token_prices
from gateway.core.billing.money import NANO, CreditRates, ServicePricing, read_pricing
from gateway.core.billing.price_book import (
    FALLBACK,
    KINDS,
    MODELS_REMEMBERED_MAX,
    cost_nano,
    dearest,
)
from gateway.core.billing.token_prices import token_price

PRICES = {"gpt": 1, "gpt*": 2, "gpt-4o*": 3, "gpt-4o-mini": 4, "*": 5}
LADDER = ServicePricing(per_million={name: CreditRates(input=price) for name, price in PRICES.items()})


@pytest.mark.parametrize(
    ("model", "price"),
    [("gpt", 1), ("gpt-3", 2), ("gpt-4o", 3), ("gpt-4o-mini", 4), ("gpt-4o-minis", 3), ("GPT", 5), ("*", 5)],
)
def test_a_whole_name_counts_first_and_then_the_longest_beginning(model: str, price: int) -> None:
    found = token_price(LADDER, model)
    assert found is not None
    assert found.prices[0] == price * NANO


def test_a_model_that_fits_nothing_has_no_price() -> None:
    assert token_price(ServicePricing(per_million={"gpt*": CreditRates()}), "claude") is None
    assert token_price(ServicePricing(), "claude") is None


def test_of_names_no_more_are_remembered_than_there_is_room_for() -> None:
    for number in range(2 * MODELS_REMEMBERED_MAX):
        token_price(LADDER, f"gpt-{number}")
    assert len(token_prices._found) <= MODELS_REMEMBERED_MAX


AMOUNT = st.none() | st.integers(0, 5_000_000)
COUNTS = st.tuples(*[st.integers(0, 10**6)] * 5)
PARTS = st.tuples(*[st.integers(0, 10**3)] * 5)


@given(
    prices=st.fixed_dictionaries({}, optional={kind: st.integers(0, 10**7) for kind in KINDS}),
    whole=COUNTS,
    parts=PARTS,
    markup=st.integers(1, 10**9),
)
def test_credits_are_exact_to_the_billionth(
    prices: dict[str, int], whole: tuple[int, ...], parts: tuple[int, ...], markup: int
) -> None:
    document = {"per_million": {"*": prices}, "markup": str(Decimal(markup).scaleb(-6))}
    vector = token_price(read_pricing(document), "any")
    assert vector is not None
    input_, read, written, written_1h, output = whole
    reasoning, audio, sound, image, drawn = parts
    input_, output = input_ + audio + image, output + reasoning + sound + drawn

    def each(kind: str) -> Fraction:
        if kind in prices:
            return Fraction(prices[kind])
        return each(FALLBACK[kind]) if kind in FALLBACK else Fraction(0)

    apart = dict(
        zip(
            KINDS,
            (input_ - audio - image, read, written, written_1h, output - reasoning - sound - drawn, *parts),
            strict=True,
        )
    )
    exact = sum(count * each(kind) for kind, count in apart.items()) * Fraction(markup, 10**6) / 10**6 * NANO
    counts = (input_, read, written, written_1h, output, reasoning, audio, sound, image, drawn)
    assert cost_nano(vector, counts) == int(exact + Fraction(1, 2))


@given(one=st.tuples(AMOUNT, AMOUNT, AMOUNT), other=st.tuples(AMOUNT, AMOUNT, AMOUNT), counts=COUNTS)
def test_the_dearest_of_two_is_never_less_than_either(
    one: tuple[int | None, ...], other: tuple[int | None, ...], counts: tuple[int, ...]
) -> None:
    pricing = ServicePricing(
        per_million={
            name: CreditRates(each[0] or 0, each[1] or 0, each[2])
            for name, each in (("a", one), ("b", other))
        }
    )
    found = [token_price(pricing, name) for name in "ab"]
    both = dearest([each for each in found if each is not None])
    whole = (*counts, 0, 0, 0, 0, 0)
    assert cost_nano(both, whole) >= max(cost_nano(each, whole) for each in found if each is not None)
    assert dearest([both]) == both
