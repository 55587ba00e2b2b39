"""Which tax is in force on a day, and what a document says of it."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.document import EffectiveTax, Tax, in_force

DAY = date(2026, 7, 1)


@given(since=st.lists(st.integers(0, 40), max_size=6).map(sorted), asked=st.integers(-5, 50))
def test_the_latest_from_then_on_counts(since: list[int], asked: int) -> None:
    dated = [
        EffectiveTax(DAY + timedelta(days=days), Tax(Decimal(at) / 100)) for at, days in enumerate(since, 1)
    ]
    expected = max((at for at, days in enumerate(since, 1) if days <= asked), default=0)
    found = in_force(dated, Tax(Decimal(0)), DAY + timedelta(days=asked))
    assert found.rate == Decimal(expected) / 100


@pytest.mark.parametrize(
    ("tax", "said"),
    [
        (Tax(Decimal("0.2")), "Tax 20 %"), (Tax(Decimal("0.0725")), "Tax 7.25 %"), (Tax(Decimal(0)), ""),
        (Tax(Decimal(1)), "Tax 100 %"), (Tax(Decimal(0), "reverse_charge"), "Tax 0 %, Reverse charge"),
        (Tax(Decimal(0), "exempt", "Article 132"), "Tax 0 %, Article 132"), (Tax(Decimal(0), "zero"), ""),
    ],
)  # fmt: skip
def test_a_document_says_what_is_taxed_and_why_not(tax: Tax, said: str) -> None:
    assert tax.said == said
