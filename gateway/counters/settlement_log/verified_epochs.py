"""Which epoch each partition is verified under, by the markers as one worker sees them.

A marker that was read holds while its server tells what changes and told of none; it is read again now and
then all the same. Where nothing is told, and where a partition is not verified, it is read each time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from gateway.core.layout import EARLIER
from gateway.core.model import PARTITIONS
from gateway.core.wait import Wait, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable, NewerLayout

AGAIN_S: Final = 120.0
# Who told of changes when a marker was asked for: the connection, the history, since when; and when that was.
_Held = tuple[Wire, bytes, int, float]


class VerifiedEpochs:
    """Read again and again. `newer` are partitions that a newer version has, as of the last look; `layout`
    is what all others are written in.

    `clock` is monotonic.
    """

    def __init__(self, wires: Wires, clock: Callable[[], float], say: Callable[..., None]) -> None:
        self.newer = frozenset[int]()
        self._wires, self._clock, self._say = wires, clock, say
        self._epochs = [0] * PARTITIONS
        self._layouts: dict[int, int] = {}
        self._held: list[_Held | None] = [None] * PARTITIONS
        # Of those that a newer version has, why this one cannot read them.
        self._why: dict[int, str] = {}

    @property
    def layout(self) -> int:
        """The oldest, where they differ; that of the version before where none is known."""
        return min(self._layouts.values(), default=EARLIER)

    def told(self, name: bytes) -> bool:
        """Whether a change that was told is one of markers, or of what they are compared with."""
        partition = keys.marked_partition(name)
        if partition is not None:
            self._held[partition] = None
        elif name.startswith((keys.HISTORIES, keys.VERIFIED)):
            self._held = [None] * PARTITIONS
        else:
            return not name
        return True

    async def read(self, *, upkeep: bool) -> list[int]:
        """The epoch of each partition; 0 where it is not verified on this connection or a newer version's.

        CountersUnavailable where there is none.
        """
        by_wire: dict[Wire, list[int]] = {}
        for partition in range(PARTITIONS):
            if not self._holds(partition):
                by_wire.setdefault(self._wires.of(partition), []).append(partition)
        asked = [
            (wire, part, self._ask(wire, part, upkeep))
            for wire, partitions in by_wire.items()  # one question, where one may have keys of all slots
            for part in ([partitions] if wire.is_one else [[one] for one in partitions])
        ]
        for wire, part, wait in asked:
            markers: list[Reply] = [None] * len(part)
            with suppress(CountersUnavailable):
                markers = cast("list[Reply]", await in_task(wait))
            for partition, marker in zip(part, markers, strict=True):
                self._learn(wire, partition, marker)
        self._note()
        if not any(self._epochs):
            raise CountersUnavailable
        return list(self._epochs)

    def _holds(self, partition: int) -> bool:
        held = self._held[partition]
        if held is None or not self._epochs[partition]:
            return False
        wire, run_id, since, at = held
        return (
            wire is self._wires.of(partition)
            and wire.available
            and (run_id, since) == (wire.run_id, wire.hearing.since)
            and self._clock() - at < AGAIN_S
        )

    def _ask(self, wire: Wire, partitions: list[int], upkeep: bool) -> Wait[Reply]:
        """Ask for markers; what is told from now on counts against the answer."""
        since = wire.hearing.since
        held = (wire, wire.run_id, since, self._clock()) if since else None
        for partition in partitions:
            self._held[partition] = held
        names = [keys.marker(one).encode() for one in partitions]
        return wire.send(encode(b"MGET", *names), upkeep=upkeep)

    def _learn(self, wire: Wire, partition: int, marker: Reply) -> None:
        self._epochs[partition] = 0
        self._why.pop(partition, None)
        try:
            run_id, epoch, _ = packing.read_marker(marker)
        except NewerLayout as error:  # which keeps no other from it
            self._why[partition] = error.message
            return
        self._epochs[partition] = epoch if run_id == wire.run_id else 0
        if isinstance(marker, bytes) and self._epochs[partition]:
            self._layouts[partition] = packing.layout_of(marker)

    def _note(self) -> None:
        """Keep which partitions are a newer version's; of the first and the last it is said."""
        newer = frozenset(self._why)
        if newer and not self.newer:
            why, count = next(iter(self._why.values())), len(newer)
            self._say("this gateway is older than what redis holds", partitions=count, why=why, level="error")
        elif self.newer and not newer:
            self._say("nothing in redis is newer than this gateway any more")
        self.newer = newer
