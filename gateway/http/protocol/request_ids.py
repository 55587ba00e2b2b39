"""Request ids: UUIDs of version 7 as text (RFC 9562), made a batch at a time, so that they order by time.

The ids of a batch share the millisecond it was made in and their first 26 random bits. They differ in the
last 48, which are drawn for each: one costs a fraction of a microsecond, and none tells how many there were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BATCH: Final = 64
TAIL_DIGITS: Final = 12
# A batch is thrown away after so long: an id says when its request began, to the second.
BATCH_S_MAX: Final = 1.0


class RequestIds:
    """Give request ids; `random` is `os.urandom`, or what returns as many bytes; `clock` tells Unix time."""

    __slots__ = ("_clock", "_drawn_at", "_random", "_ready")

    def __init__(self, random: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._ready: list[str] = []
        self._drawn_at = 0.0

    def next_id(self, now: float) -> str:
        """A new id of 36 characters; `now` in seconds of any clock that goes on."""
        if not self._ready or now - self._drawn_at > BATCH_S_MAX:
            self._refill()
            self._drawn_at = now
        return self._ready.pop()

    def _refill(self) -> None:
        drawn = self._random(4 + BATCH * TAIL_DIGITS // 2)
        at = max(0, int(self._clock() * 1000)) & 0xFFFFFFFFFFFF
        version, variant = 0x70 | drawn[0] & 0x0F, 0x80 | drawn[2] & 0x3F
        time = f"{at:012x}"
        prefix = f"{time[:8]}-{time[8:]}-{version:02x}{drawn[1]:02x}-{variant:02x}{drawn[3]:02x}-"
        tails = drawn[4:].hex()
        whole = range(0, BATCH * TAIL_DIGITS, TAIL_DIGITS)
        self._ready = list({prefix + tails[start : start + TAIL_DIGITS] for start in whole})
