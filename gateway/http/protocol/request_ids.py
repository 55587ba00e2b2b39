"""Ids of requests, unique for a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Ids of a batch: twice the previous number if that was used up within `BATCH_S_MAX`, else half of it.
BATCH_MIN: Final = 4
BATCH_MAX: Final = 64
# Random bytes of each id.
TAIL_BYTES: Final = 6
# A batch is discarded after this time, so that the time in an id is right to the second.
BATCH_S_MAX: Final = 1.0


class RequestIds:
    """A generator of request ids; `random` works like `os.urandom`, `clock` returns Unix time in seconds."""

    __slots__ = ("_clock", "_count", "_drawn_at", "_prefix", "_random", "_tails")

    def __init__(self, random: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._tails: list[str] = []
        self._prefix = ""
        self._count = BATCH_MIN
        self._drawn_at = 0.0

    def next_id(self, now: float) -> str:
        """Return a new id of 36 characters; `now` is the time in seconds of any monotonic clock."""
        if not self._tails or now - self._drawn_at > BATCH_S_MAX:
            self._count = max(BATCH_MIN, self._count // 2) if self._tails else min(BATCH_MAX, self._count * 2)
            drawn = self._random(4 + self._count * TAIL_BYTES)
            at = max(0, int(self._clock() * 1000)) & 0xFFFFFFFFFFFF
            version, variant = 0x70 | drawn[0] & 0x0F, 0x80 | drawn[2] & 0x3F
            time = f"{at:012x}"
            self._prefix = f"{time[:8]}-{time[8:]}-{version:02x}{drawn[1]:02x}-{variant:02x}{drawn[3]:02x}-"
            self._tails = list(set(drawn[4:].hex(" ", TAIL_BYTES).split(" ")))
            self._drawn_at = now
        return self._prefix + self._tails.pop()
