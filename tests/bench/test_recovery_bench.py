"""What the bench of recovery puts on the page."""

from __future__ import annotations

from tests.bench.recovery import Told, table


def test_a_fault_is_compared_with_the_same_fault_of_the_size_before() -> None:
    told = [
        Told(1_000, "emptied", 1.0, 2.0, 0.5, 130),
        Told(1_000, "returned", 0.5, 0.9, 0.0, 130),
        Told(10_000, "emptied", 1.0, 4.0, 2.0, 140),
        Told(10_000, "returned", 0.5, 0.9, 0.3, 140),
    ]
    assert table(told).splitlines()[2:] == [
        "| 1,000 | emptied | 1.0 | 2.0 | 0.5 |  | 130 |",
        "| 1,000 | returned | 0.5 | 0.9 | 0.0 |  | 130 |",
        "| 10,000 | emptied | 1.0 | 4.0 | 2.0 | 4.0 | 140 |",
        "| 10,000 | returned | 0.5 | 0.9 | 0.3 |  | 140 |",
    ]
