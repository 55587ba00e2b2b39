"""Prices by the hour: their factors compared with hours that are enumerated minute by minute."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.core.billing.hours import dearest_factor, factor_at, overlaps, read_hours
from gateway.core.billing.price_book import KINDS, PriceBook, at_moment, cost_nano, lines, read_price
from gateway.core.billing.vector import PriceHours
from tests.core.billing.prices import price_row
from tests.search import examples

MINUTE = timedelta(minutes=1)
# Each with a day on which its clocks change, or any day where they never do.
ZONES = {
    "UTC": "2026-03-01", "Asia/Shanghai": "2026-05-01", "Asia/Kolkata": "2026-10-02",
    "Europe/Berlin": "2026-10-25", "America/New_York": "2026-03-08", "Australia/Lord_Howe": "2026-04-05",
    "America/Santiago": "2026-09-06", "Asia/Beirut": "2026-03-29",
}  # fmt: skip
SPANS: list[dict[str, Any]] = [
    {"days": [1, 2, 3, 4, 5], "from": "01:00", "to": "04:00", "factor": "2"},
    {"days": [6, 7], "from": "00:00", "to": "24:00", "factor": "0.5"},
    {"days": [1, 3, 5], "from": "22:30", "to": "00:15", "factor": "3"},
    {"days": [2], "from": "23:00", "to": "00:00", "factor": "4"},
]


def hours(zone: str, *spans: dict[str, Any], at: str = "begin") -> PriceHours:
    read = read_hours({"hours": [{"time_zone": zone, **span} for span in spans], "hours_at": at})
    assert read is not None
    return read


def minutes_of(span: dict[str, Any], first: date, last: date) -> set[datetime]:
    """The minutes that a wall clock shows in a span, day by day."""
    found = set[datetime]()
    day = first
    while day <= last:
        if day.isoweekday() in span["days"] and str(day) not in span.get("except", ()):
            clock = datetime.combine(day, datetime.min.time()) + timedelta(
                hours=int(span["from"][:2]), minutes=int(span["from"][3:])
            )
            while True:
                found.add(clock)
                clock += MINUTE
                if f"{clock:%H:%M}" == span["to"].replace("24:00", "00:00"):
                    break
        day += timedelta(days=1)
    return found


def shown(moment: datetime, zone: str) -> datetime:
    """What a clock of a zone shows at a moment, to the minute."""
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None, second=0, microsecond=0)


@pytest.mark.parametrize("zone", ZONES)
def test_factor_changes_at_the_second_that_a_clock_shows_an_edge(zone: str) -> None:
    change = datetime.fromisoformat(ZONES[zone]).replace(tzinfo=UTC)
    first, last = change.date() - timedelta(days=5), change.date() + timedelta(days=5)
    spans = [*SPANS[:3], {**SPANS[3], "except": [str(first + timedelta(days=n)) for n in range(4)]}]
    within = [(minutes_of(span, first, last), Fraction(span["factor"])) for span in spans]

    def wanted(moment: datetime) -> Fraction:
        clock = shown(moment, zone)
        return next((factor for minutes, factor in within if clock in minutes), Fraction(1))

    price, edges = hours(zone, *spans), 0
    moment, until = change - timedelta(days=3), change + timedelta(days=4)
    before = wanted(moment)
    while moment < until:
        moment += MINUTE
        after = wanted(moment)
        if after != before:
            edges += 1
            at_ms = int(moment.timestamp()) * 1000
            assert Fraction(*factor_at(price, at_ms - 1000)) == before, moment
            assert Fraction(*factor_at(price, at_ms - 1)) == before, moment
            assert Fraction(*factor_at(price, at_ms)) == after, moment
            assert Fraction(*factor_at(price, at_ms + 1000)) == after, moment
        before = after
    assert edges > 10


def test_hours_have_an_hour_that_comes_twice_and_none_that_is_skipped() -> None:
    price = hours("Europe/Berlin", {"days": [7], "from": "02:00", "to": "03:00", "factor": "2"})

    def factor(moment: str) -> Fraction:
        return Fraction(*factor_at(price, datetime.fromisoformat(moment).timestamp() * 1000))

    autumn = ["2026-10-24T23:59:59Z", "2026-10-25T00:00:00Z", "2026-10-25T01:59:59Z", "2026-10-25T02:00:00Z"]
    assert [factor(moment) for moment in autumn] == [1, 2, 2, 1]
    spring = ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"]
    assert [factor(moment) for moment in spring] == [1, 1]


def test_hours_over_midnight_belong_to_the_day_of_their_begin() -> None:
    span = {"days": [5], "from": "22:00", "to": "06:00", "factor": "0.5", "except": ["2026-12-11"]}
    price = hours("UTC", span)

    def factor(moment: str) -> Fraction:
        return Fraction(*factor_at(price, datetime.fromisoformat(moment).timestamp() * 1000))

    # 4 December 2026 is a Friday; the next Friday is excepted, with its Saturday morning.
    assert [factor(f"2026-12-{at}Z") for at in ("04T03:00", "04T22:00", "05T05:59", "05T06:00")] == [
        1, Fraction(1, 2), Fraction(1, 2), 1,
    ]  # fmt: skip
    assert [factor(f"2026-12-{at}Z") for at in ("11T23:00", "12T05:00")] == [1, 1]


clocks = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
some_spans = st.fixed_dictionaries({
    "days": st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True),
    "from": clocks, "to": clocks, "factor": st.sampled_from(["0.5", "2", "3"]),
}).filter(lambda span: span["from"] != span["to"])  # fmt: skip


@settings(max_examples=examples(100))
@given(some_spans, some_spans)
def test_overlaps_finds_each_two_spans_that_share_a_minute_of_a_week(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, last = date(2026, 6, 1), date(2026, 6, 28)
    weeks = [minutes_of(span, first, last) for span in (one, other)]
    assert bool([*overlaps(hours("UTC", one, other).spans)]) == bool(weeks[0] & weeks[1])


@pytest.mark.parametrize(
    ("berlin", "new_york", "meet"),
    # Berlin is six hours ahead, and five from 8 to 29 March 2026.
    [
        ("08:00-09:00", "02:00-03:00", True),
        ("08:00-09:00", "03:00-04:00", True),
        ("08:00-09:00", "04:00-05:00", False),
    ],
)
def test_overlaps_compares_zones_by_all_their_offsets(berlin: str, new_york: str, meet: bool) -> None:
    spans = [
        {"days": [1, 2], "from": text[:5], "to": text[6:], "factor": "2", "time_zone": zone}
        for text, zone in ((berlin, "Europe/Berlin"), (new_york, "America/New_York"))
    ]
    assert bool([*overlaps(hours("UTC", *spans).spans)]) is meet


@settings(max_examples=examples(50))
@given(st.sampled_from([*ZONES]), st.integers(0, 10 * 1440), st.integers(0, 3 * 1440))
def test_dearest_factor_is_the_highest_of_all_minutes(zone: str, begin: int, length: int) -> None:
    price = hours(zone, *SPANS)
    assume(length % 7 or length < 300)
    since_ms = (int(datetime.fromisoformat(ZONES[zone]).timestamp()) - 5 * 86_400 + 60 * begin) * 1000
    moments = [since_ms + 60_000 * minute for minute in range(length + 1)]
    most = max(Fraction(*factor_at(price, at_ms)) for at_ms in moments)
    assert Fraction(*dearest_factor(price, since_ms, moments[-1])) == most


PEAKS = [
    {"days": [1, 2, 3, 4, 5], "from": begin, "to": end, "time_zone": "UTC", "factor": "2"}
    for begin, end in (("01:00", "04:00"), ("06:00", "10:00"))
]


def test_price_is_multiplied_in_its_hours_and_tools_are_not() -> None:
    tiers = {"batch": "0.5", "priority": {"input": "1", "output": "3"}}
    row = price_row(input="0.66", output="1.98", request="0.01", tools={"web_search": "10"},
                    service_tiers=tiers, context_tiers=[{"above": 2_000_000, "input": "1.32"}], hours=PEAKS)  # fmt: skip
    price = read_price(row).vector
    million = tuple(1_000_000 if kind in {"input", "output"} else 0 for kind in KINDS)
    # 30 November 2026 is a Monday. By day 0.66 + 1.98 + 0.01 = 2.65, and three searches at a hundredth each.
    for moment, tier, cost in (
        ("2026-11-30T00:59:59Z", "", 2_680_000_000), ("2026-11-30T01:00:00Z", "", 5_330_000_000),
        ("2026-11-30T01:00:00Z", "batch", 2_680_000_000), ("2026-11-30T04:00:00Z", "batch", 1_355_000_000),
        ("2026-11-30T09:59:59Z", "priority", 8_050_000_000), ("2026-11-29T07:00:00Z", "priority", 4_040_000_000),
    ):  # fmt: skip
        then = at_moment(price, datetime.fromisoformat(moment).timestamp() * 1000)
        assert cost_nano(then, million, {"web_search": 3}, tier) == cost, (moment, tier)
        assert sum(line.amount for line in lines(then, million, {"web_search": 3}, tier)) * 10**9 == cost


def test_a_book_has_the_price_of_each_hour_and_returns_the_same_object_again() -> None:
    rows = [price_row(input="0.3", hours=[{**PEAKS[0], "factor": "1.5"}])]
    book = PriceBook(map(read_price, rows))
    night, day = (int(datetime(2026, 11, 30, hour, tzinfo=UTC).timestamp()) * 1000 for hour in (3, 4))
    found = [book.vector("m", "USD", at_ms) for at_ms in (night, day, night)]
    assert [one and one.prices[0] for one in found] == [450_000_000, 300_000_000, 450_000_000]
    assert found[0] is found[2]
