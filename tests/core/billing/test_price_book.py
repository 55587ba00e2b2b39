"""Which of many prices a call has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import PriceBook, choose, read_price
from gateway.core.billing.price_changes import A_MOMENT, changes, missing
from gateway.core.billing.sellers import MAKERS, Seller
from gateway.core.billing.vector import ModelPrice
from tests.core.billing.prices import price_row

NOON_MS = 1_768_392_000_000


def price(number: int, model: str = "gpt-4o", **over: Any) -> ModelPrice:
    over.setdefault("source", "bundled")
    return read_price(price_row(id=number, model=model, input="1", **over))


def found(
    prices: list[ModelPrice], model: str = "gpt-4o", provider: str = "", at_ms: int = NOON_MS
) -> int | None:
    chosen = choose(prices, model, "USD", at_ms, provider)
    if not provider:
        vector = PriceBook(prices).vector(model, "USD", at_ms)
        assert vector == (chosen and chosen.vector)
    return chosen.vector.price_id if chosen else None


def test_an_exact_name_stands_above_the_longest_prefix() -> None:
    prices = [price(1, "gpt", match="prefix"), price(2), price(3, "gpt-4o", match="prefix")]
    assert found(prices) == 2
    assert found(prices, "gpt-4o-mini") == 3
    assert found(prices, "gpt-5") == 1
    assert found(prices, "claude") is None


def test_whatever_the_operator_set_stands_above_the_bundled_list() -> None:
    assert found([price(1), price(2, "gpt", match="prefix", source="operator")]) == 2


def test_the_newest_that_is_not_after_the_time_is_in_force() -> None:
    prices = [
        price(number, effective_from=datetime.fromtimestamp(at_ms / 1000, UTC))
        for number, at_ms in ((1, 0), (3, NOON_MS), (2, NOON_MS - 1))
    ]
    assert [found(prices, at_ms=NOON_MS + late) for late in (-2, -1, 0, 9**12)] == [1, 2, 3, 3]


def test_one_that_is_not_yet_in_force_hides_nothing_below_it() -> None:
    later = datetime.fromtimestamp(NOON_MS / 1000 + 1, UTC)
    prices = [price(1, "gpt", match="prefix"), price(2, source="operator", effective_from=later)]
    assert found(prices) == 1
    assert found(prices, at_ms=NOON_MS + 1000) == 2


def test_a_name_is_its_makers_where_nobody_is_named() -> None:
    prices = [price(1, provider="azure"), price(2, provider="openai"), price(3, provider="groq")]
    assert found(prices) == 2
    assert found(prices, provider="Azure") == 1
    assert found(prices, provider="nobody") == 2
    assert found(prices[:1]) is None, "what somebody sells under a name is no price of the name"


def test_an_operators_price_of_any_provider_counts_for_all_and_of_one_where_nobody_is_named() -> None:
    mine = price(1, provider="house", source="operator")
    assert found([mine, price(2, provider="openai")]) == 1
    assert found([mine, price(2, provider="openai")], provider="openai") == 2
    assert found([price(1, source="operator"), price(2, provider="openai")], provider="openai") == 1


def test_another_currency_is_another_price() -> None:
    assert found([price(1, currency="EUR")]) is None
    assert choose([price(1, currency="EUR")], "gpt-4o", "EUR", NOON_MS) is not None


def test_names_are_compared_without_regard_to_case() -> None:
    assert found([price(1, "GPT-4o"), price(2, "Mini", match="prefix")], "gpt-4O") == 1
    assert found([price(2, "Mini", match="prefix")], "miniMAX-m2") == 2


def test_no_more_models_are_remembered_than_the_bound() -> None:
    book = PriceBook([price(1, "gpt", match="prefix")], models_max=3)
    for number in range(10):
        assert book.vector(f"gpt-{number}", "USD", NOON_MS) is not None
        assert book.vector("x" * 1000 + str(number), "USD", NOON_MS) is None
        assert len(book._found_vectors) <= 3


names = st.text("ab", max_size=4)
some = st.builds(
    price, st.integers(1, 10**6), names, match=st.sampled_from(["exact", "prefix"]),
    source=st.sampled_from(["bundled", "operator"]), provider=st.sampled_from(["", "groq", *MAKERS[:2]]),
    effective_from=st.integers(0, 3).map(lambda at: datetime.fromtimestamp(at, UTC)),
)  # fmt: skip


@given(st.lists(some, max_size=12, unique_by=lambda price: price[:5]), names, st.integers(0, 4000))
def test_a_gateway_finds_what_a_quote_says(prices: list[ModelPrice], model: str, at_ms: int) -> None:
    found(prices, model, at_ms=at_ms)


@pytest.mark.parametrize("model", ["", "gpt-4o" * 100])
def test_any_name_may_be_asked_for(model: str) -> None:
    assert found([price(1)], model) is None


def test_a_seller_has_its_own_price_and_of_two_makers_by_name_the_dearer_counts() -> None:
    mine = [
        price(1, provider="zhipuai"),
        price(2, provider="zai", output="9"),
        price(3, provider="groq", output="5"),
        price(4, provider="aws", source="operator", output="1"),
    ]
    book = PriceBook(mine[:3])
    by = {
        name: book.vector("gpt-4o", "USD", NOON_MS, Seller(name) if name else None)
        for name in ("", "groq", "zhipuai", "azure")
    }
    assert {name: one and one.price_id for name, one in by.items()} == {
        "": 2, "groq": 3, "zhipuai": 1, "azure": 2
    }  # fmt: skip
    for name, vector in by.items():
        chosen = choose(mine[:3], "gpt-4o", "USD", NOON_MS, name)
        assert chosen is not None
        assert chosen.vector == vector
    every = PriceBook(mine)
    assert every.vector("gpt-4o", "USD", NOON_MS) == mine[3].vector  # the operator's stands above
    assert every.vector("gpt-4o", "USD", NOON_MS, Seller("groq")) == mine[2].vector


# --- price changes ----------------------------------------------------------------------
# What makes one price list of another: rows that are added, and nothing twice.


NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def row(price: str, since: datetime = EPOCH, model: str = "m", **over: Any) -> dict[str, Any]:
    return {
        "provider": "openai", "model": model, "match": "exact", "currency": "USD", "effective_from": since,
        "input": price, **over,
    }  # fmt: skip


def told(listed: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[tuple[str, str, datetime]]:
    return [(each.kind, each.row["input"], each.at) for each in changes(listed, kept, NOW)]


def test_the_same_prices_differ_in_nothing_however_they_are_written() -> None:
    listed = [row("2.5", tools={"web_search": "10"}, context_tiers=[{"above": 5, "input": "1"}])]
    kept = [row("2.50", model="M", tools={"web_search": "10.0"}, context_tiers=[{"above": 5, "input": "1.0"}],
                service_tiers=None, output=None)]  # fmt: skip
    assert told(listed, kept) == []


def test_what_is_new_changed_and_gone_is_told() -> None:
    listed = [row("1", model="new"), row("2", model="changed"), row("1", model="same")]
    kept = [row("1", model="changed"), row("1", model="gone"), row("1", model="same")]
    assert told(listed, kept) == [("new", "1", NOW), ("changed", "2", NOW), ("gone", "1", NOW)]
    [_, changed, gone] = changes(listed, kept, NOW)
    assert changed.says == {"input": ("1", "2")}
    assert gone.says == {"input": ("1", None)}


def test_what_was_once_and_is_no_more_is_not_taken_over() -> None:
    assert told([row("1"), row("2", NOW - DAY)], [row("2")]) == []


def test_a_price_of_later_comes_at_its_time() -> None:
    assert told([row("1"), row("2", NOW + DAY)], [row("1")]) == [("changed", "2", NOW + DAY)]


def test_a_price_of_later_that_is_called_off_stays_what_it_was() -> None:
    kept = [row("1"), row("2", NOW + DAY)]
    assert told([row("1")], kept) == [("changed", "1", NOW + DAY + A_MOMENT)]


one = st.builds(row, st.sampled_from(["1", "2", "3"]), st.integers(-3, 3).map(lambda days: NOW + days * DAY))
lists = st.lists(one, max_size=5, unique_by=lambda each: each["effective_from"])


@given(listed=lists, kept=lists)
def test_what_is_added_says_what_the_list_says_and_leaves_no_difference(
    listed: list[dict[str, Any]], kept: list[dict[str, Any]]
) -> None:
    listed = [row("1"), *listed]
    added = [{**each.row, "effective_from": each.at} for each in changes(listed, kept, NOW)]
    after = [*kept, *added]
    assert len({each["effective_from"] for each in after}) == len(after)

    def price_at(rows: list[dict[str, Any]], at: datetime) -> str:
        past = [each for each in rows if each["effective_from"] <= at]
        return str(max(past, key=lambda each: each["effective_from"])["input"])

    for days in range(4):
        at = NOW + days * DAY + 2 * A_MOMENT
        assert price_at(after, at) == price_at(listed, at)
    assert list(changes(listed, after, NOW)) == []


NOT_HERE = "the bundled list has {} prices that are not here{}: tollkeeper prices diff"


@pytest.mark.parametrize(
    ("listed", "kept", "says"),
    [
        ([row("1")], [row("1", NOW - DAY), row("9", model="gone")], ""),
        ([row("1", model="new")], [row("1")], NOT_HERE.format(1, "")),
        ([row("1")], [row("2")], NOT_HERE.format(1, "")),
        ([row("2")], [row("1")], NOT_HERE.format(1, ", 1 of them dearer")),
        ([row("1"), row("2", NOW - DAY), row("3", NOW - 2 * DAY, "n"), row("1", model="o")],
         [row("1"), row("1", model="n")],
         NOT_HERE.format(3, f", 2 of them dearer since {NOW - 2 * DAY:%Y-%m-%d}")),
        ([row("2", NOW - DAY), row("3", NOW + DAY)], [row("1")],
         NOT_HERE.format(2, f", 1 of them dearer since {NOW - DAY:%Y-%m-%d}")),
        ([row("1"), row("2", NOW + DAY)], [row("1")],
         NOT_HERE.format(1, f", 1 of them dearer from {NOW + DAY:%Y-%m-%d}")),
        ([row("1", service_tiers={"ultrafast": "6"})], [row("1", service_tiers={"ultrafast": "3"})],
         NOT_HERE.format(1, ", 1 of them dearer")),
        ([row("1", context_tiers=[{"above": 5, "input": "3"}])],
         [row("1", context_tiers=[{"above": 4, "input": "3"}])], NOT_HERE.format(1, "")),
        ([row("1", context_tiers=[{"above": 5, "input": "3"}])],
         [row("1", context_tiers=[{"above": 5, "input": "2"}])], NOT_HERE.format(1, ", 1 of them dearer")),
    ],
)  # fmt: skip
def test_missing_counts_the_listed_prices_that_are_not_kept_and_says_since_when_some_are_dearer(
    listed: list[dict[str, Any]], kept: list[dict[str, Any]], says: str
) -> None:
    assert missing(listed, kept, NOW) == says
