"""Which of what one worker read from Redis is still true, because Redis tells it what changes.

What was read holds until a change of its key is told. One that is told between question and use counts as
well, whichever of the two came first. Without a connection that tells changes, nothing holds.

The catalogue, the prices, and which servers are verified are of everybody: they are read again as soon as
others are told of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from gateway.core.wait import Wait
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires

NEVER = 0
# Of a key that was asked for by itself: its place among others.
ALONE: Final = -1
# What is of everybody, and all that a wire should hear of.
LISTS = keys.CATALOGUE.encode(), keys.PRICES.encode(), keys.VERIFIED
HEARD = keys.IDENTITIES, keys.TERMS, *LISTS, keys.HISTORIES, keys.COOLING.encode()


class Changes:
    """Changes of the keys whose prefixes the wires hear; `changed` is told their names.

    Since when something holds goes by the numbers of `Hearing.since`; NEVER where it does not.
    """

    __slots__ = ("_changed", "_heard", "_others", "_reading", "_turn", "_wires")

    def __init__(self, wires: Wires, changed: Callable[[bytes], None]) -> None:
        self._wires, self._changed = wires, changed
        # Who hears since then, of those that were asked lately.
        self._heard: dict[int, Wire] = {}
        # Of each key that is being read.
        self._reading: dict[bytes, _UnderWay] = {}
        self._turn = 0
        self._others = asyncio.Event()
        wires.hear(self._told)

    def read(self, name: bytes) -> Reading:
        """Ask for a key; its answer is to be waited for."""
        wire = self._wires.of_key(name)
        return self._asked(name, wire, wire.send(encode(b"GET", name)))

    def read_together(self, names: Sequence[bytes]) -> list[Reading]:
        """Ask for many: in one command, where one server has them all."""
        if not names:
            return []
        wire = self._wires.of_key(names[0])
        if not wire.is_one:
            return [self.read(name) for name in names]
        wait = wire.send(encode(b"MGET", *names))
        return [self._asked(name, wire, wait, at) for at, name in enumerate(names)]

    def _asked(self, name: bytes, wire: Wire, wait: Wait[Reply], at: int = ALONE) -> Reading:
        self._turn += 1
        under_way = self._reading.get(name)
        if under_way is None:
            under_way = self._reading[name] = _UnderWay()
        under_way.readers += 1
        since = wire.hearing.since
        if since not in self._heard:
            self._heard = {number: one for number, one in self._heard.items() if one.hearing.since == number}
            self._heard[since] = wire
        return Reading(self, name, self._turn, since, wait, at)

    def ends(self, name: bytes, turn: int) -> bool:
        """A reading is over; whether no change was told since it began."""
        under_way = self._reading[name]
        under_way.readers -= 1
        if not under_way.readers:
            del self._reading[name]
        return under_way.told_at < turn

    def hold_until(self, since: int, within_s: float) -> float:
        """When what holds since then has to be looked at again, monotonic; 0 where it does not hold.

        Redis has answered what was asked within these seconds before, and with it came all that had changed.
        """
        wire = self._heard.get(since)
        if wire is None or not since or since != wire.hearing.since or not wire.available:
            return 0.0
        return wire.heard_at + within_s

    @property
    def hears(self) -> bool:
        """Whether every server tells what changes."""
        return all(wire.hearing.since for wire in self._wires.wires)

    async def others(self, within_s: float) -> None:
        """Wait until another catalogue or other prices are told of, so many seconds at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._others.wait(), within_s)
        self._others.clear()

    def _told(self, name: bytes) -> None:
        if not name or name.startswith(LISTS):
            self._others.set()
            return
        if not name.startswith((keys.IDENTITIES, keys.TERMS)):
            return
        under_way = self._reading.get(name)
        if under_way is not None:
            under_way.told_at = self._turn
        self._changed(name)


class _UnderWay:
    """Of one key: how many read it, and the last of their turns when a change of it was told."""

    __slots__ = ("readers", "told_at")

    def __init__(self) -> None:
        self.readers = 0
        self.told_at = 0


class Reading:
    """One question for a key. `told` says, once it is answered, that a change was told meanwhile: the answer
    is good for whoever asked, and not to be kept.
    """

    __slots__ = ("_at", "_changes", "_ended", "_name", "_since", "_turn", "_wait", "told")

    def __init__(  # noqa: PLR0917  # what it is, and where its answer comes
        self, changes: Changes, name: bytes, turn: int, since: int, wait: Wait[Reply], at: int
    ) -> None:
        self._changes, self._name, self._turn, self._since = changes, name, turn, since
        self._wait, self._at = wait, at
        self.told = self._ended = False

    async def answer(self) -> tuple[Reply, int]:
        """What the key holds, and since when that holds; CountersUnavailable where Redis does not answer."""
        try:
            reply = await self._wait
        finally:
            self.leave()
        if self._at != ALONE:
            assert isinstance(reply, list)
            reply = reply[self._at]
        return reply, NEVER if self.told else self._since

    def leave(self) -> None:
        """It is answered, or nobody waits for its answer any more."""
        if not self._ended:
            self._ended, self.told = True, not self._changes.ends(self._name, self._turn)
