"""The accounts of upstreams' shared capacity in Redis, and the script call that asks them.

All accounts of one upstream are in the slot of one partition, chosen by the upstream's name.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.core.calls.capacity import CapacityAsk, CapacityEnd, CapacityLimits
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode_script
from gateway.errors import CountersRefused, CountersUnavailable

_encode = msgspec.json.Encoder().encode


class CapacityAccounts:
    """Asks the accounts for capacity; implements `CapacityPort`."""

    def __init__(self, wires: RedisConnections) -> None:
        self._wires = wires

    async def ask(  # noqa: PLR0917  # the signature of the port
        self,
        account: tuple[str, str],
        limits: CapacityLimits,
        asks: Sequence[CapacityAsk],
        ended: Sequence[CapacityEnd],
        over: Sequence[str],
        going: Sequence[str],
    ) -> list[int]:
        most = {
            "requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute,
            "concurrency": limits.concurrency,
        }  # fmt: skip
        partition, names = keys.capacity(*account)
        told = tuple(map(_encode, (most, asks, ended, over, going)))
        wait = self._wires.of(partition).send(encode_script("share", names, told))
        if wait.done:
            raise CountersRefused  # it was never sent
        answer = await wait
        if not isinstance(answer, list) or len(answer) != len(asks) + 1:
            raise CountersUnavailable
        return [one if isinstance(one, int) else 0 for one in answer]
