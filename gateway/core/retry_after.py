"""For how long another side wants to be left alone, as `Retry-After` says it (RFC 9110, 10.2.3). Pure.

Every value is a stranger's: what is negative, no number and no date says nothing.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

# A longer value is not read. A number may have as many digits: who waits has a maximum of its own.
VALUE_CHARS_MAX = 64
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def retry_after_s(value: str, now_s: float) -> float | None:
    """Seconds from `now_s` (the time of day), fractions too, as some send; None where nothing is said."""
    if len(value) > VALUE_CHARS_MAX:
        return None
    seconds = number_of(value)
    if seconds is not None:
        return seconds
    at = date_s(value)
    return None if at is None else max(0.0, at - now_s)


def number_of(value: str) -> float | None:
    """A number that is not negative, in ASCII digits; None where it is none."""
    return float(value) if _NUMBER.fullmatch(value) else None


def date_s(value: str) -> float | None:
    """The moment of an HTTP date (RFC 9110, 5.6.7), which is in UTC; None where it is none."""
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
