"""Detects that the data in Redis was exchanged: the same server process may have other data than before.

The data has the name of its history (`tk:history:…`): a generation, and a nonce. A process that sees that the
data does not continue what it knew begins the next generation. Markers then belong to another history, so
that nothing is served before a keeper has verified the data. There are five signs:

- The name is watched on the connection (WATCH). Whatever replaces many keys, such as a full synchronisation,
  FLUSHALL, a reload or SWAPDB, breaks the watch, even if old and new data are equal.
- Each process writes a pulse, a number that only rises, and reads it again: over a new connection, or after a
  pause, older data has a lower one. Pulses use the server's time, so that a process with a wrong clock cannot
  make the server forget any pulse.
- The server reports when it was last promoted from a replica to a primary. Data that it copied since, and
  that is still marked as verified before, may be older, unless a keeper has stored that it checked the data
  after this promotion.
- A process that learns of a loss from its settlement log or from PostgreSQL calls `announce`.

All data has generation 0 until its first exchange; its history is then named by the server process alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from secrets import token_hex
from typing import cast

from gateway.core.layout import LAYOUT
from gateway.core.wait import Wait, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import Ask, Server
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.connection import RedisConnection, encode, script_parts
from gateway.counters.redis.keys import part_of
from gateway.errors import CountersRefused, CountersUnavailable, SlotMoving

# The markers of a server's partitions: their history, and how to make all of another history invalid.

# The history in the marker of a partition that is not served.
NOBODY = b"." * 40


async def close(ask: Ask, run_id: bytes, partitions: Sequence[int]) -> None:
    """Replace markers of other histories than `run_id` by invalid ones, so that nobody serves their data."""
    closing = []
    for partition, raw in (await _markers(ask, partitions)).items():
        named, epoch, catalogue = packing.read_marker(raw)
        if named not in (run_id, NOBODY):
            new = packing.marker(NOBODY, epoch, catalogue, packing.layout_of(raw))
            call = packing.rebuild(run_id, partition, keys.marker(partition), new, raw)
            closing.append(ask(*script_parts("load", *call)))
    await asyncio.gather(*closing)


async def replace(ask: Ask, key: bytes, before: bytes, after: bytes) -> bool:
    """Write a key if its value is still `before`; return False if not."""
    arguments = packing.LOAD.pack(b"", packing.REBUILD, 0, 0, 0), after, before
    answer = await ask(*script_parts("load", (key.decode(),) * 3, arguments))
    return packing.code_of(cast("bytes", answer)) == 1


async def _markers(ask: Ask, partitions: Sequence[int]) -> dict[int, bytes]:
    """Return the markers that this version can read, by partition."""
    markers = await asyncio.gather(
        *(_read_here(ask, keys.marker(partition).encode()) for partition in partitions)
    )
    there = {
        partition: raw
        for partition, raw in zip(partitions, markers, strict=True)
        if isinstance(raw, bytes) and raw
    }
    return {partition: raw for partition, raw in there.items() if raw[0] <= LAYOUT and _is_whole(raw)}


async def _read_here(ask: Ask, key: bytes) -> Reply:
    """Return the value of a key; None if its slot is being moved and the key is at the other server."""
    value: Reply = None
    with suppress(SlotMoving):
        value = await ask(b"GET", key)
    return value


def _is_whole(raw: bytes) -> bool:
    return len(packing.MARKER.today(raw)) == packing.MARKER.size


# The names of data: their history, and the number of exchanges before.
def history(run_id: bytes, name: bytes) -> bytes:
    """Return a history's name for markers: the run id, or after an exchange of data its hash with `name`."""
    if generation(name) == 0:
        return run_id
    return sha1(run_id + name, usedforsecurity=False).hexdigest().encode()


def generation(name: bytes) -> int:
    """Return how often the data was exchanged, which is part of its `name`; 0 for an empty name."""
    number, _, nonce = name.partition(b":")
    return int(number) if nonce and number.isdigit() else 0


def fresh(number: int) -> bytes:
    """Return a new, unique name for a history of the generation `number`."""
    return b"%d:%b" % (number, token_hex(16).encode())


TRIES_MAX = 5
LEFT_MAX = 64
# Pulses of a process that was silent for this long are deleted.
PULSE_S_MAX = 30 * 86_400
OLDER, FOLLOWED = "it is older than what this process left in it", "its server was another's replica"


