"""Entries that wait behind stopped accounts, apart from the outbox: a stream for each organization.

An organization's entries there are older than any of it in the outbox. Only `park` writes here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from gateway.core.accounts.outbox import Owner, stream_place
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Wire, encode, encode_script
from gateway.errors import CountersRefused, CountersUnavailable

# Entries one script moves: half a millisecond of Redis.
MOVED_MAX = 250
_PARK = struct.Struct("<40sd")
_ID = struct.Struct("<dd")
_PARKED = struct.Struct("<dd")


def park(run_id: bytes, owner: Owner, *, gone: Iterable[bytes] = (), moved: Iterable[bytes] = ()) -> Call:
    """Keys and arguments of `park`; `gone` are deleted there, `moved` come from the outbox."""
    partition, organization_id = owner
    return (
        keys.marker(partition),
        keys.outbox(partition),
        keys.parked(partition),
        keys.parked_entries(partition, organization_id),
    ), (_PARK.pack(run_id, organization_id), _packed(gone), _packed(moved))


class Parked:
    """Looks and moves, over one wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def counts(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """How many entries wait, by partition and organization."""
        waits = {p: self._wire.send(encode(b"HGETALL", keys.parked(p).encode())) for p in partitions}
        found: dict[Owner, int] = {}
        for partition, wait in waits.items():
            with suppress(CountersRefused):  # of another type: `park` says so
                flat = cast("list[bytes]", await in_task(wait))
                found |= {
                    (partition, int(owner)): int(count)
                    for owner, count in zip(flat[::2], flat[1::2], strict=True)
                }
        return found

    async def move(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Move entries here from the outbox, in their order; answers how many wait by then."""
        return await self._run({
            owner: [park(self._wire.run_id, owner, moved=part) for part in _parts(ids)]
            for owner, ids in entries.items()
        })  # fmt: skip

    async def delete(self, entries: Mapping[Owner, Sequence[bytes]]) -> None:
        """Remove entries that wait no more."""
        await self._run({
            owner: [park(self._wire.run_id, owner, gone=part) for part in _parts(ids)]
            for owner, ids in entries.items()
        })  # fmt: skip

    async def _run(self, calls: Mapping[Owner, Sequence[Call]]) -> dict[Owner, int]:
        """CountersUnavailable where a partition is of another history; what is refused comes last."""
        waits = [
            (owner, self._wire.send(encode_script("park", *call)))
            for owner, its in calls.items()
            for call in its
        ]
        found: dict[Owner, int] = {}
        refused, unverified = None, False
        for owner, wait in waits:
            try:
                answer = cast("bytes", await in_task(wait))
            except CountersRefused as error:
                refused = error
                continue
            if packing.code_of(answer) == 1:
                found[owner] = int(_PARKED.unpack(answer)[1])
            else:
                unverified = True
        if unverified:
            raise CountersUnavailable("a partition is of another history since its entries were read")
        if refused is not None:
            raise refused
        return found


def _parts(ids: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [ids[start : start + MOVED_MAX] for start in range(0, len(ids), MOVED_MAX)]


def _packed(ids: Iterable[bytes]) -> bytes:
    return b"".join(_ID.pack(*stream_place(one)) for one in ids)
