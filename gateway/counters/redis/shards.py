"""The primaries of a cluster, a wire to each, and which of them has a partition.

Who has what is asked of the members themselves (CLUSTER SLOTS), in the background, and at once where one of
them says that a key moved, or is away. A wire keeps its own breaker, queue, library and run id: what becomes
of one primary is nothing to the partitions of the others. It knows nothing of limits or ledgers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count

from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait, in_task
from gateway.counters.redis.address import Address
from gateway.counters.redis.greeting import is_primary
from gateway.counters.redis.members import Views, view_apart, view_of
from gateway.counters.redis.redirects import Redirects
from gateway.counters.redis.slots import (
    NOTHING,
    PRIMARIES_MAX,
    SLOT_OF_PARTITION,
    Place,
    SlotMap,
    part_of,
    slot_of,
)  # fmt: skip
from gateway.counters.redis.wire import CALL_S, Wire, encode
from gateway.errors import CountersUnavailable

LOOK_S = 1.0
# While a primary is away, or a key was found elsewhere.
LOOK_SOON_S = 0.1
# A wire that leads to no primary any more is closed when whoever waits there was answered.
LINGER_S = 5.0
# Wires to others than primaries with slots, such as those that linger. Each primary has one besides.
OTHERS_MAX = PRIMARIES_MAX
# A keeper sees a move with its next look, and takes the partition up with a look of its own behind that.
HAND_OVER_S_MAX, HAND_OVER_LOOK_S = 3 * LOOK_S, 0.02


class Shards:
    """Of one cluster, which `address.members` lead to. `make` makes a wire to a place, `begun` is told of it
    before it connects; calls wait `call_s` in all, wherever they are sent.

    A primary that gives a partition away is asked for it until `taken_up` says that it is verified under the
    history of the other one, or for `hand_over_s_max`: it says MOVED, and the call goes on.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[Address], Wire],
        *,
        begun: Callable[[Wire], None] = lambda _: None,
        taken_up: Callable[[Wire, int], Awaitable[bool]] | None = None,
        call_s: float = CALL_S,
        look_s: float = LOOK_S,
        hand_over_s_max: float = HAND_OVER_S_MAX,
    ) -> None:
        self.map = SlotMap()
        self._address, self._make, self._begun = address, make, begun
        self._loop = asyncio.get_running_loop()
        self._wires: dict[Place, Wire] = {}
        self._places: dict[Wire, Place] = {}
        # Where nobody has a slot: it never connects, so whatever is asked of it fails at once.
        self._nobody = make(replace(address, host="nobody.invalid", port=1))
        self._nobody.part = NOTHING
        self._by_partition = [self._nobody] * len(SLOT_OF_PARTITION)
        self._redirects = Redirects(
            call_s, place_of=self._places.__getitem__, at=self._at, gave_away=self._gave_away
        )
        # By partition: to whom it is given, and until when it is asked for where it was.
        self._given: dict[int, tuple[Wire, float]] = {}
        self._awaited: dict[int, list[Wait[None]]] = {}
        self._taken_up = taken_up
        self._look_s, self._hand_over_s_max = look_s, hand_over_s_max
        self._views, self._turns, self._fault = Views(self._places), count(), ""
        self._listeners: list[Callable[[bytes], None]] = []
        self._soon, self._found = asyncio.Event(), asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._handing: asyncio.Task[None] | None = None

    # --- who has what -------------------------------------------------------------------

    def of(self, partition: int) -> Wire:
        """The wire to the primary of a partition."""
        return self._by_partition[partition]

    def of_key(self, name: bytes) -> Wire:
        """The wire to the primary of any key."""
        place = self.map.place_of(slot_of(name))
        return self._nobody if place is None else self._wires[place]

    def place_of(self, wire: Wire) -> Place:
        """Where a wire leads."""
        return self._places[wire]

    def handed_over(self, partition: int) -> Wait[None]:
        """Wait until a partition is asked for where it is, at most for `hand_over_s_max`."""
        wait: Wait[None] = Wait()
        if partition in self._given:
            self._awaited.setdefault(partition, []).append(wait)
        else:
            wait.set(None)
        return wait

    @property
    def partitions(self) -> Sequence[int]:
        """All of them, also where nobody has one just now."""
        return range(PARTITIONS)

    @property
    def wires(self) -> list[Wire]:
        """The wires to all primaries that have slots."""
        return [self._wires[place] for place in dict.fromkeys(one.place for one in self.map.owned)]

    # --- its life -----------------------------------------------------------------------

    def start(self) -> None:
        """Find the primaries and connect in the background, trying until closed."""
        if self._looking is None:
            self._looking = self._loop.create_task(self._keep_looking())

    async def open(self) -> None:
        """Find the primaries once, or raise CountersUnavailable; then as `start`."""
        await self.look()
        self.start()

    async def connected_within(self, seconds: float) -> bool:
        """Wait, bounded, for a connection to each primary; whether there is one."""
        until = self._loop.time() + seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self._found.wait(), seconds)
        for wire in self.wires:
            await wire.connected_within(max(0.0, until - self._loop.time()))
        return self.connected

    @property
    def connected(self) -> bool:
        """Whether there is a connection to each primary."""
        return bool(self.map.owned) and all(one.connected for one in self.wires)

    @property
    def away(self) -> int:
        """Of how many partitions calls fail at once."""
        return sum(not one.available for one in self._by_partition)

    @property
    def trouble(self) -> str:
        """Why there is no connection to one of them, or why nobody knows who they are."""
        return next((one.trouble for one in self.wires if one.trouble), self._fault)

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Have the name of each key told that changed, whichever wire hears of it."""
        self._listeners.append(changed)

    def refuse_eviction(self) -> None:
        """StartError where one of them would throw counters away when its memory is full."""
        for wire in self.wires:
            wire.refuse_eviction()

    async def close(self) -> None:
        """Close for good."""
        for task in (self._looking, self._handing):
            if task is not None:
                task.cancel()
        self._redirects.close()
        for partition, (wire, _) in list(self._given.items()):
            self._ask_at(partition, wire)
        for wire in [*self._wires.values(), self._nobody]:
            await wire.close()

    # --- looking ------------------------------------------------------------------------

    async def look(self) -> None:
        """Learn who has what; CountersUnavailable where no member knows."""
        found = await self._views.newest(self._asked_now(), lambda: (self.map, self.wires))
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
            except Exception as error:  # noqa: BLE001  # whatever fails, who moves is looked for again
                if self._fault != repr(error):
                    told = {"message": "nobody could look who has which slots", "exception": error}
                    self._loop.call_exception_handler(told)
                self._fault = repr(error)
            with suppress(TimeoutError):
                calm = self._views.are_heard(self.wires)
                await asyncio.wait_for(self._soon.wait(), self._look_s if calm else LOOK_SOON_S)

    def _asked_now(self) -> list[Wire]:
        """Whom to ask: everybody who answers, or one after another while all is well."""
        heard, soon = self._views.heard(self.wires), self._soon.is_set()
        self._soon.clear()
        if soon or not self._views.are_heard(self.wires):
            return heard
        return [heard[next(self._turns) % len(heard)]]

    async def _gave_away(self, wire: Wire) -> bool:
        """Whether the server of a wire is a primary with slots, now that it says that one is another's."""
        place = self._places.get(wire)
        if place is None:  # it was closed meanwhile
            return False
        replication = wire.send(encode(b"INFO", b"replication"))
        found = await view_of(wire, place)
        self._soon.set()
        said = await in_task(replication)
        if found is None or not is_primary(said):
            return False
        self._apply(found)
        return any(one.place == place for one in found.owned)

    # --- wires --------------------------------------------------------------------------

    def _apply(self, found: SlotMap) -> None:
        """Go by this map, unless a later one is known."""
        if not self._views.is_later(found, self.map):
            return
        before, self.map = {one.place for one in self.map.owned}, found
        self._found.set()
        owners = list(dict.fromkeys(one.place for one in found.owned))
        for place in {*owners} - before:
            self._leave(place, again=True)  # who was no primary says anew what its data is
        there = {one for one in self._wires.values() if one.connected}
        for place in owners:
            self._at(place)
        for place, wire in list(self._wires.items()):
            before_here, wire.part = wire.part.partitions, part_of(found.partitions_of(place))
            if not set(before_here) <= set(wire.part.partitions):
                wire.hearing.again()  # of what was moved away it may have told nothing
            if place not in owners:
                self._loop.call_later(LINGER_S, self._leave, place)
        serving = {self._wires[place] for place in owners} & there
        for partition, slot in enumerate(SLOT_OF_PARTITION):
            owner = found.place_of(slot)
            self._give(partition, self._nobody if owner is None else self._wires[owner], serving)

    def _give(self, partition: int, wire: Wire, serving: Container[Wire]) -> None:
        """Have a partition asked for where it is; later, where one that serves gave it to another of them."""
        before = self._by_partition[partition]
        if wire is not before and self._taken_up and before in serving and wire in serving:
            self._given[partition] = wire, self._loop.time() + self._hand_over_s_max
            if self._handing is None or self._handing.done():
                self._handing = self._loop.create_task(self._hand_over(self._taken_up))
            return
        self._ask_at(partition, wire)

    async def _hand_over(self, taken_up: Callable[[Wire, int], Awaitable[bool]]) -> None:
        """Ask the new primaries for partitions that were given to them, as soon as they are taken up."""
        while self._given:
            for partition, (wire, until) in list(self._given.items()):
                done = self._loop.time() >= until or not wire.connected
                with suppress(CountersUnavailable):
                    done = done or await taken_up(wire, partition)
                if done and self._given.get(partition) == (wire, until):
                    self._ask_at(partition, wire)
            await asyncio.sleep(HAND_OVER_LOOK_S)

    def _ask_at(self, partition: int, wire: Wire) -> None:
        self._given.pop(partition, None)
        self._by_partition[partition] = wire
        for wait in self._awaited.pop(partition, ()):
            wait.set(None)

    def _at(self, place: Place) -> Wire:
        """The wire to a place: that of a primary, or of whom a primary names."""
        wire = self._wires.get(place)
        if wire is None:
            owners = {one.place for one in self.map.owned}
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
        """Close a wire that leads to no primary any more, or to one again."""
        if place in self._wires and (again or all(one.place != place for one in self.map.owned)):
            wire = self._wires.pop(place)
            closing = self._loop.create_task(wire.close())
            closing.add_done_callback(lambda _: self._places.pop(wire, None))
