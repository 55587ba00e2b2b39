"""What the bench of failovers puts on the page."""

from __future__ import annotations

from tests.bench.failover import Told, table


def test_the_middle_of_each_kind_and_size_is_told_and_the_worst() -> None:
    told = [
        Told("cluster", 20, 2.0, 0.5, 0.7, 0.2),
        Told("cluster", 20, 1.0, 0.1, 0.3, 0.4),
        Told("cluster", 20, 1.5, 0.3, 0.9, 0.3),
        Told("sentinel", 4_000, 2.0, 0.5, 1.0, 0.6),
    ]
    assert table(told).splitlines()[2:] == [
        "| cluster | 20 | 3 | 1.50 | 0.30 | 0.70 | 0.90 | 0.30 |",
        "| sentinel | 4,000 | 1 | 2.00 | 0.50 | 1.00 | 1.00 | 0.60 |",
    ]
