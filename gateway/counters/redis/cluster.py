"""The primaries of a cluster, a connection to each, and which of them has a partition.

The members are asked who has which slots (CLUSTER SLOTS): in the background, and at once if one reports that
a key moved or that it is away. Each connection keeps its own circuit breaker, queue, library and run id, so
that a failure of one primary does not affect partitions of the others. This module knows nothing of limits or
ledgers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Protocol

from gateway.core.model import PARTITIONS
from gateway.core.wait import AwakeTimeout, Wait, in_task
from gateway.counters.redis.address import (
    SILENT,
    Address,
    ask_apart,
    first_known,
    in_words,
    is_primary,
    note_parts,
    read_info_field,
)
from gateway.counters.redis.calls import BatchWaiters, Hop, Reply, key_in
from gateway.counters.redis.connection import CALL_S, Asked, RedisConnection, encode
from gateway.counters.redis.keys import (
    NOTHING,
    PRIMARIES_MAX,
    SLOT_OF_PARTITION,
    Place,
    SlotMap,
    are_doubtful,
    newest,
    part_of,
    read_redirection,
    read_slots,
    shard_map,
    slot_of,
)
from gateway.errors import CountersUnavailable

# Slot maps, as members report them: primaries over their connections, other members over short ones.
#
# Only a member that says `cluster_state:ok` counts: one that is cut off from most of the others does not say
# it.

# The longest wait for a member's map, even if calls may take longer: other members know better by then.
VIEW_S_MAX = 1.0
# A member that did not answer, or is cut off, is not asked again for this time.
LEFT_OUT_S = 1.0
# The map of another cluster, for instance of a rebuilt one, is adopted only after no member of the known one
# has answered for this long. Before that, the members may be away for a moment, and another cluster may have
# one of their addresses.
ANOTHER_S = 10.0


class ClusterViews:
    """Reads slot maps from primaries, and knows which do not answer. `places` are their addresses."""

    def __init__(self, places: Mapping[RedisConnection, Place]) -> None:
        self._places, self._loop = places, asyncio.get_running_loop()
        self._silent: dict[RedisConnection, float] = {}
        self._said_at = 0.0

    def is_later(self, slot_map: SlotMap, known: SlotMap) -> bool:
        """Return whether to adopt the map `slot_map`: it differs from the known one, and has no older epoch.

        A map of another cluster is adopted only if no member of the known one has answered lately.
        """
        now, is_of_known = self._loop.time(), slot_map.is_of(known)
        if not is_of_known and now - self._said_at < ANOTHER_S:
            return False
        self._said_at = now
        return not is_of_known or (slot_map.epoch >= known.epoch and slot_map != known)

    def heard(self, wires: Collection[RedisConnection]) -> list[RedisConnection]:
        """Return the connections whose servers answer at present."""
        now = self._loop.time()
        self._silent = {wire: until for wire, until in self._silent.items() if until > now and wire in wires}
        return [wire for wire in wires if wire.connected and wire not in self._silent]

    def are_heard(self, wires: Collection[RedisConnection]) -> bool:
        """Return whether there are connections, and all of their servers answer."""
        return 0 < len(wires) == len(self.heard(wires))

    async def newest(
        self,
        asked: Sequence[RedisConnection],
        there: Callable[[], tuple[SlotMap, Collection[RedisConnection]]],
    ) -> SlotMap | None:
        """Return the newest slot map of the `asked` primaries, or of all if that is doubtful; else None.

        `there` returns the map known by then, and the connections to all primaries.
        """
        views = await self._of(asked)
        known, everybody = there()
        if are_doubtful(views, known):  # a single answer may be outdated
            views = await self._of(self.heard(everybody))
        return newest(views, there()[0])

    async def _of(self, asked: Sequence[RedisConnection]) -> list[SlotMap]:
        """Return the slot maps that these primaries send within `VIEW_S_MAX` seconds."""
        said = await asyncio.gather(*(_in_time(place, self._places[place]) for place in asked))
        silent = [place for place, view in zip(asked, said, strict=True) if view is None]
        self._silent |= dict.fromkeys(silent, self._loop.time() + LEFT_OUT_S)
        return [view for view in said if view is not None]


async def _in_time(wire: RedisConnection, place: Place) -> SlotMap | None:
    with suppress(TimeoutError):
        async with AwakeTimeout(VIEW_S_MAX):
            return await view_of(wire, place)
    return None


async def view_of(wire: RedisConnection, place: Place) -> SlotMap | None:
    """Return the slot map of a primary; None if it does not answer, or is cut off from most others."""
    with suppress(CountersUnavailable, ValueError):
        info = wire.send(encode(b"CLUSTER", b"INFO"), upkeep=True)
        slots = wire.send(encode(b"CLUSTER", b"SLOTS"), upkeep=True)
        return _read(await in_task(info), await in_task(slots), place)
    return None


async def view_apart(address: Address, places: Iterable[Place]) -> SlotMap:
    """Return the slot map of the first member that has one; CountersUnavailable if none has."""
    who, faults = address.now(), [""]
    login = who.username, who.password

    async def view_from(place: Place) -> SlotMap | None:
        try:
            answers = await ask_apart(address, place, login, ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
            return _read(answers[0], answers[1], place)
        except (CountersUnavailable, ValueError) as error:
            faults.append(f": {error}")
        return None

    if found := await first_known(places, view_from):
        return found
    raise CountersUnavailable(f"no member of the cluster knows who has which slots{faults[-1]}")


def _read(info: Reply, slots: Reply, asked: Place) -> SlotMap | None:
    """Return the slot map in a member's answers; None if it is cut off. ValueError if it is invalid."""
    epoch = read_info_field(info, b"cluster_current_epoch")
    if read_info_field(info, b"cluster_state") != b"ok" or not epoch.isdigit():
        return None
    return read_slots(int(epoch), slots, asked)


