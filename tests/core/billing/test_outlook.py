"""Where spend leads to: the month so far, and the pace of a week for what is left of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.core.billing.finance import looked_at_since, outlook


def days(first: date, *amounts: str) -> dict[date, Decimal]:
    return {first + timedelta(days=n): Decimal(amount) for n, amount in enumerate(amounts)}


def test_the_same_every_day_goes_on_like_that() -> None:
    spent = days(date(2026, 4, 1), *["24"] * 9, "12")
    found = outlook(spent, datetime(2026, 4, 10, 12, tzinfo=UTC))
    assert found == (Decimal(12), Decimal(228), Decimal(720))


def test_on_the_first_of_a_month_the_week_before_says_the_pace() -> None:
    spent = days(date(2026, 3, 25), *["10"] * 7)
    found = outlook(spent, datetime(2026, 4, 1, tzinfo=UTC))
    assert (found.today, found.month, found.forecast) == (0, 0, Decimal(300))


def test_a_burst_long_ago_says_nothing_of_the_rest() -> None:
    spent = {date(2026, 4, 1): Decimal(900)} | days(date(2026, 4, 14), *["1"] * 7)
    found = outlook(spent, datetime(2026, 4, 21, tzinfo=UTC))
    assert found.forecast == 907 + 10


def test_who_began_today_has_the_pace_of_today() -> None:
    found = outlook({date(2026, 4, 30): Decimal("0.000000001")}, datetime(2026, 4, 30, 6, tzinfo=UTC))
    assert found == (Decimal("0.000000001"), Decimal("0.000000001"), Decimal("0.000000004"))


@pytest.mark.parametrize("spent", [{}, {date(2026, 4, 5): Decimal(0)}])
def test_nothing_leads_to_nothing(spent: dict[date, Decimal]) -> None:
    assert outlook(spent, datetime(2026, 4, 30, 23, 59, tzinfo=UTC)) == (0, 0, 0)


def test_what_stopped_before_the_week_is_over() -> None:
    spent = {date(2026, 12, 2): Decimal(5)}
    assert outlook(spent, datetime(2026, 12, 31, tzinfo=UTC)) == (0, 5, 5)


def test_a_month_and_a_week_are_looked_at() -> None:
    assert looked_at_since(datetime(2026, 4, 3, 5, tzinfo=UTC)) == datetime(2026, 3, 27, tzinfo=UTC)
    assert looked_at_since(datetime(2026, 4, 30, 5, tzinfo=UTC)) == datetime(2026, 4, 1, tzinfo=UTC)
