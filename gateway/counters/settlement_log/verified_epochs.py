"""Which epoch each partition is verified under, by the markers as one worker sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable, NewerLayout


class VerifiedEpochs:
    """Read again and again. `newer` are partitions that a newer version has, as of the last look."""

    def __init__(self, wires: Wires, say: Callable[..., None]) -> None:
        self.newer = frozenset[int]()
        self._wires, self._say = wires, say

    async def read(self, *, upkeep: bool) -> list[int]:
        """The epoch of each partition; 0 where it is not verified on this connection or a newer version's.

        CountersUnavailable where there is none.
        """
        epochs, newer = [0] * PARTITIONS, dict[int, str]()
        by_wire: dict[Wire, list[int]] = {}
        for partition in range(PARTITIONS):
            by_wire.setdefault(self._wires.of(partition), []).append(partition)
        asked = []
        for wire, partitions in by_wire.items():  # one question, where one may have keys of all slots
            for part in [partitions] if wire.is_one else [[one] for one in partitions]:
                names = [keys.marker(one).encode() for one in part]
                asked.append((wire, part, wire.send(encode(b"MGET", *names), upkeep=upkeep)))
        for wire, part, wait in asked:
            with suppress(CountersUnavailable):
                markers = await in_task(wait)
                for partition, marker in zip(part, cast("list[Reply]", markers), strict=True):
                    try:
                        run_id, epoch, _ = packing.read_marker(marker)
                    except NewerLayout as error:  # which keeps no other from it
                        newer[partition] = error.message
                        continue
                    epochs[partition] = epoch if run_id == wire.run_id else 0
        self._note(newer)
        if not any(epochs):
            raise CountersUnavailable
        return epochs

    def _note(self, newer: Mapping[int, str]) -> None:
        """Keep which partitions are a newer version's; of the first and the last it is said."""
        if newer and not self.newer:
            why, count = next(iter(newer.values())), len(newer)
            self._say("this gateway is older than what redis holds", partitions=count, why=why, level="error")
        elif self.newer and not newer:
            self._say("nothing in redis is newer than this gateway any more")
        self.newer = frozenset(newer)
