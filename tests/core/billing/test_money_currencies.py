"""Currencies: the same as the library has them, rounded by their minor units."""

from __future__ import annotations

from decimal import Decimal

import iso4217
import pytest

from gateway.core.billing.money import MINOR_DIGITS, rounded


def test_the_table_is_that_of_iso_4217() -> None:
    published = {
        code: int(row["CcyMnrUnts"])
        for code, row in iso4217.raw_table.items()
        if code and (row["CcyMnrUnts"] or "").isdigit()
    }
    assert published == MINOR_DIGITS


@pytest.mark.parametrize(
    ("currency", "amount"), [("JPY", "1235"), ("KWD", "1234.568"), ("CLF", "1234.5678"), ("EUR", "1234.57")]
)
def test_amounts_are_rounded_to_minor_units(currency: str, amount: str) -> None:
    assert rounded(Decimal("1234.56775"), currency) == Decimal(amount)
