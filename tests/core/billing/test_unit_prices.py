"""What is counted beside tokens: pictures, seconds, characters, pages, searches, containers."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest

from gateway.core.billing.price_book import (
    NO_COUNTS,
    PriceQualifiers,
    converted,
    cost_nano,
    dearest_rate,
    lines,
    read_price,
    unpriced_names,
)
from gateway.core.billing.vector import ExchangeRate, ModelPrice
from gateway.counters.admission.stored import decode_prices, encode_prices
from tests.core.billing.prices import price_row

IMAGES = {"1024x1024/low": "0.011", "1024x1024/high": "0.167", "1536x1024/high": "0.25"}
UNITS = {
    "images": IMAGES, "audio_second": "0.0001", "video_second": "0.1", "character": "0.000015",
    "page": "0.002", "search": "0.0025", "container": "0.03",
    "cache_hour": "4.500001",
}  # fmt: skip


def price(**over: object) -> ModelPrice:
    return read_price(price_row(**UNITS | over))


# Uses, and their cost by hand in fractions of the currency.
BY_HAND: list[tuple[dict[str, int], str]] = [
    ({"images.1024x1024/high": 3}, "501/1000"),
    ({"images.1024x1024/low": 420}, "462/100"),
    ({"audio_second": 61}, "61/10000"),
    ({"video_second": 8}, "4/5"),
    ({"character": 4_096}, "6144/100000"),
    ({"page": 17}, "34/1000"),
    ({"search": 5}, "1/80"),
    ({"container": 2}, "6/100"),
    ({"code_interpreter": 1, "file_search": 4}, "4/100"),
    ({"cache_hour": 900_000}, "40500009/10000000"),
    # A picture that does not say its size or its quality is the dearest that it may be.
    ({"images.auto/high": 1}, "1/4"),
    ({"images.1024x1024/auto": 1}, "167/1000"),
    ({"images.auto/low": 1}, "11/1000"),
    ({"images.auto/auto": 1}, "1/4"),
]


# Pictures that no price names are unpriced, and cost as the dearest that is like them.
UNLISTED: list[tuple[str, str]] = [
    ("images.512x512/low", "11/1000"), ("images.1024x1024/medium", "167/1000"),
    ("images.512x512/medium", "1/4"), ("images.512x512", "1/4"),
]  # fmt: skip


@pytest.mark.parametrize(("used", "cost"), BY_HAND)
def test_units_cost_what_a_hand_makes_of_them(used: dict[str, int], cost: str) -> None:
    vector = price().vector
    nano = Fraction(cost) * 10**9
    assert cost_nano(vector, NO_COUNTS, used) == nano
    assert sum(Fraction(line.amount) for line in lines(vector, NO_COUNTS, used)) == Fraction(cost)
    assert unpriced_names(vector, used) == []
    krone = converted(vector, ExchangeRate("DKK", "USD", "6.87", 0))
    half_up = Fraction(cost) * Fraction("6.87") * 10**9 + Fraction(1, 2)
    assert cost_nano(krone, NO_COUNTS, used) == half_up.numerator // half_up.denominator
    held = dearest_rate([krone], 0, PriceQualifiers(tools=used), in_money=True)
    assert held.cost(0, 0) >= cost_nano(krone, NO_COUNTS, used), "a hold is no less"


@pytest.mark.parametrize(("name", "cost"), UNLISTED)
def test_a_picture_of_an_unlisted_size_costs_as_the_dearest_that_is_like_it(name: str, cost: str) -> None:
    vector, used = price().vector, {name: 2}
    assert cost_nano(vector, NO_COUNTS, used) == 2 * Fraction(cost) * 10**9
    assert sum(Fraction(line.amount) for line in lines(vector, NO_COUNTS, used)) == 2 * Fraction(cost)
    assert unpriced_names(vector, used) == [name]
    assert cost_nano(read_price(price_row(input="1")).vector, NO_COUNTS, used) == 0


def test_a_line_says_a_unit_by_its_own_name() -> None:
    used = {"images.1024x1024/high": 2, "code_interpreter": 1}
    found = [
        (one.kind, one.quantity, f"{one.unit_price:.3f}", one.per)
        for one in lines(price().vector, NO_COUNTS, used)
    ]
    assert found == [("tools.code_interpreter", 1, "30.000", 1_000), ("images.1024x1024/high", 2, "0.167", 1)]
    kept = lines(price().vector, NO_COUNTS, {"cache_hour": 2})
    assert [(one.quantity, f"{one.unit_price:.6f}", one.per) for one in kept] == [(2, "4.500001", 1_000_000)]


def test_a_tool_with_a_price_of_its_own_has_that_one() -> None:
    vector = price(tools={"code_interpreter": "0"}).vector
    assert cost_nano(vector, NO_COUNTS, {"code_interpreter": 9}) == 0
    assert cost_nano(vector, NO_COUNTS, {"code_execution": 1}) == 30_000_000


def test_what_no_price_covers_is_named_and_never_silently_free() -> None:
    used = {"images.512x512/high": 1, "character": 5, "page": 1, "image_generation": 1, "web_fetch": 3}
    assert unpriced_names(price().vector, used) == ["images.512x512/high", "image_generation"]
    bare = read_price(price_row(input="1")).vector
    assert unpriced_names(bare, used) == ["images.512x512/high", "character", "page", "image_generation"]


def test_pictures_are_paid_by_their_tokens_where_an_answer_has_any() -> None:
    used, text = {"images.auto/auto": 10}, price_row(input="1", output="2")
    assert unpriced_names(read_price(text).vector, used) == ["images.auto/auto"]  # of text alone
    assert unpriced_names(read_price(text | {"image_input": "3"}).vector, used) == []
    vector = read_price(text | {"image_output": "2"}).vector
    assert unpriced_names(vector, used) == []
    assert unpriced_names(vector, used, (26, *NO_COUNTS[1:])) == ["images.auto/auto"]
    assert unpriced_names(vector, used, (26, 0, 0, 0, 4_160, *NO_COUNTS[5:])) == []


def test_sound_is_paid_by_its_tokens_where_a_call_has_any() -> None:
    used, vector = {"audio_second": 3}, read_price(price_row(input="1", audio_input="2")).vector
    assert unpriced_names(vector, used) == unpriced_names(vector, used, (1, *NO_COUNTS[1:])) == []
    assert unpriced_names(vector, used, NO_COUNTS) == ["audio_second"]


class _Before(msgspec.Struct):
    """Prices as a program reads them that knows of tokens and tools alone."""

    version: int
    layout: int
    prices: list[
        tuple[
            str,
            bool,
            str,
            bool,
            int,
            tuple[int, str, tuple[int, ...], int, dict[str, int], list[object], dict[str, object]],
        ]
    ]


def test_they_travel_to_gateways_and_older_ones_read_the_rest() -> None:
    table = {"input": "5", "context_tiers": [{"above": 9, "output": "7"}]}
    tiers = {"batch": "0.5", "priority": table}
    both = [
        price(service_tiers=tiers),
        read_price(price_row(id=2, input="1", audio_input="2", service_tiers=tiers)),
    ]
    raw = encode_prices(3, both, [ExchangeRate("EUR", "USD", "0.92", 5)])
    stored, kept = decode_prices(raw)
    assert kept == both
    assert stored.rates == [ExchangeRate("EUR", "USD", "0.92", 5)]
    elsewhere = both[0]._replace(provider="aws", is_bundled=True)
    several = encode_prices(4, [*both, elsewhere])
    assert (decode_prices(several)[1], decode_prices(several, {"aws"})[1]) == (both, [*both, elsewhere])
    assert len(msgspec.json.decode(raw, type=_Before).prices) == 2