# Commands that a server of a cluster refused, on their way to the right one, within their time limit.
#
# None of them was executed, so each may be sent again. A MOVED call waits until its server has reported its
# state, since only a primary gives slots away. A server that was replaced says MOVED too, and its successor
# may lack acknowledged writes. So its calls are not sent on to the successor, nor to a server that was not
# connected before the slot moved.

# The most servers that a command is sent to; TRYAGAIN, which only the time limits, does not count.
HOPS_MAX = 8
# A slot counts as being moved once commands met that for this time, and until none did for this time. Most
# slots are moved in less.
MOVING_S_MIN, MOVING_S_KEPT = 0.5, 10.0
# The most moving slots that are known; those of organizations are as many as partitions.
MOVING_MAX = 2 * PARTITIONS
WHY_MOVING = (
    "it is being moved, and its calls are refused until its keys are at one server;"
    " redis-cli --cluster fix ends a move that stands"
)
PAUSE_S = 0.02
# The most commands that may be redirected at a time.
UNDER_WAY_MAX = 20_000


@dataclass(slots=True)
class _MovingSlot:
    """Since when, until when, and how often commands met a slot that is moved key by key."""

    since: float
    last: float
    met: int = 1


class MovingSlots:
    """Slots that are moved key by key: commands are sent on (ASK), or wait for the other keys (TRYAGAIN)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: dict[int, _MovingSlot] = {}

    def note(self, slot: int) -> None:
        now, known = self._clock(), self._slots.get(slot)
        if known is not None and now - known.last < MOVING_S_KEPT:
            known.last, known.met = now, known.met + 1
        elif known is not None or len(self._slots) < MOVING_MAX:
            self._slots[slot] = _MovingSlot(now, now)

    def now(self) -> dict[int, int]:
        """Return the slots that are being moved, and how many commands met that."""
        now = self._clock()
        self._slots = {slot: move for slot, move in self._slots.items() if now - move.last < MOVING_S_KEPT}
        return {
            slot: move.met for slot, move in self._slots.items() if move.last - move.since >= MOVING_S_MIN
        }


class Redirects:
    """Redirects commands within one cluster, each within `call_s` seconds in all.

    `place_of` returns the address of a connection, `at` the connection to an address. `gave_away` asks the
    server of a connection whether it is still a primary.
    """

    def __init__(
        self,
        call_s: float,
        *,
        place_of: Callable[[RedisConnection], Place],
        at: Callable[[Place], RedisConnection],
        gave_away: Callable[[RedisConnection], Awaitable[bool]],
    ) -> None:
        self._call_s, self._place_of, self._at, self._gave_away = call_s, place_of, at, gave_away
        self._loop = asyncio.get_running_loop()
        self.moving = MovingSlots(self._loop.time)
        self._under_way = 0
        # By connection, the redirected calls that wait, and the task that asks its server.
        self._moved: dict[RedisConnection, list[Callable[[bool], None]]] = {}
        self._asking: dict[RedisConnection, asyncio.Task[None]] = {}

    def take(self, source: RedisConnection, asked: Asked, message: str) -> bool:
        """Send a redirected command to the server that `message`, the error of `source`, names.

        Return False if the error is no redirection, or too many redirections are under way.
        """
        wait, command, calls, waited_s = asked
        to = read_redirection(message, self._place_of(source))
        if to is not None and to.word != "MOVED" and (to.slot is not None or command):
            self.moving.note(slot_of(key_in(command)) if to.slot is None else to.slot)
        if to is None or not command or self._under_way >= UNDER_WAY_MAX:
            return False
        hop = wait if isinstance(wait, Hop) else self._begin(wait, waited_s)
        if to.word == "TRYAGAIN":
            self._loop.call_later(PAUSE_S, self._send, source, hop, command, calls, False)
            return True
        hop.hops += 1
        if hop.hops > HOPS_MAX:
            hop.fail(CountersUnavailable("a key has no place: servers name one another"))
        elif to.word == "ASK":
            self._send(self._at(to.place), hop, command, calls, True)
        else:
            there = self._at(to.place)
            known = there if there.connected else None
            self._moved.setdefault(source, []).append(partial(self._moved_on, known, hop, command, calls))
            if source not in self._asking:
                self._asking[source] = self._loop.create_task(self._find_out(source))
        return True

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()

    def _begin(self, wait: Wait[Reply] | BatchWaiters, waited_s: float) -> Hop:
        self._under_way += 1
        hop = Hop(wait, self._ended)
        hop.timer = self._loop.call_later(max(0.0, self._call_s - waited_s), hop.is_late)
        return hop

    def _ended(self) -> None:
        self._under_way -= 1

    async def _find_out(self, source: RedisConnection) -> None:
        """Query whether a server is still a primary, then send or fail the calls it has redirected."""
        given = False
        try:
            with suppress(CountersUnavailable):
                given = await self._gave_away(source)
        finally:
            del self._asking[source]
            for go_on in self._moved.pop(source):
                go_on(given)

    def _send(self, wire: RedisConnection, hop: Hop, command: bytes, calls: int, asking: bool) -> None:
        """Send a command as soon as the server is connected, unless its waiter is done by then.

        `calls` is the number of calls in it; with `asking`, ASKING precedes it.
        """
        if hop.done or wire.take_over(hop, command, calls, asking=asking):
            return
        self._loop.call_later(PAUSE_S, self._send, wire, hop, command, calls, asking)

    def _moved_on(
        self, to: RedisConnection | None, hop: Hop, command: bytes, calls: int, given: bool
    ) -> None:
        if given and to is not None:
            self._send(to, hop, command, calls, False)
        else:
            hop.fail(CountersUnavailable("a key moved to a server that has to be verified first"))


# The name of the server of slots that no primary has.
NOBODY = "nobody"
LOOK_S = 1.0
# The interval while a primary is away, or after a key was found elsewhere.
LOOK_SOON_S = 0.1
# How long the connection to a former primary stays open, so that its callers get answers.
LINGER_S = 5.0
# The most connections to servers that are no primaries with slots; each primary has one besides.
OTHERS_MAX = PRIMARIES_MAX
# A keeper notices a move with its next look, and adopts the partition in a look after that.
HAND_OVER_S_MAX, HAND_OVER_LOOK_S = 3 * LOOK_S, 0.02


class Shards:
    """The primaries of one cluster with the members `address.members`, and the connections to them.

    `make` makes a connection to an address, and `begun` is called with it before it connects. A call waits
    `call_s` seconds in all, whichever servers it is sent to. After a move, calls for a partition go to the
    primary that gave it away, which redirects them (MOVED), until `has_current_history` says that the
    partition is verified under the new primary's history, or for `hand_over_s_max` seconds.
    """

    _look_soon_s = LOOK_SOON_S

    def __init__(
        self,
        address: Address,
        make: Callable[[Address], RedisConnection],
        *,
        begun: Callable[[RedisConnection], None] = lambda _: None,
        has_current_history: Callable[[RedisConnection, int], Awaitable[bool]] | None = None,
        call_s: float = CALL_S,
        look_s: float = LOOK_S,
        hand_over_s_max: float = HAND_OVER_S_MAX,
    ) -> None:
        self.map = SlotMap()
        self._address, self._make, self._begun = address, make, begun
        self._loop = asyncio.get_running_loop()
        self._wires: dict[Place, RedisConnection] = {}
        self._places: dict[RedisConnection, Place] = {}
        # For slots without a primary: it never connects, so every command fails at once.
        self._nobody = make(replace(address, host="nobody.invalid", port=1))
        self._nobody.part = NOTHING
        self._by_partition = [self._nobody] * len(SLOT_OF_PARTITION)
        self._redirects = Redirects(
            call_s, place_of=self._places.__getitem__, at=self._at, gave_away=self._gave_away
        )
        # By partition that moves: its new connection, and until when its former one is used.
        self._given: dict[int, tuple[RedisConnection, float]] = {}
        self._awaited: dict[int, list[Wait[None]]] = {}
        self._taken_up = has_current_history
        self._look_s, self._hand_over_s_max = look_s, hand_over_s_max
        self._views, self._turns, self._fault = ClusterViews(self._places), count(), ""
        self._listeners: list[Callable[[bytes], None]] = []
        self._moved: list[asyncio.Event] = []
        self._soon, self._found = asyncio.Event(), asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._handing: asyncio.Task[None] | None = None

    def of(self, partition: int) -> RedisConnection:
        return self._by_partition[partition]

    def of_key(self, name: bytes) -> RedisConnection:
        place = self.map.place_of(slot_of(name))
        return self._nobody if place is None else self._wires[place]

    def place_of(self, wire: RedisConnection) -> Place:
        """Return the address of a connection's server."""
        return self._places[wire]

    def wait_for_handover(self, partition: int) -> Wait[None]:
        """Wait until calls of a partition go to its new primary, at most `hand_over_s_max` seconds."""
        wait: Wait[None] = Wait()
        if partition in self._given:
            self._awaited.setdefault(partition, []).append(wait)
        else:
            wait.set(None)
        return wait

    @property
    def partitions(self) -> Sequence[int]:
        return range(PARTITIONS)

    @property
    def wires(self) -> list[RedisConnection]:
        return [self._wires[place] for place in dict.fromkeys(owned.place for owned in self.map.owned)]

    def start(self) -> None:
        """Find the primaries and connect in the background, retrying until closed."""
        if self._looking is None:
            self._looking = self._loop.create_task(self._keep_looking())

    async def open(self) -> None:
        """Find the primaries once, or raise CountersUnavailable; then continue like `start`."""
        await self.look()
        self.start()

    async def connected_within(self, seconds: float) -> bool:
        """Wait up to a number of seconds for a connection to each primary; return whether there is one."""
        until = self._loop.time() + seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self._found.wait(), seconds)
        for wire in self.wires:
            await wire.connected_within(max(0.0, until - self._loop.time()))
        return self.connected

    @property
    def connected(self) -> bool:
        return bool(self.map.owned) and all(wire.connected for wire in self.wires)

    @property
    def away(self) -> int:
        return sum(not wire.available for wire in self._by_partition)

    @property
    def servers(self) -> Sequence[str]:
        return [wire.server for wire in self.wires] or [
            f"{host}:{port}" for host, port in self._address.members or self._address.shards
        ]

    @property
    def missing(self) -> Mapping[str, str]:
        """By name, each primary whose calls fail at once, and why; all known members while none is known."""
        if not self.map.owned:
            return dict.fromkeys(self.servers, self._fault or SILENT)
        lacking = self._by_partition.count(self._nobody)
        nobody = {NOBODY: f"no primary has the slots of {lacking} partitions"} if lacking else {}
        return {name: cause for wire in self.wires for name, cause in wire.missing.items()} | nobody

    @property
    def moving(self) -> dict[int, int]:
        return self._redirects.moving.now()

    @property
    def trouble(self) -> str:
        return in_words(self.missing.items())

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Call `changed` with the name of each changed key that any server reports."""
        self._listeners.append(changed)

    def moves(self) -> asyncio.Event:
        """Return an event for one waiter, which is set whenever another map is adopted."""
        self._moved.append(asyncio.Event())
        return self._moved[-1]

    def refuse_eviction(self) -> None:
        """Raise StartError if a primary would delete counters when its memory is full."""
        for wire in self.wires:
            wire.refuse_eviction()

    async def close(self) -> None:
        for task in (self._looking, self._handing):
            if task is not None:
                task.cancel()
        self._redirects.close()
        for partition, (wire, _) in list(self._given.items()):
            self._ask_at(partition, wire)
        for wire in [*self._wires.values(), self._nobody]:
            await wire.close()

    async def look(self) -> None:
        """Read the slot map; CountersUnavailable if no member has one."""
        found = await self._views.newest(self._targets_now(), lambda: (self.map, self.wires))
        if found is None:
            places = dict.fromkeys((*self.map.members, *self._address.members))
            found = await view_apart(self._address, places)
        self._apply(found)

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.look()
                self._fault = ""
            except CountersUnavailable as error:
                self._fault = error.message
            except Exception as error:  # noqa: BLE001  # after any error the next look tries again
                if self._fault != repr(error):
                    told = {"message": "nobody could look who has which slots", "exception": error}
                    self._loop.call_exception_handler(told)
                self._fault = repr(error)
            with suppress(TimeoutError):
                calm = self._views.are_heard(self.wires)
                await asyncio.wait_for(self._soon.wait(), self._look_s if calm else self._look_soon_s)

    def _targets_now(self) -> list[RedisConnection]:
        """Return the primaries to ask for slot maps: all that answer, but a single one while all do."""
        heard, soon = self._views.heard(self.wires), self._soon.is_set()
        self._soon.clear()
        if soon or not self._views.are_heard(self.wires):
            return heard
        return [heard[next(self._turns) % len(heard)]]

    async def _gave_away(self, wire: RedisConnection) -> bool:
        """Return whether a server that answered MOVED is a primary with slots."""
        place = self._places.get(wire)
        if place is None:  # it was closed meanwhile
            return False
        replication = wire.send(encode(b"INFO", b"replication"))
        view = await view_of(wire, place)
        self._soon.set()
        said = await in_task(replication)
        if view is None or not is_primary(said):
            return False
        self._apply(view)
        return any(one.place == place for one in view.owned)

    def _apply(self, slot_map: SlotMap) -> None:
        """Adopt this map, unless a later one is known."""
        if not self._views.is_later(slot_map, self.map):
            return
        before, self.map = {owned.place for owned in self.map.owned}, slot_map
        self._found.set()
        owners = list(dict.fromkeys(one.place for one in slot_map.owned))
        for place in {*owners} - before:
            self._leave(place, again=True)  # a server that became a primary may have other data
        there = {wire for wire in self._wires.values() if wire.connected}
        for place in owners:
            self._at(place)
        for place, wire in list(self._wires.items()):
            before_here = wire.part.partitions
            wire.part = part_of(slot_map.partitions_of(place), wire.part.moving)
            if not set(before_here) <= set(wire.part.partitions):
                wire.hearing.again()  # it may have reported no changes in moved slots
            if place not in owners:
                self._loop.call_later(LINGER_S, self._leave, place)
        serving = {self._wires[place] for place in owners} & there
        for partition, slot in enumerate(SLOT_OF_PARTITION):
            owner = slot_map.place_of(slot)
            self._give(partition, self._nobody if owner is None else self._wires[owner], serving)
        for moved in self._moved:
            moved.set()

    def _give(self, partition: int, wire: RedisConnection, serving: Container[RedisConnection]) -> None:
        """Use a partition's new primary: at once, or after a hand-over if both primaries are alive."""
        before = self._by_partition[partition]
        if wire is not before and self._taken_up and before in serving and wire in serving:
            self._given[partition] = wire, self._loop.time() + self._hand_over_s_max
            if self._handing is None or self._handing.done():
                self._handing = self._loop.create_task(self._hand_over(self._taken_up))
            return
        self._ask_at(partition, wire)

    async def _hand_over(
        self, has_current_history: Callable[[RedisConnection, int], Awaitable[bool]]
    ) -> None:
        """Use the new primaries of moved partitions once `has_current_history`, or after a maximum time."""
        while self._given:
            for partition, (wire, until) in list(self._given.items()):
                done = self._loop.time() >= until or not wire.connected
                with suppress(CountersUnavailable):
                    done = done or await has_current_history(wire, partition)
                if done and self._given.get(partition) == (wire, until):
                    self._ask_at(partition, wire)
            await asyncio.sleep(HAND_OVER_LOOK_S)

    def _ask_at(self, partition: int, wire: RedisConnection) -> None:
        self._given.pop(partition, None)
        self._by_partition[partition] = wire
        for wait in self._awaited.pop(partition, ()):
            wait.set(None)

    def _at(self, place: Place) -> RedisConnection:
        """Return the connection to an address: a primary's, or one that a primary redirected to."""
        wire = self._wires.get(place)
        if wire is None:
            owners = {owned.place for owned in self.map.owned}
            if place not in owners and len(self._wires.keys() - owners) >= OTHERS_MAX:
                return self._nobody
            wire = self._make(replace(self._address, host=place[0], port=place[1]))
            self._wires[place], self._places[wire] = wire, place
            wire.part = part_of(self.map.partitions_of(place))
            wire.redirected, wire.hearing.listeners = self._redirects.take, self._listeners
            self._begun(wire)
            wire.start()
            self._loop.call_later(LINGER_S, self._leave, place)
        return wire

    def _leave(self, place: Place, *, again: bool = False) -> None:
        """Close a connection whose server is no primary any more, or has just become one (`again`)."""
        if place in self._wires and (again or all(one.place != place for one in self.map.owned)):
            wire = self._wires.pop(place)
            closing = self._loop.create_task(wire.close())
            closing.add_done_callback(lambda _: self._places.pop(wire, None))