class HistoryGuard:
    """Guards one connection against exchanged data; sets its `run_id` to the history's id at each connect.

    `pulse` is the unique name of this process; `clock` is monotonic. `noticed` counts the exchanges that this
    process was the first to announce. `promoted` has the last promotion of each server by run id, and
    outlives a connection whose server is replaced and later becomes a primary again. With `vouches` this process
    may write that all data is verified.
    """

    def __init__(
        self,
        wire: RedisConnection,
        pulse: str,
        clock: Callable[[], float],
        say: Callable[..., None] = lambda *_, **__: None,
        promoted: dict[bytes, bytes] | None = None,
        *,
        vouches: bool = False,
        admit: Callable[[RedisConnection, Ask], Awaitable[None]] | None = None,
    ) -> None:
        self.noticed = 0
        self._admit = admit
        self._vouches = vouches
        self._promoted = {} if promoted is None else promoted
        self._wire, self._pulse, self._clock, self._say = wire, pulse.encode(), clock, say
        self._looking = asyncio.Lock()
        self._server = Server(b"", b"", "", is_one=False)
        self._left: dict[bytes, bytes] = {}
        self._name = b""
        self._trouble = ""
        self._beat = self._floor = self._known = 0
        # The server's time of day minus the clock, in seconds.
        self._ahead_s = 0.0
        self._anchor = wire.part.anchor
        self._full = self._moving = False
        wire.identify = self._greeted

    @property
    def _named(self) -> bytes:
        return keys.history(self._anchor).encode()

    @property
    def _pulses(self) -> bytes:
        return keys.pulses(self._anchor).encode()

    async def check_history(self, *commands: bytes) -> None:
        """Verify that everything read on this connection so far belongs to the history named by `run_id`.

        If so, execute `commands` in one transaction. Its EXEC ends the watch on the data's name, so the
        connection must have no other transactions. CountersUnavailable if the data was exchanged before, or
        this cannot be known; CountersRefused if the server refuses a command. The caller must compare
        `run_id` afterwards, if it has read anything before.
        """
        async with self._looking:
            if self._moving or self._wire.part.moving:
                await self._choose_anchor()
            if self._anchor != self._wire.part.anchor:
                await self._follow_anchor()
            try:
                name, trouble, refused = await self._looked(commands)
            except SlotMoving:
                self._moving = True
                raise
            self._trouble = self._trouble or trouble
            if self._trouble or name != self._name:
                await self._another(self._ask, name)
                refused = CountersUnavailable("the data in Redis was replaced since it was looked at")
            if commands and refused is not None:
                raise refused

    async def announce(self, trouble: str) -> None:
        """Begin another history, because the caller knows that the data is older than before.

        `trouble` is the reason, for the log.
        """
        async with self._looking:
            self._trouble = self._trouble or trouble
            await self._another(self._ask, self._name)

    async def keep_promotion(self, run_id: bytes) -> None:
        """Store the server's last promotion, to show other processes that its data was verified later.

        Do nothing unless `run_id`, the verified history, is still the current one.
        """
        if self._server.promoted and self._anchor >= 0 and self._wire.run_id == run_id:
            await self._ask(b"SET", keys.promotion(self._anchor).encode(), self._server.promoted)

    async def _choose_anchor(self, *, at_once: bool = False) -> None:
        """Choose the lowest partition for the anchor whose slot is not given away at present.

        Keys of a slot that is given away may be at another server, which says nothing of this one's data. All
        processes choose the same partition, because they go by what the server answers.
        """
        before = self._wire.part
        part = part_of(before.partitions, await moving_partitions(self._wire, at_once=at_once))
        if self._vouches and not at_once and part.anchor != before.anchor:
            await self._carry_word(before.anchor, part.anchor)
        if before is self._wire.part:
            self._wire.part, self._moving = part, False

    async def _carry_word(self, before: int, anchor: int) -> None:
        """Write the word that all data is verified to the slot of a new anchor, or delete it, as it was before."""
        word = await in_task(self._wire.send(encode(b"GET", keys.verified(before).encode())))
        name = keys.verified(anchor).encode()
        await (self._ask(b"SET", name, word) if isinstance(word, bytes) else self._ask(b"DEL", name))

    async def _follow_anchor(self) -> None:
        """Copy the data's name to the slot of the server's new anchor partition, after slots were moved."""
        anchor = self._wire.part.anchor
        if anchor < 0:
            raise CountersUnavailable("this server of a cluster has no partition")
        key = keys.history(anchor).encode()
        text = _text(await self._ask(b"GET", key))
        name = self._name or text or fresh(0)
        if text != name and not await replace(self._ask, key, text, name):
            raise CountersUnavailable("the data in Redis is being named")
        self._name, self._anchor, self._known, self._floor = name, anchor, 0, 0
        self._wire.run_id = history(self._server.run_id, name)
        if await _watched(self._ask, key) != name:
            raise CountersUnavailable("the data in Redis was replaced once more")

    async def _looked(self, commands: Sequence[bytes]) -> tuple[bytes, str, CountersUnavailable | None]:
        """Return the data's name, its fault ("" for none), and the error of `commands` or None.

        Write a new pulse, unless there are commands, or the data was exchanged since the last check.
        """
        beat = self._beat = max(self._beat + 1, self._now_ms())
        # Commands belong to a partition, whose slot may differ from that of the pulses: no pulse is written.
        beats = not self._full and not commands
        pulse = [encode(b"ZADD", self._pulses, b"GT", b"%d" % beat, self._pulse)] if beats else []
        probe = [encode(b"GET", keys.never(self._anchor).encode())] if self._wire.redirected else []
        waits = self._wire.send_together(
            encode(b"ZSCORE", self._pulses, self._pulse),
            encode(b"MULTI"), *pulse, *commands, encode(b"EXEC"),
            encode(b"WATCH", self._named), encode(b"GET", self._named), *probe,
        )  # fmt: skip
        probed = waits.pop() if probe else None
        floor = self._floor
        if beats:
            self._floor = beat  # earlier commands on this connection run before later ones
        score = _number(await in_task(waits[0]))
        refused: CountersUnavailable | None = None
        try:
            for wait in waits[1:-3]:
                await in_task(wait)
            done = cast("list[object] | None", await in_task(waits[-3]))
            unbroken = done is not None
            failed = [str(result) for result in done or () if isinstance(result, Exception)]
            refused = CountersRefused(f"Redis refused: {failed[0][:200]}") if failed else None
        except CountersRefused as error:  # a full server refuses the pulse
            self._floor, self._full, unbroken, refused = floor, True, True, error
        else:
            self._full = False
        await in_task(waits[-2])
        name = _text(await in_task(waits[-1]))
        self._moving = probed is not None and await _is_moving(probed)
        if not unbroken:
            return name, "its keys were replaced", refused
        if score < floor:
            return name, OLDER, refused
        self._known = self._floor
        return name, "", refused

    async def _greeted(self, server: Server, ask: Ask) -> bytes:
        if self._admit is not None:
            await self._admit(self._wire, ask)
        if self._wire.redirected:
            await self._choose_anchor(at_once=True)
        before, anchor = self._server, self._wire.part.anchor
        self._ahead_s = _seconds(await ask(b"TIME")) - self._clock()
        if anchor < 0:
            self._server = server
            return server.run_id
        moved, self._anchor = anchor != self._anchor, anchor
        forgotten = self._now_ms() - PULSE_S_MAX * 1000
        if self._known <= forgotten:  # deleted by others because of its age, which proves nothing
            self._known = 0
        forgetting = ask(b"ZREMRANGEBYSCORE", self._pulses, b"-inf", b"%d" % forgotten)
        _, name = await asyncio.gather(forgetting, _watched(ask, self._named))
        score = _number(await ask(b"ZSCORE", self._pulses, self._pulse))  # of the watched data
        if server.run_id == before.run_id and not moved:
            followed = await self._followed(server, before.promoted, ask)
            self._trouble = self._trouble or _since(followed, name == self._name, score >= self._known)
        else:
            name = await self._arrive(server, name, ask)
        self._server, self._floor, self._full = server, self._known, False
        self._beat = max(self._beat, score)
        if self._trouble:
            await self._another(ask, name)
        _keep(self._promoted, server.run_id, server.promoted)  # last: otherwise it would go unnoticed
        return history(server.run_id, self._name)

    async def _arrive(self, server: Server, name: bytes, ask: Ask) -> bytes:
        """Adopt the history of the `server` that this connection leads to now; return its data's name.

        Data of a server that this process left, and meets again, counts as outdated.
        """
        if self._server.run_id:
            _keep(self._left, self._server.run_id, self._name)
        self._known, returns = 0, server.run_id in self._left
        self._trouble = "others were served by another server since" if returns else ""
        if not name and not returns:
            await replace(ask, self._named, b"", fresh(0))
            name = await _watched(ask, self._named)
        self._name = self._left.pop(server.run_id, name)
        before = self._promoted.get(server.run_id, server.promoted)
        vouched, partitions = history(server.run_id, name), self._wire.part.partitions
        if await self._followed(server, before, ask) and vouched in {
            packing.read_marker(raw)[0] for raw in (await _markers(ask, partitions)).values()
        }:
            self._trouble = self._trouble or FOLLOWED
        return name

    async def _followed(self, server: Server, before: bytes, ask: Ask) -> bool:
        """Return whether a server was a replica since it was last known, and not verified after that.

        `before` is the time of the promotion that was known.
        """
        if server.promoted in (b"", before):
            return False
        kept = b""
        with suppress(CountersRefused):  # a user without the right to read it goes without
            kept = _text(await ask(b"GET", keys.promotion(self._anchor).encode()))
        return kept != server.promoted

    async def _another(self, ask: Ask, name: bytes) -> None:
        """Change to another history: that of `name`, if it is of a later generation, or a new one.

        CountersUnavailable if other processes begin histories all the time.
        """
        for _ in range(TRIES_MAX):
            if generation(name) > generation(self._name):
                break
            new = fresh(max(generation(name), generation(self._name)) + 1)
            if await replace(ask, self._named, name, new):
                name, self.noticed = new, self.noticed + 1
                fields = {"why": self._trouble, "generation": generation(new)}
                self._say("redis data was replaced", **fields, level="error")
                break
            name = _text(await ask(b"GET", self._named))
        else:
            raise CountersUnavailable("the data in Redis is replaced again and again")
        self._name, self._trouble, self._known, self._floor = name, "", 0, 0
        run_id = history(self._server.run_id, name)
        if ask == self._ask:
            self._wire.run_id = run_id
            self._wire.hearing.again()
        await close(ask, run_id, self._wire.part.partitions)
        if await _watched(ask, self._named) != name:
            raise CountersUnavailable("the data in Redis was replaced once more")

    def _now_ms(self) -> int:
        """Return the time of day at the server, in ms."""
        return int((self._clock() + self._ahead_s) * 1000)

    async def _ask(self, *parts: bytes) -> Reply:
        return await in_task(self._wire.send_together(encode(*parts))[0])


