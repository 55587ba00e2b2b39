"""Says when Redis goes and when it is back; of a cluster, how much of it.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.counters.redis.wires import Wires

LOOK_S = 0.2


async def tell_of_redis(ways: Wires, log: Callable[..., None], *, look_s: float = LOOK_S) -> None:
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
