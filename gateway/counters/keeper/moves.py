"""Adopts partitions whose slot was moved between two primaries of a cluster, together with their markers.

A moved marker names the history of its former primary. If that primary is still alive, and the new one was
known before the move, nothing was lost: the marker is rewritten with the new history, and no call is refused.
In any other case the partition is verified as after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from gateway.core.wait import AwakeTimeout, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.errors import CountersUnavailable

# The time to rewrite all partitions of one server: one that hangs delays others no longer.
REWRITE_S_MAX = 1.0


class SlotMoves:
    """Watches one cluster for moved slots; does nothing for a single server."""

    def __init__(self, wires: RedisConnections) -> None:
        self._wires = wires
        # The history of each primary at the last look, and the primary of each partition then.
        self._seen: dict[RedisConnection, bytes] = {}
        self._had: dict[int, RedisConnection] = {}
        self._looking = asyncio.Lock()

    async def take_up(self) -> list[int]:
        """Rewrite the markers of partitions whose slots moved since the last call; return those partitions.

        Concurrent calls run one after the other.
        """
        async with self._looking:
            return await self._take_up()

    async def _take_up(self) -> list[int]:
        known, self._seen = self._seen, {wire: wire.run_id for wire in self._wires.wires if wire.connected}
        moved = list[tuple[RedisConnection, bytes, dict[int, bytes]]]()
        for wire, run_id in self._seen.items():
            had, partitions = self._had, wire.part.partitions
            came = [partition for partition in partitions if had.get(partition, wire) is not wire]
            givers = {
                one: had[one].run_id
                for one in came
                if known.get(wire) == run_id and self._lives(had[one], known)
            }
            self._had = had | dict.fromkeys(partitions, wire)
            moved.append((wire, run_id, givers))
        taken = await asyncio.gather(*(_rewrite_all(*move) for move in moved))
        return [partition for partitions in taken for partition in partitions]

    def _lives(self, wire: RedisConnection, known: Mapping[RedisConnection, bytes]) -> bool:
        """Return whether a connection leads to the same live primary as at the last call of `take_up`."""
        return wire.connected and wire.run_id == known.get(wire) == self._seen.get(wire)


async def has_current_history(wire: RedisConnection, partition: int) -> bool:
    """Return whether a partition's marker names the history of its present primary."""
    marker = await in_task(wire.send(encode(b"GET", keys.marker(partition).encode())))
    return packing.read_marker(marker)[0] == wire.run_id


async def _rewrite_all(wire: RedisConnection, run_id: bytes, givers: Mapping[int, bytes]) -> list[int]:
    """Rewrite to `run_id` the markers of partitions that a server received; return the rewritten ones.

    `givers` are the run ids that the markers have before, by partition.
    """
    taken = []
    with suppress(CountersUnavailable, TimeoutError):  # the others are verified then
        async with AwakeTimeout(REWRITE_S_MAX):
            for partition, before in givers.items():
                if await _rewrite(wire, run_id, partition, before):
                    taken.append(partition)
    return taken


async def _rewrite(wire: RedisConnection, run_id: bytes, partition: int, before: bytes) -> bool:
    """Replace the run id in a partition's marker by `run_id`; return False if it is not `before` any more."""
    marker = await in_task(wire.send(encode(b"GET", keys.marker(partition).encode())))
    named, epoch, catalogue = packing.read_marker(marker)
    if not isinstance(marker, bytes) or named != before:
        return False
    new = packing.marker(run_id, epoch, catalogue, packing.layout_of(marker))
    call = packing.rebuild(run_id, partition, keys.marker(partition), new, marker)
    answer = await in_task(wire.send(encode_script("load", *call)))
    return isinstance(answer, bytes) and packing.code_of(answer) == 1
