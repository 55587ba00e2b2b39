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

NEVER = 0
# What is of everybody, and all that a wire should hear of.
LISTS = keys.CATALOGUE.encode(), keys.PRICES.encode()
HEARD = keys.IDENTITIES, keys.TERMS, *LISTS


class Changes:
    """Changes of the keys whose prefixes a wire hears; `changed` is told their names.

    Since when something holds goes by the numbers of `Hearing.since`; NEVER where it does not.
    """

    __slots__ = ("_changed", "_others", "_reading", "_turn", "_wire")

    def __init__(self, wire: Wire, changed: Callable[[bytes], None]) -> None:
        self._wire, self._changed = wire, changed
        # By the name of a key that is being read: whose turn it is.
        self._reading: dict[bytes, int] = {}
        self._turn = 0
        self._others = asyncio.Event()
        wire.hearing.changed = self._told

    def read(self, name: bytes) -> Reading:
        """Ask for a key; its answer is to be waited for."""
        self._turn += 1
        self._reading[name] = self._turn
        return Reading(
            self, name, self._turn, self._wire.hearing.since, self._wire.send(encode(b"GET", name))
        )

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
        wire = self._wire
        held = since and since == wire.hearing.since and wire.available
        return wire.answered_at + within_s if held else 0.0

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
