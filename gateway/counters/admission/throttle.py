"""A rate limit for queries that cost nothing: a number a minute for each API key, over all workers.

A refused key is remembered here until its next query is allowed, so that a flood queries Redis only about
once a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gateway.core.model import Caller
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode_script
from gateway.errors import RateLimited

USAGES_A_MINUTE = 60
WAITING_MAX = 4096


class Throttle:
    """Limits queries to `a_minute` for each API key. `clock` returns monotonic seconds."""

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        a_minute: int = USAGES_A_MINUTE,
        *,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._wires, self._clock = wires, clock
        self._a_minute, self._waiting_max = a_minute, waiting_max
        self._waiting: dict[int, float] = {}

    async def admit(self, caller: Caller) -> None:
        """Count one query of an API key; RateLimited if it queries too often.

        CountersUnavailable if Redis does not answer.
        """
        waiting, key_id = self._waiting, caller.key_id
        until = waiting.get(key_id)
        if until is not None:
            left_s = until - self._clock()
            if left_s > 0:
                raise self._refusal(left_s)
            del waiting[key_id]
        name, wire = keys.bucket(caller.partition, key_id), self._wires.of(caller.partition)
        wait_ms = cast("int", await wire.send(encode_script("throttle", (name,), (b"%d" % self._a_minute,))))
        if wait_ms > 0:
            if len(waiting) >= self._waiting_max and key_id not in waiting:
                del waiting[next(iter(waiting))]
            waiting[key_id] = self._clock() + wait_ms / 1000
            raise self._refusal(wait_ms / 1000)

    def _refusal(self, left_s: float) -> RateLimited:
        wait = max(1, -int(-left_s // 1))
        refusal = RateLimited(
            f"Rate limit of this API key: {self._a_minute} of {self._a_minute} requests a minute for its own "
            f"usage are used. Try again in {wait} s.",
            retry_after_s=wait,
            retry_helps=True,
        )
        refusal.scope = "key"
        return refusal
