"""Moments as they are counted: in milliseconds since 1970, UTC. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)


def ms_of(moment: datetime | None) -> int:
    """The millisecond a moment is nearest to; 0 for none, which is never."""
    return 0 if moment is None else round(moment.timestamp() * 1000)


def rfc3339(moment: datetime, timespec: str = "auto") -> str:
    """A moment as RFC 3339 writes it, in UTC: `2026-01-31T10:00:00Z`, as far as `isoformat` is told to."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def moment_of(at_ms: int) -> datetime:
    """The moment of a millisecond."""
    return EPOCH + at_ms * MILLISECOND
