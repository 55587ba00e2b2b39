"""Spend of today and this month, and a forecast of the month's total. Pure.

The forecast is the spend of this month so far, plus the pace of the last seven days for the rest of it: a
whole week includes a weekend, and on the first of a month earlier days are known already. If spend began
later, the pace is that since then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.core.billing.money import ONE_NANO
from gateway.core.billing.subscription import midnight

PACE_DAYS: Final = 7
_DAY: Final = timedelta(days=1)


class Outlook(NamedTuple):
    """Amounts of one currency: spent today, spent this month, and expected for the whole month."""

    today: Decimal
    month: Decimal
    forecast: Decimal


def looked_at_since(now: datetime) -> datetime:
    """Return the time from which spend must be known for an outlook.

    It is the begin of the month or of the last `PACE_DAYS` days, whichever is earlier.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return min(today.replace(day=1), today - PACE_DAYS * _DAY)


def outlook(days: Mapping[date, Decimal], now: datetime) -> Outlook:
    """Return the sums of daily spend (by UTC day) and the forecast at the end of the month."""
    today = now.astimezone(UTC).date()
    month = sum((spent for day, spent in days.items() if _same_month(day, today)), Decimal(0))
    lately = {day: spent for day, spent in days.items() if spent and today - PACE_DAYS * _DAY <= day <= today}
    forecast = month
    if lately:
        elapsed = now - midnight(min(lately))
        left = midnight((today.replace(day=1) + 32 * _DAY).replace(day=1)) - now
        forecast += sum(lately.values()) * _seconds(left) / max(_seconds(elapsed), Decimal(1))
    return Outlook(days.get(today, Decimal(0)), month, forecast.quantize(ONE_NANO))


def _same_month(day: date, other: date) -> bool:
    return (day.year, day.month) == (other.year, other.month)


def _seconds(span: timedelta) -> Decimal:
    return Decimal(span // timedelta(seconds=1))
