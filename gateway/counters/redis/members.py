"""Who has which slots, as members of a cluster say: primaries over their wires, others apart.

A member counts that says `cluster_state:ok`: one that is cut off from most of the others does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from gateway.core.wait import in_task
from gateway.counters.redis.address import Address
from gateway.counters.redis.asking import ask_apart
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.greeting import said
from gateway.counters.redis.slots import Place, SlotMap, read_slots
from gateway.counters.redis.wire import Wire, encode
from gateway.errors import CountersUnavailable


async def view_of(wire: Wire, place: Place) -> SlotMap | None:
    """What a primary says; None where it does not, or is cut off from most of the others."""
    with suppress(CountersUnavailable, ValueError):
        info = wire.send(encode(b"CLUSTER", b"INFO"))
        slots = wire.send(encode(b"CLUSTER", b"SLOTS"))
        return _read(await in_task(info), await in_task(slots), place)
    return None


async def view_apart(address: Address, places: Iterable[Place]) -> SlotMap:
    """What the first of these members says that knows; CountersUnavailable where none does."""
    who, fault = address.now(), ""
    login = who.username, who.password
    for place in places:
        try:
            answers = await ask_apart(address, place, login, ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
            if found := _read(answers[0], answers[1], place):
                return found
        except (CountersUnavailable, ValueError) as error:
            fault = f": {error}"
    raise CountersUnavailable(f"no member of the cluster knows who has which slots{fault}")


def _read(info: Reply, slots: Reply, asked: Place) -> SlotMap | None:
    """A map, where who was asked is in touch with the others; ValueError where it says none."""
    epoch = said(info, b"cluster_current_epoch")
    if said(info, b"cluster_state") != b"ok" or not epoch.isdigit():
        return None
    return read_slots(int(epoch), slots, asked)
