"""Request ids: random UUIDs (version 4) as text, cut from one large draw of randomness at a time."""

from __future__ import annotations

from collections.abc import Callable

BATCH = 256
_VERSION = bytes(0x40 | byte & 0x0F for byte in range(256))
_VARIANT = bytes(0x80 | byte & 0x3F for byte in range(256))


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
        drawn = bytearray(self._random(16 * BATCH))
        drawn[6::16] = drawn[6::16].translate(_VERSION)
        drawn[8::16] = drawn[8::16].translate(_VARIANT)
        digits = drawn.hex()
        self._ready = [
            f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-{digits[at + 12 : at + 16]}-"
            f"{digits[at + 16 : at + 20]}-{digits[at + 20 : at + 32]}"
            for at in range(0, 32 * BATCH, 32)
        ]
