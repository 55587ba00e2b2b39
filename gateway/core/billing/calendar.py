"""Days and reset boundaries in UTC: what `lua/lib/cycle.lua` computes, for whoever has no Redis at hand.

Daily resets are at 00:00, weekly ones on Monday 00:00, monthly ones on the anchor day 00:00,
clamped to the end of a shorter month.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime

DAY_MS = 86_400_000
_THURSDAY = 3  # 1970-01-01, days after Monday


def midnight(day: date) -> datetime:
    """Return the UTC moment a day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def next_reset_ms(interval: str, now_ms: int, anchor: int = 1) -> int | None:
    """Return the first boundary after `now_ms`, None for an interval of `none`.

    `anchor` is the day of the month of monthly resets, 1 to 31.
    """
    days = now_ms // DAY_MS
    if interval == "none":
        return None
    if interval == "daily":
        return (days + 1) * DAY_MS
    if interval == "weekly":
        return (days - (days + _THURSDAY) % 7 + 7) * DAY_MS
    if interval != "monthly":
        raise ValueError(f"interval {interval!r}: none, daily, weekly or monthly")
    at = datetime.fromtimestamp(days * 86_400, UTC)
    first = _anchored_ms(at.year, at.month, anchor)
    return first if first > now_ms else _anchored_ms(at.year + at.month // 12, at.month % 12 + 1, anchor)


def cycles_between(interval: str, from_ms: int, to_ms: int) -> int:
    """Return how many cycles lie between two boundaries of the same interval."""
    if interval == "daily":
        return (to_ms - from_ms) // DAY_MS
    if interval == "weekly":
        return (to_ms - from_ms) // (7 * DAY_MS)
    first, last = (datetime.fromtimestamp(ms // 1000, UTC) for ms in (from_ms, to_ms))
    return (last.year - first.year) * 12 + last.month - first.month


def _anchored_ms(year: int, month: int, anchor: int) -> int:
    day = min(anchor, monthrange(year, month)[1])
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 1000
