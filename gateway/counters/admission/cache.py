"""Which values that one worker read from Redis are still true, because Redis tells it of changes.

A read value holds until a change of its key is told. One that is told between question and use counts as
well, whichever of the two came first. Without a connection that tells changes, nothing holds.

The catalogue, the prices, and which servers are verified are of everybody: they are read again as soon as
others are told of.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from gateway.core.lru import LruEntry
from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import Overloaded

NEVER = 0
# Of a key that was asked for by itself: its place among others.
ALONE: Final = -1
# Values of everybody.
LISTS = keys.CATALOGUE.encode(), keys.PRICES.encode(), keys.VERIFIED
# How the names begin of all that a wire should hear of: identities, terms, the catalogue, cooling upstreams
# and lessons of calls, prices, verified servers, histories. Redis goes through these with each key that it
# writes.
HEARD = b"tk:i", b"tk:o", b"tk:c", b"tk:pri", b"tk:v", b"tk:h"


class Changes:
    """Changes of the keys whose prefixes the wires hear; `changed` is told their names.

    Since when something holds goes by the numbers of `InvalidationListener.since`; NEVER where it does not.
    """

    __slots__ = ("_changed", "_heard", "_others", "_reading", "_turn", "_wires")

    def __init__(self, wires: RedisConnections, changed: Callable[[bytes], None]) -> None:
        self._wires, self._changed = wires, changed
        # Who hears since then, of those that were asked lately.
        self._heard: dict[int, RedisConnection] = {}
        # Of each key that is being read.
        self._reading: dict[bytes, _KeyReads] = {}
        self._turn = 0
        self._others = asyncio.Event()
        wires.hear(self._told)

    def read(self, name: bytes) -> KeyLookup:
        """Ask for a key; its answer is to be waited for."""
        wire = self._wires.of_key(name)
        return self._asked(name, wire, wire.send(encode(b"GET", name)))

    def read_together(self, names: Sequence[bytes]) -> list[KeyLookup]:
        """Ask for many: in one command, where one server has them all."""
        if not names:
            return []
        wire = self._wires.of_key(names[0])
        if not wire.is_one:
            return [self.read(name) for name in names]
        wait = wire.send(encode(b"MGET", *names))
        return [self._asked(name, wire, wait, at) for at, name in enumerate(names)]

    def _asked(self, name: bytes, wire: RedisConnection, wait: Wait[Reply], at: int = ALONE) -> KeyLookup:
        self._turn += 1
        under_way = self._reading.get(name)
        if under_way is None:
            under_way = self._reading[name] = _KeyReads()
        under_way.readers += 1
        since = wire.hearing.since
        if since not in self._heard:
            self._heard = {number: one for number, one in self._heard.items() if one.hearing.since == number}
            self._heard[since] = wire
        return KeyLookup(self, name, self._turn, since, wait, at)

    def ends(self, name: bytes, turn: int) -> bool:
        """End a reading; return whether no change was reported since it began."""
        under_way = self._reading[name]
        under_way.readers -= 1
        if not under_way.readers:
            del self._reading[name]
        return under_way.told_at < turn

    def hold_until(self, since: int, within_s: float) -> float:
        """Return when what holds since then has to be looked at again, monotonic; 0 where it does not hold.

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


class _KeyReads:
    """Of one key: how many read it, and the last of their turns when a change of it was told."""

    __slots__ = ("readers", "told_at")

    def __init__(self) -> None:
        self.readers = 0
        self.told_at = 0


class KeyLookup:
    """One question for a key. `told` says, once it is answered, that a change was told meanwhile: the answer
    is good for that question, and not to be cached.
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


# Callers that were looked up, as many as there is room for, and whose turn it is to be looked up.

# The cache entry of a caller takes so many bytes, and so many more for each byte it was read from (measured).
KNOWN_BYTES: Final = 512
KNOWN_COPIES: Final = 8


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """What one worker keeps of callers, where its `CachePool` has room, and of credentials nobody has.

    Of those that are not known so many are looked up at once, and so many wait for that.
    """

    known_bytes_max: int = 32 * 1024 * 1024
    terms_bytes_max: int = 48 * 1024 * 1024
    unknown_max: int = 4096
    look_ups_max: int = 256
    look_ups_waiting_max: int = 16_384


BOUNDS: Final = CacheLimits()


class CachedValue(LruEntry):
    """A value read as `raw`, empty where there was nothing, and asked for at `read_at`, monotonic.

    `since` is when the wire has told of no change of it, `size` are the bytes that it takes.
    """

    __slots__ = ("raw", "read_at", "since", "size")

    raw: bytes
    read_at: float
    since: int
    size: int


class CachedCaller(CachedValue):
    """A caller who is `fresh` until then, monotonic. Its key expires at `expires_ms` (0: never)."""

    __slots__ = ("caller", "expires_ms", "fresh")

    def __init__(
        self, caller: Caller, raw: bytes, *, read_at: float, fresh: float, expires_ms: int, since: int
    ) -> None:
        self.size = known_bytes(raw)
        self.raw, self.read_at, self.since = raw, read_at, since
        self.caller, self.fresh, self.expires_ms = caller, fresh, expires_ms

    def expired(self, now_ms: float) -> bool:
        """Return whether its key's time is over."""
        return 0 < self.expires_ms <= now_ms


def known_bytes(raw: bytes) -> int:
    """Return what a caller that was read from this takes."""
    return KNOWN_BYTES + KNOWN_COPIES * len(raw)


class LookupTicket:
    """One who wants to look up. `granted`: it is his turn, or he never had to wait."""

    __slots__ = ("granted", "wait")

    def __init__(self) -> None:
        self.granted = False
        self.wait: Wait[None] = Wait()


class LookupQueue:
    """So many look up at once, `under_way`, and others wait in order: a flood of guesses fills no queue of
    those who are known. Overloaded where `waiting_max` wait.
    """

    __slots__ = ("_most", "_waiting", "_waiting_max", "under_way")

    def __init__(self, most: int, waiting_max: int) -> None:
        self.under_way = 0
        self._most, self._waiting_max = most, waiting_max
        self._waiting: OrderedDict[LookupTicket, None] = OrderedDict()

    def take(self) -> LookupTicket:
        """Ask for a turn, whose `wait` ends with it; it is to be given back whatever happens."""
        turn = LookupTicket()
        if self.under_way < self._most:
            self.under_way += 1
            turn.granted = True
            turn.wait.set(None)
        elif len(self._waiting) >= self._waiting_max:
            raise Overloaded("Too many unknown credentials are being looked up. Try again in a moment.")
        else:
            self._waiting[turn] = None
        return turn

    def give_back(self, turn: LookupTicket) -> None:
        """It is over, or not wanted any more. The next one goes on in a moment, not here."""
        if not turn.granted:
            del self._waiting[turn]
        elif self._waiting:
            following, _ = self._waiting.popitem(last=False)
            following.granted = True
            asyncio.get_running_loop().call_soon(following.wait.set, None)
        else:
            self.under_way -= 1
