"""The bench of growth: its slope and table by hand, and a run of tiny sizes on real processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bench.machine import BenchError
from tests.bench.scale import AXES, Bench, Point, Wish, measure, merged, slope, table


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
    points = [
        Point("keys", 1, {"µs": 4.0, "MiB": 0.25}, load=1),
        Point("keys", 10_000, {"µs": 4.0, "MiB": 2500.0}, load=2.25),
    ]
    assert table(points).splitlines() == [
        "| keys | 1 | 10,000 | slope |",
        "|---|---:|---:|---:|",
        "| µs | 4.0 | 4.0 | 0.00 |",
        "| MiB | 0.25 | 2,500 | 1.00 |",
        "| load of the machine | 1.0 | 2.2 | |",
    ]


def test_a_figure_that_small_sizes_have_not_is_told_of_the_others() -> None:
    points = [Point("keys", 1, {"again": 4.0}), Point("keys", 100, {"again": 4.0, "first": 9.0})]
    assert table(points).splitlines()[2:4] == [
        "| again | 4.0 | 4.0 | 0.00 |",
        "| first | – | 9.0 | – |",
    ]


def test_an_axis_that_was_not_measured_keeps_its_table() -> None:
    old = {axis: table([Point(axis, 1, {"µs": 1.0})]) for axis in ("keys", "shards")}
    new = {axis: table([Point(axis, 1, {"µs": 2.0})]) for axis in ("tenants", "keys")}
    there = "\n\n".join(old.values()) + "\n"
    assert merged(there, new) == "\n\n".join([new["tenants"], new["keys"], old["shards"]])
    assert merged("", old) == there.strip()


def test_tiny_sizes_are_served_and_each_call_has_its_row() -> None:
    """That is asked by the bench itself, which fails where it is not so. An axis that fails ends alone."""
    one = Point("shards", 1, {})
    said: list[str] = []

    def failing(bench: Bench, _axis: str, _sizes: Sequence[int]) -> Iterator[Point]:
        yield one
        raise BenchError("it is dark")

    wish, axes = Wish({"shards": (1, 3), "keys": (40,)}, calls=10), {**AXES, "shards": failing}
    (cut, why), (points, none) = measure(wish, said.append, axes)
    assert (cut, str(why), none) == ([one], "it is dark", None)
    (point,) = points
    assert (said, point.axis, point.size) == (["keys 40"], "keys", 40)
    figures = point.figures
    assert all(
        figures[f"{who} µs a{what} call"] > 0 for who in ("gateway", "Redis") for what in ("", " first")
    )
    assert figures["worker MiB"] > 10
    assert figures["Redis MiB"] > 0.5
    assert 0 < figures["first answer s"] <= figures["all served s"]
    assert figures["keeper again s"] > 0


def test_nothing_is_begun_once_the_time_is_up(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(BenchError, match="no time is left for keys 4"):
        Bench(tmp_path, "", Wish({}, minutes=-1), said.append).begin("keys 4")
    assert said == []
