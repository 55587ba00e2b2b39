"""Entries that wait behind accounts in quarantine, apart from the outbox: a stream for each organization.

An organization's entries there are older than any of it in the outbox. Only `park` writes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from gateway.core.accounts.outbox import Owner, stream_place
from gateway.counters.keeper.client import APPLIED, Client, each, fields_of
from gateway.counters.keeper.one_question import are_any_there
from gateway.counters.layouts import packing, table
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable

# Entries one script moves: half a millisecond of Redis.
MOVED_MAX = 250


def park(run_id: bytes, owner: Owner, *, gone: Iterable[bytes] = (), moved: Iterable[bytes] = ()) -> Call:
    """Keys and arguments of `park`; `gone` are deleted there, `moved` come from the outbox."""
    partition, organization_id = owner
    return (
        keys.marker(partition),
        keys.outbox(partition),
        keys.parked(partition),
        keys.parked_entries(partition, organization_id),
    ), (table.PARK.pack(run_id, organization_id), _packed(gone), _packed(moved))


class Parked:
    """Looks and moves, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def counts(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """How many entries wait, by partition and organization."""
        asked = list(partitions)
        if not await are_any_there(self._client, [keys.parked(one) for one in asked]):
            return {}
        answers = await self._client.ask_each((b"HGETALL", keys.parked(p).encode()) for p in asked)
        return {  # nothing of one that is of another type: `park` says so
            (partition, int(owner)): int(cast("bytes", count))
            for partition, answer in zip(asked, answers, strict=True)
            for owner, count in fields_of(answer).items()
        }

    async def move(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Move entries here from the outbox, in their order; answers how many wait by then."""
        return await self._run(entries, "moved")

    async def delete(self, entries: Mapping[Owner, Sequence[bytes]]) -> None:
        """Remove entries that wait no more."""
        await self._run(entries, "gone")

    async def _run(self, entries: Mapping[Owner, Sequence[bytes]], which: str) -> dict[Owner, int]:
        """CountersUnavailable where a partition is of another history; what is refused comes last."""
        run_id = self._client.wire.run_id
        sent = [
            (owner, park(run_id, owner, **{which: ids[start : start + MOVED_MAX]}))
            for owner, ids in entries.items()
            for start in range(0, len(ids), MOVED_MAX)
        ]
        answers = await each([self._client.send_script("park", call) for _, call in sent])
        found: dict[Owner, int] = {}
        refused, unverified = None, False
        for (owner, _), answer in zip(sent, answers, strict=True):
            if isinstance(answer, CountersRefused):
                refused = answer
            elif packing.code_of(cast("bytes", answer)) == APPLIED:
                found[owner] = table.PARKED.read(cast("bytes", answer))["waiting"]
            else:
                unverified = True
        if unverified:
            raise CountersUnavailable("a partition is of another history since its entries were read")
        if refused is not None:
            raise refused
        return found


def _packed(ids: Iterable[bytes]) -> bytes:
    return b"".join(table.STREAM_ID.pack(*stream_place(one)) for one in ids)
