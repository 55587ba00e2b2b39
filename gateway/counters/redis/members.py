"""Who has which slots, as members of a cluster say: primaries over their wires, others apart.

A member counts that says `cluster_state:ok`: one that is cut off from most of the others does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from gateway.core.wait import Within, in_task
from gateway.counters.redis.address import Address
from gateway.counters.redis.asking import ask_apart, first_known
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.greeting import said
from gateway.counters.redis.slots import Place, SlotMap, are_doubtful, newest, read_slots
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable

# Who hangs is not waited for, however long calls may take: others know better by then.
VIEW_S_MAX = 1.0
# Who said nothing, or is cut off, is not asked again for so long: others are, and answer at once.
LEFT_OUT_S = 1.0
# Another cluster, such as one that was built anew, is gone to where nobody of the known one has said anything
# for so long. Before that, its members may be away for a moment, and another's may be at a place of theirs.
ANOTHER_S = 10.0


class Views:
    """What primaries say, and who of them does not say anything just now. `places` are those of wires."""

    def __init__(self, places: Mapping[Wire, Place]) -> None:
        self._places, self._loop = places, asyncio.get_running_loop()
        self._silent: dict[Wire, float] = {}
        self._said_at = 0.0

    def is_later(self, found: SlotMap, known: SlotMap) -> bool:
        """Whether to go by a map from now on: none of the known cluster that is older, nor the same, and none
        of another one while somebody of the known one says anything.
        """
        now, is_of_known = self._loop.time(), found.is_of(known)
        if not is_of_known and now - self._said_at < ANOTHER_S:
            return False
        self._said_at = now
        return not is_of_known or (found.epoch >= known.epoch and found != known)

    def heard(self, wires: Collection[Wire]) -> list[Wire]:
        """Those of them that there is a word to be had of."""
        now = self._loop.time()
        self._silent = {one: until for one, until in self._silent.items() if until > now and one in wires}
        return [one for one in wires if one.connected and one not in self._silent]

    def are_heard(self, wires: Collection[Wire]) -> bool:
        """Whether there are any, and there is a word to be had of all of them."""
        return 0 < len(wires) == len(self.heard(wires))

    async def newest(
        self, asked: Sequence[Wire], there: Callable[[], tuple[SlotMap, Collection[Wire]]]
    ) -> SlotMap | None:
        """The newest map of those asked, or of all; None where nobody says any. `there` are the map that is
        known by now, and all its primaries.
        """
        views = await self._of(asked)
        known, everybody = there()
        if are_doubtful(views, known):  # who is asked alone may hang, or lag behind
            views = await self._of(self.heard(everybody))
        return newest(views, there()[0])

    async def _of(self, asked: Sequence[Wire]) -> list[SlotMap]:
        """What these say within `VIEW_S_MAX`."""
        said = await asyncio.gather(*(_in_time(one, self._places[one]) for one in asked))
        silent = [one for one, view in zip(asked, said, strict=True) if view is None]
        self._silent |= dict.fromkeys(silent, self._loop.time() + LEFT_OUT_S)
        return [view for view in said if view is not None]


async def _in_time(wire: Wire, place: Place) -> SlotMap | None:
    with suppress(TimeoutError):
        async with Within(VIEW_S_MAX):
            return await view_of(wire, place)
    return None


async def view_of(wire: Wire, place: Place) -> SlotMap | None:
    """What a primary says; None where it does not, or is cut off from most of the others."""
    with suppress(CountersUnavailable, ValueError):
        info = wire.send(encode(b"CLUSTER", b"INFO"), upkeep=True)
        slots = wire.send(encode(b"CLUSTER", b"SLOTS"), upkeep=True)
        return _read(await in_task(info), await in_task(slots), place)
    return None


async def view_apart(address: Address, places: Iterable[Place]) -> SlotMap:
    """What the first of these members says that knows; CountersUnavailable where none does."""
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
    """A map, where who was asked is in touch with the others; ValueError where it says none."""
    epoch = said(info, b"cluster_current_epoch")
    if said(info, b"cluster_state") != b"ok" or not epoch.isdigit():
        return None
    return read_slots(int(epoch), slots, asked)