class FixedShards(Shards):
    """Servers without a cluster that share the data: `address.shards`, each with an equal part of it.

    Nobody moves a partition. Nothing is connected while a server has another part than the address says
    (`note_parts`). One call of a function may have all partitions of its server, as with one server.
    """

    _look_soon_s = LOOK_S

    async def look(self) -> None:
        """Verify the parts of the servers until all are connected, and connect to each.

        CountersUnavailable if a server has another part.
        """
        if self._fault or not self.connected:
            await note_parts(self._address, claims=self._nobody.loads)
            self._apply(shard_map(self._address.shards))


# Chooses the connection for a partition, or a global key: one server, or the primary that has it.
#
# Other code knows no more of a cluster than this. Objects that exist once for each server, such as its
# history guard, are made for each of `wires`.
class RedisConnections(Protocol):
    """One connection, or those to the servers that share the data."""

    @property
    def wires(self) -> list[RedisConnection]:
        """The connections to all servers that have partitions."""
        ...

    @property
    def partitions(self) -> Sequence[int]:
        """All partitions of the servers that these connections lead to."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the connection to each server is open."""
        ...

    @property
    def away(self) -> int:
        """The number of partitions whose server is away, so that their calls fail without waiting."""
        ...

    @property
    def servers(self) -> Sequence[str]:
        """The names (host and port) of all servers that have partitions."""
        ...

    @property
    def missing(self) -> Mapping[str, str]:
        """By name, each server whose calls fail without waiting, and why."""
        ...

    @property
    def moving(self) -> dict[int, int]:
        """The slots that a cluster moves key by key at present, and how many commands met that."""
        ...

    @property
    def trouble(self) -> str:
        """The servers that are missing, and why, as a sentence; empty if none is."""
        ...

    def of(self, partition: int) -> RedisConnection:
        """Return the connection to the server that has a partition."""
        ...

    def of_key(self, name: bytes) -> RedisConnection:
        """Return the connection to the server that has a key."""
        ...

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Call `changed`, besides other listeners, with the name of each changed key that is reported."""
        ...

    def start(self) -> None:
        """Connect in the background, retrying until closed."""
        ...

    async def open(self) -> None:
        """Connect, or raise CountersUnavailable; later losses are repaired in the background."""
        ...

    async def connected_within(self, seconds: float) -> bool:
        """Wait up to a number of seconds for a connection to each server; return whether there is one."""
        ...

    def refuse_eviction(self) -> None:
        """Raise StartError if a server would delete counters when its memory is full."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...


# The connections for an address: one, or those to all primaries of a cluster.
def wires_to(
    address: Address,
    make: Callable[[Address], RedisConnection],
    *,
    begun: Callable[[RedisConnection], None] = lambda _: None,
    has_current_history: Callable[[RedisConnection, int], Awaitable[bool]] | None = None,
    call_s: float = CALL_S,
) -> RedisConnections:
    """Return the connections for an address, not connected yet: `Shards` for several servers, else one.

    `make` makes each connection, and `begun` is called with it. Shards take `has_current_history`, which
    tells whether a partition's new primary is verified, and `call_s`.
    """
    if address.members:
        return Shards(address, make, begun=begun, has_current_history=has_current_history, call_s=call_s)
    if address.shards:
        return FixedShards(address, make, begun=begun, call_s=call_s)
    wire = make(address)
    begun(wire)
    return wire
