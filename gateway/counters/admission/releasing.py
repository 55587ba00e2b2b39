"""Holds that nobody waits for any more: they are given back as soon as Redis can be told.

A `reserve` that was given up after its wait may be admitted all the same, and a release may stay unanswered.
What is still to be released is remembered here, up to a maximum; beyond it, and where this worker dies, a
hold ends by its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import cast

from gateway.core.model import Settled, Settlement
from gateway.core.wait import Wait, in_task
from gateway.counters.layouts.packing import code_of
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

RELEASES_MAX = 10_000
BATCH_MAX = 500
AGAIN_S = 0.1
# A broken connection's last commands may run after the first release of the next one.
ASKED_MAX = 5


@dataclass(slots=True)
class _Owed:
    """A hold to be released until its deadline is past; `asked` counts the answers that knew no such hold."""

    settlement: Settlement
    until: float
    sent: Wait[Reply] | None = None
    asked: int = 0


class Releases:
    """Releases this worker has yet to send. `send` sends one at once, under the run id of now."""

    def __init__(
        self,
        wires: Wires,
        send: Callable[[Settlement], Wait[Reply]],
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._wires, self._send, self._clock = wires, send, clock
        self._ttl_s, self._owed_max = hold_ttl_s, RELEASES_MAX
        self._owed: dict[str, _Owed] = {}
        self._releasing: asyncio.Task[None] | None = None

    def owe(self, settlement: Settlement, *, at_once: bool = False) -> None:
        """Release this hold when Redis answers; `at_once`, before whatever is sent next."""
        before = self._owed.get(settlement.request_id)
        if before is not None and not settlement.service.id:
            return  # whatever the hold was topped up to, its release ends it; that of its head does not
        one = _Owed(settlement, self._clock() + self._ttl_s)
        if at_once:
            one.sent = self._send(settlement)
        if len(self._owed) < self._owed_max:
            self._owed[settlement.request_id] = one
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        while self._owed:
            there = ((name, one) for name, one in self._owed.items() if self._is_there(one))
            await self._release_some(dict(islice(there, BATCH_MAX)))
            now = self._clock()
            for request_id in [name for name, one in self._owed.items() if one.until <= now]:
                del self._owed[request_id]
            if self._owed:
                await asyncio.sleep(AGAIN_S)

    def _is_there(self, one: _Owed) -> bool:
        """Whether whoever has its partition by now can be told."""
        return self._wires.of(one.settlement.caller.partition).connected

    async def _release_some(self, some: dict[str, _Owed]) -> None:
        waits = [one.sent or self._send(one.settlement) for one in some.values()]
        for (request_id, one), wait in zip(some.items(), waits, strict=True):
            one.sent = None
            try:
                code = code_of(cast("bytes", await in_task(wait)))
            except CountersUnavailable:
                continue
            one.asked += code == Settled.UNKNOWN
            if code not in {Settled.UNVERIFIED, Settled.UNKNOWN} or one.asked >= ASKED_MAX:
                self._owed.pop(request_id, None)
