"""Quantiles of histograms."""

from __future__ import annotations

import pytest

from gateway.core.histograms import quantile_of


def test_quantiles_of_buckets() -> None:
    bounds = [0.1, 0.2, 0.4]
    assert quantile_of([0, 0, 0, 0], bounds, 0.5) is None
    assert quantile_of([10, 0, 0, 0], bounds, 0.5) == pytest.approx(0.05)
    assert quantile_of([5, 5, 0, 0], bounds, 0.99) == pytest.approx(0.198)
    assert quantile_of([0, 0, 0, 7], bounds, 0.5) == 0.4
