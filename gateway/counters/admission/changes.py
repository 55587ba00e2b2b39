"""Which of what one worker read from Redis is still true, because Redis tells it what changes.

What was read holds until a change of its key is told. One that is told between question and use counts as
well, whichever of the two came first. Without a connection that tells changes, nothing holds.

The catalogue and the prices are of everybody: they are read again as soon as others are told of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from gateway.core.wait import Wait
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires

NEVER = 0
# What is of everybody, and all that a wire should hear of.
LISTS = keys.CATALOGUE.encode(), keys.PRICES.encode()
HEARD = keys.IDENTITIES, keys.TERMS, *LISTS


class Changes:
    """Changes of the keys whose prefixes the wires hear; `changed` is told their names.

    Since when something holds goes by the numbers of `Hearing.since`; NEVER where it does not.
    """

    __slots__ = ("_changed", "_heard", "_others", "_reading", "_turn", "_wires")

    def __init__(self, wires: Wires, changed: Callable[[bytes], None]) -> None:
        self._wires, self._changed = wires, changed
        # Who hears since then, of those that were asked lately.
        self._heard: dict[int, Wire] = {}
        # By the name of a key that is being read: whose turn it is.
        self._reading: dict[bytes, int] = {}
        self._turn = 0
        self._others = asyncio.Event()
        wires.hear(self._told)

    def read(self, name: bytes) -> Reading:
        """Ask for a key; its answer is to be waited for."""
        self._turn += 1
        self._reading[name] = self._turn
        wire = self._wires.of_key(name)
        since = wire.hearing.since
        if since not in self._heard:
            self._heard = {number: one for number, one in self._heard.items() if one.hearing.since == number}
            self._heard[since] = wire
        return Reading(self, name, self._turn, since, wire.send(encode(b"GET", name)))

    def ends(self, name: bytes, turn: int) -> bool:
        """A reading is over; whether no change was told since, and nobody has asked again."""
        if self._reading.get(name) != turn:
            return False
        del self._reading[name]
        return True

    def hold_until(self, since: int, within_s: float) -> float:
        """When what holds since then has to be looked at again, monotonic; 0 where it does not hold.

        Redis has answered within these seconds before, and with it came all that had changed until then.
        """
        wire = self._heard.get(since)
        if wire is None or not since or since != wire.hearing.since or not wire.available:
            return 0.0
        return wire.answered_at + within_s

    async def others(self, within_s: float) -> None:
        """Wait until another catalogue or other prices are told of, so many seconds at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._others.wait(), within_s)
        self._others.clear()

    def _told(self, name: bytes) -> None:
        if name.startswith(LISTS):
            self._others.set()
            return
        self._reading.pop(name, None)
        self._changed(name)


class Reading:
    """One question for a key."""

    __slots__ = ("_changes", "_name", "_since", "_turn", "_wait")

    def __init__(self, changes: Changes, name: bytes, turn: int, since: int, wait: Wait[Reply]) -> None:
        self._changes, self._name, self._turn, self._since, self._wait = changes, name, turn, since, wait

    async def answer(self) -> tuple[Reply, int]:
        """What the key holds, and since when that holds; CountersUnavailable where Redis does not answer."""
        unchanged = False
        try:
            reply = await self._wait
        finally:
            unchanged = self._changes.ends(self._name, self._turn)
        return reply, self._since if unchanged else NEVER
