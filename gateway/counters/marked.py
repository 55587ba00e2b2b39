"""The markers of a server's partitions: which history they name, and having none of them name another one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from gateway.core.layout import LAYOUT
from gateway.counters.layouts import packing, table
from gateway.counters.redis import keys
from gateway.counters.redis.greeting import Ask
from gateway.counters.redis.wire import script_parts

# What stands in a marker that nobody is served under.
NOBODY = b"." * 40


async def are_verified(ask: Ask, run_id: bytes, partitions: Sequence[int]) -> bool:
    """Whether any of these partitions goes by what was verified under this history."""
    return run_id in {packing.read_marker(raw)[0] for raw in (await _markers(ask, partitions)).values()}


async def close(ask: Ask, run_id: bytes, partitions: Sequence[int]) -> None:
    """Have nobody served under another history, also who has not heard of this one yet."""
    closing = []
    for partition, raw in (await _markers(ask, partitions)).items():
        named, epoch, catalogue = packing.read_marker(raw)
        if named not in (run_id, NOBODY):
            new = packing.marker(NOBODY, epoch, catalogue, packing.layout_of(raw))
            call = packing.rebuild(run_id, partition, keys.marker(partition), new, raw)
            closing.append(ask(*script_parts("load", *call)))
    await asyncio.gather(*closing)


async def replace(ask: Ask, key: bytes, before: bytes, after: bytes) -> bool:
    """Write a key that is as it was read; False where it is not."""
    arguments = table.LOAD.pack(b"", packing.REBUILD, 0, 0, 0), after, before
    answer = await ask(*script_parts("load", (key.decode(),) * 3, arguments))
    return packing.code_of(cast("bytes", answer)) == 1


async def _markers(ask: Ask, partitions: Sequence[int]) -> dict[int, bytes]:
    """Those that this version can read, by their partitions."""
    found = await asyncio.gather(*(ask(b"GET", keys.marker(one).encode()) for one in partitions))
    there = {one: raw for one, raw in zip(partitions, found, strict=True) if isinstance(raw, bytes) and raw}
    return {one: raw for one, raw in there.items() if raw[0] <= LAYOUT and _is_whole(raw)}


def _is_whole(raw: bytes) -> bool:
    return len(table.MARKER.today(raw)) == table.MARKER.size
