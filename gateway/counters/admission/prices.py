"""What models cost, as Redis has it: the price book of one worker.

Prices that begin later come long before, so each is in force at its time by the worker's own clock, and a
new one within a second. What cannot be read, or was written by a newer keeper, is told once, and what was
read before stays in force.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.billing.cost import Vector
from gateway.core.billing.price_book import PriceBook
from gateway.core.wait import in_task
from gateway.counters.admission.stored import decode_prices
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Wire, encode


class Prices:
    """The book and its `version`, 0 before the first one was read; `log` is told of those that cannot be."""

    __slots__ = ("_book", "_log", "_looked_at", "_wire", "version")

    def __init__(self, wire: Wire, log: Callable[..., None]) -> None:
        self.version = 0
        self._book = PriceBook()
        self._wire = wire
        self._log = log
        # The head of what was last read, or refused.
        self._looked_at = b""

    def vector(self, model: str, currency: str, at_ms: float) -> Vector | None:
        """The price in force of a model at a time (ms since the epoch), None where there is none."""
        return self._book.vector(model, currency, at_ms)

    async def refresh(self) -> None:
        """Read the book again if there is another; CountersUnavailable where Redis cannot be asked."""
        said = await in_task(self._wire.send(encode(b"GET", keys.PRICES_HEAD.encode())))
        if not isinstance(said, bytes) or said == self._looked_at:
            return
        raw = await in_task(self._wire.send(encode(b"GET", keys.PRICES.encode())))
        self._looked_at = said
        try:
            stored = decode_prices(raw if isinstance(raw, bytes) else b"")
        except ValueError as error:
            self._log("prices cannot be read", error=str(error), in_force=self.version, level="error")
            return
        self._book, self.version = PriceBook(stored.prices), stored.version
