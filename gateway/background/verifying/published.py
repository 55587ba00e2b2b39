"""Sees that the lists of everybody stand: the catalogue of services, and the prices.

They are of no partition. So their slots may be lost alone, and be given out empty, and somebody may delete
them: no marker tells. A worker that starts without a catalogue refuses every call. What is missing, or older
than it was, or no such list, is written again as PostgreSQL has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.core.accounts.definitions import CatalogueDefinition, PricesDefinition
from gateway.core.integrity.verified import Everybodys
from gateway.errors import CountersRefused, CountersUnavailable

LOOK_S = 1.0
# Which of the looks reads the whole catalogue, to see that it is not an older one.
WHOLE_EACH = 10


class Source(Protocol):
    """PostgreSQL."""

    async def everybodys(self) -> Everybodys:
        """What is of no partition."""


class Publisher(Protocol):
    """The counters, written."""

    async def publish(self, everybodys: CatalogueDefinition | PricesDefinition, version: int) -> None:
        """Write the catalogue, or the prices; older ones are ignored."""


class Target(Publisher, Protocol):
    """The counters."""

    async def published(self, *, whole: bool) -> Mapping[str, int]:
        """Of the lists the versions that stand, 0 of one that does not, -1 of what is none."""


async def publish(target: Publisher, everybodys: Everybodys) -> None:
    """Write what is of no partition."""
    await target.publish(everybodys.prices, everybodys.version)
    await target.publish(everybodys.catalogue, everybodys.version)


class PublishedLists:
    """Looks while `may_write` says so: before Redis is verified, and beside a newer version, others write."""

    def __init__(
        self,
        source: Source,
        target: Target,
        may_write: Callable[[], bool],
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._source, self._target, self._may_write, self._log = source, target, may_write, log
        self._looks = 0
        # The newest version of each that was seen since they were written here.
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                if self._may_write():
                    await self.look()
            except CountersUnavailable as error:
                if isinstance(error, CountersRefused):
                    raise
            await asyncio.sleep(LOOK_S)

    async def look(self) -> list[str]:
        """Write all of them again where one is missing or older; answers which."""
        stand = await self._target.published(whole=self._looks % WHOLE_EACH == 0)
        self._looks += 1
        lacking = sorted(name for name, version in stand.items() if version < self._seen.get(name, 1))
        for name, version in stand.items():
            self._seen[name] = max(version, self._seen.get(name, 0))
        if lacking:
            everybodys = await self._source.everybodys()
            await publish(self._target, everybodys)
            odd = [name for name in lacking if stand[name] < 0]
            facts = {"stood_there": "something else"} if odd else {}
            self._log("written again", keys=lacking, version=everybodys.version, level="warning", **facts)
            self._seen, self._looks = {}, 0  # PostgreSQL may be older than it was
        return lacking
