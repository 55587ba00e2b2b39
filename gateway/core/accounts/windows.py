"""The windows of budgets: by the calendar, rolling, or from first use; and what one hands on to the next. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.core.times import DAY_MS, HOUR_MS

CALENDAR, ROLLING, FIRST_USE = WINDOWS = ("calendar", "rolling", "first_use")
MINUTE_MS: Final = 60_000
# The shortest and the longest length of a window that rolls or begins at first use.
LENGTH_MIN_MS: Final = 5 * MINUTE_MS
LENGTH_MAX_MS: Final = 366 * DAY_MS
_UNITS: Final = {"d": DAY_MS, "h": HOUR_MS, "m": MINUTE_MS}
_LENGTH: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Carry:
    """What the next interval begins with: what was left, up to `max`; with `debt` less what was overspent.

    `max` is in the budget's unit as counted.
    """

    max: int
    debt: bool = False


def read_length(text: str) -> int:
    """Return a length such as `5h`, `90m` or `7d` in milliseconds; 0 if it is none, or out of bounds."""
    match = _LENGTH.fullmatch(text)
    length_ms = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    return length_ms if LENGTH_MIN_MS <= length_ms <= LENGTH_MAX_MS else 0


# A rolling window is stored in parts of a thirtieth of its length, aligned to the epoch: its use counts for the
# length, and for at most one part longer.
PARTS: Final = 30


def counted_since(window: str, length_ms: int, at_ms: int) -> int:
    """Return the earliest start (Unix ms) of the stored uses that count at a time, of a window with a length."""
    longer_ms = length_ms // PARTS if window == ROLLING else 0
    return at_ms - length_ms - longer_ms + 1
