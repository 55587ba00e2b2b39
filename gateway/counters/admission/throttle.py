"""A bucket of its own for what is free to ask: so many a minute a key, over all workers.

Who is refused is remembered here until there is one left, so that a flood asks Redis about once
a second, whatever its rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gateway.core.model import Caller
from gateway.counters.redis import keys
from gateway.counters.redis.wire import encode_script
from gateway.counters.redis.wires import Wires
from gateway.errors import RateLimited

USAGES_A_MINUTE = 60
WAITING_MAX = 4096


class Throttle:
    """Buckets of `a_minute` for each API key. `clock` is monotonic seconds."""

    def __init__(
        self,
        wires: Wires,
        clock: Callable[[], float],
        a_minute: int = USAGES_A_MINUTE,
        *,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._wires, self._clock = wires, clock
        self._a_minute, self._waiting_max = a_minute, waiting_max
        self._waiting: dict[int, float] = {}

    async def admit(self, caller: Caller) -> None:
        """Take one. RateLimited where none is left, CountersUnavailable where that cannot be known."""
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
