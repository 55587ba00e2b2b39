"""The accounts of upstreams' capacity in Redis: where they stand, and how they are asked.

Those of one upstream stand in the slot of one partition, by the upstream's name.
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
    """Asks the accounts; see `CapacityPort`."""

    def __init__(self, wires: RedisConnections) -> None:
        self._wires = wires

    async def ask(  # noqa: PLR0917  # as the port has it
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
            raise CountersRefused  # it never left
        answer = await wait
        if not isinstance(answer, list) or len(answer) != len(asks) + 1:
            raise CountersUnavailable
        return [one if isinstance(one, int) else 0 for one in answer]