def _since(followed: bool, same_name: bool, keeps_pulse: bool) -> str:
    """Return why one server's data may be older than at the last connection; "" if it is the same.

    `followed`: the server was a replica meanwhile. `same_name`: the data has the known name. `keeps_pulse`:
    it has this process's last pulse.
    """
    if followed:
        return FOLLOWED
    if not same_name:
        return "its name is another"
    return "" if keeps_pulse else OLDER


async def moving_partitions(wire: RedisConnection, *, at_once: bool = False) -> frozenset[int]:
    """Return the partitions whose slot a server gives away key by key: it answers ASK for a missing key."""
    asked = wire.part.partitions
    waits = wire.send_together(*(encode(b"GET", keys.never(p).encode()) for p in asked), at_once=at_once)
    return frozenset([p for p, wait in zip(asked, waits, strict=True) if await _is_moving(wait)])


async def _is_moving(probe: Wait[Reply]) -> bool:
    try:
        await in_task(probe)
    except SlotMoving:
        return True
    except CountersRefused:  # it was given away just now
        return False
    return False


async def _watched(ask: Ask, key: bytes) -> bytes:
    """Return the name in a key, and watch it (WATCH) from now on.

    If another process writes the name between the first read and the watch, both are repeated.
    """
    for _ in range(TRIES_MAX):
        before, _, _, name = await asyncio.gather(
            ask(b"GET", key), ask(b"UNWATCH"), ask(b"WATCH", key), ask(b"GET", key)
        )
        if name == before:
            return _text(name)
    raise CountersUnavailable("the data in Redis is named again and again")


