"""Request ids: random UUIDs (version 4) as text, cut from one large draw of randomness at a time."""

from __future__ import annotations

from collections.abc import Callable

BATCH = 256
VARIANT = "89ab"


class RequestIds:
    """Give request ids; `random` is `os.urandom` or, in tests, anything that returns n bytes."""

    __slots__ = ("_random", "_ready")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._ready: list[str] = []

    def next(self) -> str:
        """A new id of 36 characters."""
        if not self._ready:
            self._refill()
        return self._ready.pop()

    def _refill(self) -> None:
        digits = self._random(16 * BATCH).hex()
        self._ready = [
            f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{VARIANT[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"
            for h in (digits[at : at + 32] for at in range(0, 32 * BATCH, 32))
        ]
