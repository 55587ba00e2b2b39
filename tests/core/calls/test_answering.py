"""Which of several models has answered, by the name it gives, and which price is the dearest."""

from __future__ import annotations

import pytest

from gateway.core.billing.price_book import KINDS, Vector
from gateway.core.calls.tariff import PriceMatch, answering, is_model


def priced(model: str, input_: int, output: int = 0, currency: str = "USD", number: int = 1) -> PriceMatch:
    prices = dict.fromkeys(KINDS, 0) | {"input": input_, "output": output}
    return PriceMatch(model, Vector(number, currency, tuple(prices[kind] for kind in KINDS)))


COUNTS = (1_000_000, 0, 0, 0, 10, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answered", "is_it"),
    [
        ("gpt-5", True), ("GPT-5", True), ("gpt-5-2025-08-07", True), ("gpt-5@x", True), ("gpt-5:free", True),
        ("gpt-5.4", False), ("gpt-50", False), ("gpt", False), ("", False), ("my-gpt-5", False),
    ],
)  # fmt: skip
def test_a_name_goes_on_behind_a_separator(answered: str, is_it: bool) -> None:
    assert is_model(answered, "gpt-5") is is_it


def test_the_longest_name_counts() -> None:
    named = (priced("gpt-5", 9), priced("gpt-5-mini", 1))
    assert answering(named, "gpt-5-mini-2025", COUNTS, {}, "") is named[1]
    assert answering(named, "gpt-5-2025", COUNTS, {}, "") is named[0]


def test_where_it_cannot_be_told_the_dearest_by_what_was_used_counts() -> None:
    reads, writes = priced("reads", 10, 1), priced("writes", 1, 10)
    for named in ((reads, writes), (writes, reads)):
        assert answering(named, "other", COUNTS, {}, "") is reads
        assert answering(named, "", (10, 0, 0, 0, 1_000_000, 0, 0, 0, 0, 0), {}, "") is writes


def test_prices_of_another_currency_and_none_are_not_compared() -> None:
    free, none = priced("free", 0, currency="EUR"), PriceMatch("none", None)
    named = (none, free, priced("dear", 10))
    assert answering(named, "", COUNTS, {}, "") is free
    assert answering(named, "none-1", COUNTS, {}, "") is none
    assert answering((none, none), "other", COUNTS, {}, "") is none


def test_one_name_alone_has_answered_whatever_the_answer_says() -> None:
    named = (priced("cheap", 1),)
    assert answering(named, "dear", COUNTS, {}, "") is named[0]