def _keep(last: dict[bytes, bytes], run_id: bytes, what: bytes) -> None:
    """Store `what` was last known of a server, by run id; forget the oldest beyond `LEFT_MAX`."""
    last.pop(run_id, None)
    last[run_id] = what
    while len(last) > LEFT_MAX:
        del last[next(iter(last))]


def _text(answer: Reply) -> bytes:
    return answer if isinstance(answer, bytes) else b""


def _seconds(time: Reply) -> float:
    """Return the answer of TIME in seconds (https://valkey.io/commands/time/)."""
    seconds, micros = (int(part) for part in cast("list[bytes]", time))
    return seconds + micros / 1e6


def _number(answer: Reply) -> int:
    return int(float(answer)) if isinstance(answer, bytes | float) else 0


# The guards of a process, one for each connection: an exchange on one server concerns no other.

LOOK_S = 0.5
# The interval of checks while no command serves a caller.
IDLE_S = 30.0


class HistoryGuards:
    """The history guards of one process. `pulse` is the unique name of this process.

    `admit` raises CountersUnavailable if a new connection must not be used yet.
    """

    def __init__(
        self,
        pulse: str,
        clock: Callable[[], float],
        say: Callable[..., None] = lambda *_, **__: None,
        *,
        vouches: bool = False,
    ) -> None:
        self.admit: Callable[[RedisConnection, Ask], Awaitable[None]] | None = None
        self._vouches = vouches
        self._pulse, self._clock, self._say = pulse, clock, say
        self._fences: dict[RedisConnection, HistoryGuard] = {}
        self._promoted: dict[bytes, bytes] = {}
        self._noticed_before = 0

    @property
    def noticed(self) -> int:
        """The number of exchanges of data in Redis that this process was the first to announce."""
        return self._noticed_before + sum(fence.noticed for fence in self._fences.values())

    def guard(self, wire: RedisConnection) -> None:
        """Make the guard of a new connection before it connects; drop guards of closed connections."""
        for closed in [fence for fence in self._fences if fence.closed]:
            self._noticed_before += self._fences.pop(closed).noticed
        self._fences[wire] = HistoryGuard(
            wire,
            self._pulse,
            self._clock,
            self._say,
            self._promoted,
            vouches=self._vouches,
            admit=self._admit,
        )

    async def _admit(self, wire: RedisConnection, ask: Ask) -> None:
        if self.admit is not None:
            await self.admit(wire, ask)

    def of(self, wire: RedisConnection) -> HistoryGuard:
        """Return the guard of a connection."""
        return self._fences[wire]

    async def announce(self, wire: RedisConnection, trouble: str) -> None:
        """Begin another history on a connection: its data is older than before. `trouble` is logged."""
        await self._fences[wire].announce(trouble)

    async def keep_looking(self) -> None:
        """Check each connection twice a second until cancelled; a slow one delays no other."""
        looking: dict[RedisConnection, asyncio.Task[None]] = {}
        try:
            while True:
                for wire in [wire_ for wire_ in looking if wire_.closed]:
                    looking.pop(wire).cancel()
                for wire, fence in self._fences.items():
                    if wire in looking and looking[wire].done():
                        looking.pop(wire).result()
                    if wire not in looking and wire.part.partitions and not wire.closed:
                        looking[wire] = asyncio.create_task(keep_looking(wire, fence))
                await asyncio.sleep(LOOK_S)
        finally:
            for task in looking.values():
                task.cancel()


async def keep_looking(wire: RedisConnection, fence: HistoryGuard) -> None:
    """Check until cancelled whether the data behind a connection was exchanged: twice a second at most.

    After each command, and each report of a change, a check follows within half a second; checks are rare
    otherwise, as a process that reads nothing cannot be misled by older data.
    """
    seen, idle_s = (0, 0), IDLE_S
    while True:
        now = wire.used, wire.hearing.since
        if seen != now or idle_s >= IDLE_S:
            seen, idle_s = now, IDLE_S  # without an answer it tries again soon
            with suppress(CountersUnavailable):
                await fence.check_history()
                idle_s = 0.0
        await asyncio.sleep(LOOK_S)
        idle_s += LOOK_S


# The key by which a server shows that a keeper verified all of its data: a missing key does not exist.
def ask_word(wire: RedisConnection) -> Wait[Reply]:
    """Query the run id that all data of a server was last verified for."""
    return wire.send(encode(b"GET", keys.verified(wire.part.anchor).encode()), upkeep=True)


async def says_verified(wire: RedisConnection, word: Wait[Reply]) -> bool:
    """Return whether the reply to `ask_word` is the server's present run id; False without an answer."""
    with suppress(CountersUnavailable):
        return await in_task(word) == wire.run_id
    return False
