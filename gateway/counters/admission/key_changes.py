"""Decides which values that a worker read from Redis are still valid, by Redis' messages about changed keys.

A value is valid until Redis reports a change of its key. A change that is reported between the query and the
use of the answer counts too, whichever arrives first. Without a connection that reports changes, no value is
valid.

The catalogue, the prices and the list of verified servers are global: they are read again as soon as a change
is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from gateway.core.wait import Wait
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode

NEVER = 0
# The index of an answer that is not part of an MGET.
ALONE: Final = -1
# Keys of global values.
LISTS = keys.CATALOGUE.encode(), keys.PRICES.encode(), keys.VERIFIED
# The prefixes of all keys whose changes Redis reports: identities, terms, the catalogue, upstreams in backoff
# and lessons of calls, empty accounts of upstreams, prices, verified servers, histories. Redis compares these with
# each key that it writes.
HEARD = b"tk:i", b"tk:o", b"tk:c", keys.EMPTY_ACCOUNTS.encode(), b"tk:pri", b"tk:v", b"tk:h"


class Changes:
    """Tracks changes of keys that Redis reports; calls `changed` with the name of each changed key.

    How long a value has been valid is a number of `InvalidationListener.since`; NEVER if it is not.
    """

    __slots__ = ("_changed", "_heard", "_others", "_reading", "_turn", "_wires")

    def __init__(self, wires: RedisConnections, changed: Callable[[bytes], None]) -> None:
        self._wires, self._changed = wires, changed
        # By its number `since`, each connection that was queried lately.
        self._heard: dict[int, RedisConnection] = {}
        # Reads in progress, by key.
        self._reading: dict[bytes, _KeyReads] = {}
        self._turn = 0
        self._others = asyncio.Event()
        wires.hear(self._note_change)

    def read(self, name: bytes) -> KeyLookup:
        """Query a key; the caller must await the answer, or call `leave`."""
        wire = self._wires.of_key(name)
        return self._send_lookup(name, wire, wire.send(encode(b"GET", name)))

    def read_together(self, names: Sequence[bytes]) -> list[KeyLookup]:
        """Query several keys, in one command if one server has them all."""
        if not names:
            return []
        wire = self._wires.of_key(names[0])
        if not wire.is_one:
            return [self.read(name) for name in names]
        wait = wire.send(encode(b"MGET", *names))
        return [self._send_lookup(name, wire, wait, at) for at, name in enumerate(names)]

    def _send_lookup(
        self, name: bytes, wire: RedisConnection, wait: Wait[Reply], at: int = ALONE
    ) -> KeyLookup:
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
        """End a read of a key, begun as number `turn`; return whether the key has not changed since."""
        under_way = self._reading[name]
        under_way.readers -= 1
        if not under_way.readers:
            del self._reading[name]
        return under_way.told_at < turn

    def hold_until(self, since: int, within_s: float) -> float:
        """Return the monotonic time until which cached values are valid; 0 if they are invalid already.

        The values are those that a server has reported all changes of since the period numbered `since`. The
        result is `within_s` seconds after the server's last answer, which came with all changes up to then.
        """
        wire = self._heard.get(since)
        if wire is None or not since or since != wire.hearing.since or not wire.available:
            return 0.0
        return wire.heard_at + within_s

    @property
    def hears(self) -> bool:
        """Whether every server reports changes."""
        return all(wire.hearing.since for wire in self._wires.wires)

    async def others(self, within_s: float) -> None:
        """Wait until a change of the catalogue or the prices is reported, `within_s` seconds at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._others.wait(), within_s)
        self._others.clear()

    def _note_change(self, name: bytes) -> None:
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
    """Counts the reads in progress of one key; `told_at` is the last read begun before a reported change."""

    __slots__ = ("readers", "told_at")

    def __init__(self) -> None:
        self.readers = 0
        self.told_at = 0


class KeyLookup:
    """One query of a key. `told` is set if a change was reported before the answer: then do not cache it."""

    __slots__ = ("_at", "_changes", "_ended", "_name", "_since", "_turn", "_wait", "told")

    def __init__(  # noqa: PLR0917  # what is queried, and where its answer arrives
        self, changes: Changes, name: bytes, turn: int, since: int, wait: Wait[Reply], at: int
    ) -> None:
        self._changes, self._name, self._turn, self._since = changes, name, turn, since
        self._wait, self._at = wait, at
        self.told = self._ended = False

    async def answer(self) -> tuple[Reply, int]:
        """Return the key's value, and the number of the period since which all its changes were reported.

        CountersUnavailable if Redis does not answer. The number is NEVER if the key changed meanwhile.
        """
        try:
            reply = await self._wait
        finally:
            self.leave()
        if self._at != ALONE:
            assert isinstance(reply, list)
            reply = reply[self._at]
        return reply, NEVER if self.told else self._since

    def leave(self) -> None:
        """End this query, because it was answered or nobody waits for the answer any more."""
        if not self._ended:
            self._ended, self.told = True, not self._changes.ends(self._name, self._turn)
