"""Reset boundaries by the rule itself, day after day: what the scripts' calendar is compared with."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta


def boundary_after(interval: str, now_ms: int, anchor: int) -> int:
    """The first boundary after a moment, in milliseconds."""
    at = datetime.fromtimestamp(now_ms // 1000, UTC).replace(hour=0, minute=0, second=0)
    while True:
        at += timedelta(days=1)
        if _begins(interval, at.date(), anchor):
            return int(at.timestamp()) * 1000


def boundaries_between(interval: str, first_ms: int, last_ms: int, anchor: int) -> int:
    """How many boundaries come after the first one, up to the last."""
    count = 0
    while first_ms < last_ms:
        first_ms = boundary_after(interval, first_ms, anchor)
        count += 1
    return count


def _begins(interval: str, day: date, anchor: int) -> bool:
    """Whether a cycle begins on a day: any, or the anchor's of the week or month, which may end before it."""
    if interval == "weekly":
        return day.isoweekday() == anchor
    return interval == "daily" or day.day == min(anchor, monthrange(day.year, day.month)[1])
