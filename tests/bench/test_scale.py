"""The bench of growth: its slope and table by hand, and a run of tiny sizes on real processes."""

from __future__ import annotations

import pytest

from tests.bench.scale import Point, Wish, measure, slope, table


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 5), (10, 5), (100, 5)], 0.0),
        ([(1, 3), (10, 30), (1000, 3000)], 1.0),
        ([(4, 20), (100, 100)], 0.5),
        ([(1, 100), (100, 1)], -1.0),
    ],
)
def test_the_slope_is_the_exponent(points: list[tuple[float, float]], expected: float) -> None:
    assert slope(points) == pytest.approx(expected)


@pytest.mark.parametrize("points", [[], [(1, 5)], [(3, 5), (3, 6)], [(1, 0), (10, 4)]])
def test_what_has_no_slope_has_none(points: list[tuple[float, float]]) -> None:
    assert slope(points) is None


def test_a_table_has_a_line_a_figure_and_a_column_a_size() -> None:
    points = [Point("keys", 1, {"µs": 4.0, "MiB": 0.25}), Point("keys", 10_000, {"µs": 4.0, "MiB": 2500.0})]
    assert table(points).splitlines() == [
        "| keys | 1 | 10,000 | slope |",
        "|---|---:|---:|---:|",
        "| µs | 4.0 | 4.0 | 0.00 |",
        "| MiB | 0.25 | 2,500 | 1.00 |",
    ]


def test_tiny_sizes_are_served_and_each_call_has_its_row() -> None:
    """That is asked by the bench itself, which fails where it is not so."""
    said: list[str] = []
    [[point]] = measure(Wish({"keys": (3,)}, calls=10), said.append)
    assert (said, point.axis, point.size) == (["keys 3"], "keys", 3)
    assert point.figures["worker MiB"] > 10
    assert point.figures["Redis MiB"] > 0.5
    assert 0 < point.figures["first answer s"] <= point.figures["all served s"]
    assert point.figures["keeper again s"] > 0
