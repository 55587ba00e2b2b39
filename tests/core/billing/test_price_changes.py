"""What makes one price list of another: rows that are added, and nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import A_MOMENT, changes

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
