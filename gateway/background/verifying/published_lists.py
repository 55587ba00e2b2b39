"""Lists that keepers publish for gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.integrity.recovery import GlobalDefinitions
from gateway.errors import CountersRefused, CountersUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import LedgerReader


LOOK_S = 1.0
# One in this many looks reads the whole catalogue, to see whether it is an older one.
WHOLE_EACH = 10


async def publish(target: KeeperCounters, everybodys: GlobalDefinitions) -> None:
    await target.publish(everybodys.prices, everybodys.version)
    await target.publish(everybodys.catalogue, everybodys.version)


@dataclass(slots=True, eq=False)
class PublishedLists:
    """Rewrites the catalogue and the prices in Redis if they are missing, outdated or unreadable.

    Only while `may_write()` is true: before Redis is verified, and beside a newer version, another process
    writes them.
    """

    source: LedgerReader
    target: KeeperCounters
    may_write: Callable[[], bool]
    log: Callable[..., None] = lambda *_, **__: None
    _looks: int = field(default=0, init=False)
    # By list, the newest version seen since this process wrote it.
    _seen: dict[str, int] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        """Look at intervals whether the lists in Redis are as they must be."""
        while True:
            try:
                if self.may_write():
                    await self.look()
            except CountersUnavailable as error:
                if isinstance(error, CountersRefused):
                    raise
            await asyncio.sleep(LOOK_S)

    async def look(self) -> list[str]:
        """Write all global lists to Redis again if any is missing or outdated; return the names of those."""
        stand = await self.target.published(whole=self._looks % WHOLE_EACH == 0)
        self._looks += 1
        lacking = sorted(name for name, version in stand.items() if version < self._seen.get(name, 1))
        for name, version in stand.items():
            self._seen[name] = max(version, self._seen.get(name, 0))
        if lacking:
            everybodys = await self.source.everybodys()
            await publish(self.target, everybodys)
            odd = [name for name in lacking if stand[name] < 0]
            facts = {"stood_there": "something else"} if odd else {}
            self.log("written again", keys=lacking, version=everybodys.version, level="warning", **facts)
            self._seen, self._looks = {}, 0  # PostgreSQL may have been restored to an older state
        return lacking
