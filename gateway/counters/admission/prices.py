"""What models cost, as Redis has it: the price book of one worker.

Prices that begin later come long before, so each is in force at its time by the worker's own clock, and a
new one as soon as Redis tells of it, within half a second otherwise. What cannot be read, or was written by a
newer keeper, is told once, and what was read before stays in force.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.billing.price_book import PriceBook
from gateway.core.billing.vector import Vector
from gateway.core.wait import in_task
from gateway.counters.admission.stored import UNREADABLE, StoredPrices, decode_prices
from gateway.counters.redis import keys
from gateway.counters.redis.verified import ask_word, says_verified
from gateway.counters.redis.wire import encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersRefused

_PRICES, _HEAD = keys.PRICES.encode(), keys.PRICES_HEAD.encode()


def unheard(what: str, **facts: object) -> None:
    """Where nobody listens."""


class Prices:
    """The book and its `version`, 0 before the first one was read; `log` is told of those that cannot be."""

    __slots__ = ("_book", "_log", "_looked_at", "_told", "_wires", "version")

    def __init__(self, wires: Wires, log: Callable[..., None]) -> None:
        self.version = 0
        self._book = PriceBook()
        self._wires = wires
        self._log = log
        # The head of what was last read, whether it could be or not; and what was last told of.
        self._looked_at = b""
        self._told = ""

    @property
    def unread(self) -> bool:
        """Whether those that are there could not be read when they were looked at last."""
        return self._told != ""

    def vector(self, model: str, currency: str, at_ms: float) -> Vector | None:
        """The price in force of a model at a time (ms since the epoch), None where there is none."""
        return self._book.vector(model, currency, at_ms)

    async def refresh(self) -> None:
        """Read the book again if there is another; CountersUnavailable where Redis cannot be asked."""
        try:
            stored = await self._newer()
        except (CountersRefused, *UNREADABLE) as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log("prices cannot be read", error=self._told, in_force=self.version, level="error")
            return
        if stored is not None:
            self._book, self.version, self._told = PriceBook(stored.prices), stored.version, ""

    async def _newer(self) -> StoredPrices | None:
        head = await in_task(self._wires.of_key(_HEAD).send(encode(b"GET", _HEAD), upkeep=True))
        if not isinstance(head, bytes) or head == self._looked_at:
            return None
        wire = self._wires.of_key(_PRICES)
        raw = await in_task(wire.send(encode(b"GET", _PRICES)))
        before, self._looked_at = self._looked_at, head
        if raw is None:  # whoever writes them again may write the same head
            self._looked_at = before
            raise ValueError("there are none")
        stored = decode_prices(raw if isinstance(raw, bytes) else b"")
        if stored.version < self.version and not await says_verified(wire, ask_word(wire)):
            self._looked_at = before  # of a server that may lack the latest
            return None
        return stored
