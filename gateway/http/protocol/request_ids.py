"""Request ids: random UUIDs (version 4) as text, made a batch at a time.

The ids of a batch share their first 74 random bits and differ in the last 48, which are drawn
for each: making one costs a fraction of a microsecond, and none tells how many there were.
"""

from __future__ import annotations

from collections.abc import Callable

BATCH = 64
TAIL_DIGITS = 12


class RequestIds:
    """Give request ids; `random` is `os.urandom` or, in tests, anything that returns n bytes."""

    __slots__ = ("_random", "_ready")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._ready: list[str] = []

    def next_id(self) -> str:
        """A new id of 36 characters."""
        if not self._ready:
            self._refill()
        return self._ready.pop()

    def _refill(self) -> None:
        drawn = bytearray(self._random(10 + BATCH * TAIL_DIGITS // 2))
        drawn[6] = 0x40 | drawn[6] & 0x0F
        drawn[8] = 0x80 | drawn[8] & 0x3F
        head = drawn[:10].hex()
        prefix = f"{head[:8]}-{head[8:12]}-{head[12:16]}-{head[16:]}-"
        tails = drawn[10:].hex()
        whole = range(0, BATCH * TAIL_DIGITS, TAIL_DIGITS)
        self._ready = list({prefix + tails[at : at + TAIL_DIGITS] for at in whole})
