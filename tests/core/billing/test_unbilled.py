"""Which outcomes a vendor bills since when, by the vendor's release notes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core.billing.unbilled import VendorOutcome, is_billed

BILLED_AGAIN = ("bio", "frontier_llm", "reasoning_extraction")
FREE = ("cyber", "general_harms", None, "one_that_comes_later")


@pytest.mark.parametrize("category", [*BILLED_AGAIN, *FREE])
def test_a_refusal_is_billed_by_its_category_and_date(category: str | None) -> None:
    outcome = VendorOutcome("claude", "refusal", category)
    dates = [(2026, 6, 1), (2026, 6, 2), (2026, 9, 23), (2026, 9, 24), (2027, 1, 1)]
    billed = [is_billed(outcome, 1000 * round(datetime(*day, tzinfo=UTC).timestamp())) for day in dates]
    assert billed == [True, False, False, category in BILLED_AGAIN, category in BILLED_AGAIN]


@pytest.mark.parametrize("other", [("claude", "pause"), ("another", "refusal")])
def test_an_outcome_that_is_in_no_table_is_billed(other: tuple[str, str]) -> None:
    assert is_billed(VendorOutcome(*other), 2**45)
