"""The accounts of upstreams' shared capacity in Redis, and the call of the script `share` that asks them.

All accounts of one upstream are in the slot of one partition, chosen by the upstream's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.core.calls.routes import CapacityLimits
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode_script
from gateway.errors import CountersRefused, CountersUnavailable

_encode = msgspec.json.Encoder().encode


# Questions and notices to an account, as the Lua script `share` reads them.
@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """A call's request for capacity: its share, its `need` of tokens, and if `more` of the share wait."""

    id: str
    share: str
    weight: int
    requests: int
    tokens: int
    batch: int
    need: int
    more: int


@dataclass(frozen=True, slots=True)
class CapacityEnd:
    """The part of an ended call's capacity that it did not use; below 0 it used more.

    `by` is 1 if the call was admitted by its weight, 2 if by its guarantee.
    """

    share: str
    by: int
    weight: int
    requests: int
    tokens: int


class CapacityPort(Protocol):
    """Accounts of upstreams' capacity in Redis."""

    def ask(  # noqa: PLR0917  # whose account, who asks, and what changed since it was asked last
        self,
        account: tuple[str, str],
        limits: CapacityLimits,
        asks: Sequence[CapacityAsk],
        ended: Sequence[CapacityEnd],
        over: Sequence[str],
        going: Sequence[str],
    ) -> Awaitable[list[int]]:
        """Request capacity for calls from an account, which is an upstream's name and a model.

        Return the milliseconds until the next call may have room, then for each of `asks` 0 (wait), 1
        (admitted) or 2 (admitted by its share's guarantee). `ended` are amounts that ended calls did not use.
        `over` are the ids of ended calls, and `going` those of running calls. Fails with
        `CountersUnavailable`, or with `CountersRefused` if certainly nothing was done.
        """


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
        """Share an upstream's capacity; return the wait in ms, then an answer for each of `asks`."""
        most = {
            "requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute,
            "concurrency": limits.concurrency,
        }  # fmt: skip
        partition, names = keys.capacity(*account)
        arguments = tuple(map(_encode, (most, asks, ended, over, going)))
        wait = self._wires.of(partition).send(encode_script("share", names, arguments))
        if wait.done:
            raise CountersRefused  # it was never sent
        answer = await wait
        if not isinstance(answer, list) or len(answer) != len(asks) + 1:
            raise CountersUnavailable
        return [number if isinstance(number, int) else 0 for number in answer]
