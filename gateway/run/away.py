"""Says when Redis goes and when it is back; of a cluster, how much of it.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

LOOK_S = 0.2


class Ways(Protocol):
    """The ways to Redis."""

    @property
    def away(self) -> int:
        """Of how many partitions calls fail at once."""

    @property
    def trouble(self) -> str:
        """Why."""


async def tell_of_redis(ways: Ways, log: Callable[..., None], *, look_s: float = LOOK_S) -> None:
    """Say it until cancelled: in between no call waits for it."""
    said = 0
    while True:
        if (away := ways.away) != said:
            said = away
            if away:
                log("redis is away", partitions=away, why=ways.trouble, level="error")
            else:
                log("redis is back", level="info")
        await asyncio.sleep(look_s)
