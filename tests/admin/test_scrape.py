"""What `tollkeeper top` reads out of a scrape."""

from __future__ import annotations

import pytest

from gateway.cli.admin.usage import Scrape, read_scrape
from gateway.core.histograms import SECONDS
from gateway.telemetry.metrics import render


def scrape(*counts: int) -> Scrape:
    """A real scrape in which so many calls fell into the first buckets."""
    buckets = [*counts, *[0] * (len(SECONDS) + 1 - len(counts))]
    snapshot = {
        "bounds": list(SECONDS),
        "request_seconds": {"buckets": buckets, "sum": 1.0},
        "holds": 3,
        "requests": [["/v1/x", 200, "", 5]],
    }
    return read_scrape(render("text/plain", snapshot)[0].decode())


def test_values_and_histograms_are_read_and_labels_left_out() -> None:
    read = scrape(1, 2)
    assert read.values["holds"] == 3
    assert "requests_total" not in read.values
    assert read.histograms["request_seconds"][float("inf")] == 3


def test_a_quantile_is_drawn_straight_between_two_bounds() -> None:
    assert scrape(0, 100).quantile("request_seconds", 0.5) == pytest.approx((SECONDS[0] + SECONDS[1]) / 2)
    assert scrape(50, 50).quantile("request_seconds", 0.5) == pytest.approx(SECONDS[0])


def test_only_calls_since_an_earlier_scrape_count() -> None:
    earlier = scrape(100)
    assert scrape(100, 0, 10).quantile("request_seconds", 0.99, earlier) > SECONDS[1]  # type: ignore[operator]  # there are calls
    assert earlier.quantile("request_seconds", 0.5, earlier) is None


def test_without_calls_or_beyond_all_bounds_nothing_is_made_up() -> None:
    assert Scrape().quantile("request_seconds", 0.5) is None
    slow = scrape(*[0] * len(SECONDS), 4)
    assert slow.quantile("request_seconds", 0.5) == SECONDS[-1]
