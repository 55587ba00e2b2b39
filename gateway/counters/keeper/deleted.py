"""The newest entry ever deleted of each partition's outbox, asked again where that may be another by now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.counters.keeper.client import Client, fields_of
from gateway.counters.redis import keys

# What others deleted is seen that late.
KEPT_S = 5.0


class DeletedEntries:
    """Keeps what was answered of a partition, under one history, until entries of it are removed here."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._kept: dict[int, tuple[bytes, float]] = {}
        self._kept_under = b""
        self._removals = Counter[int]()

    def forget(self, partitions: Iterable[int]) -> None:
        """Entries of these may have been removed: ask again."""
        for partition in partitions:
            self._removals[partition] += 1
            self._kept.pop(partition, None)

    async def newest(self, partitions: Sequence[int], *, anew: bool = True) -> dict[int, bytes]:
        """By partition, the id; unless `anew`, as of up to `KEPT_S` ago. None where there is no stream."""
        now, run_id = self._clock(), self._client.run_id
        if run_id != self._kept_under:
            self._kept, self._kept_under = {}, run_id
        found = {one: id_ for one, (id_, at) in self._kept.items() if not anew and now - at < KEPT_S}
        asked = [one for one in partitions if one not in found]
        kept, before = self._kept, {one: self._removals[one] for one in asked}
        found |= await self._ask(asked)
        kept |= {one: (found[one], now) for one in asked if self._removals[one] == before[one]}
        return {one: found[one] for one in partitions if found[one]}

    async def _ask(self, partitions: Sequence[int]) -> dict[int, bytes]:
        """Of each of these; b"" of one whose key is no stream."""
        names = [keys.outbox(one).encode() for one in partitions]
        kinds = await self._client.ask_each((b"TYPE", name) for name in names)
        streams = [at for at, kind in enumerate(kinds) if kind == b"stream"]
        facts = await self._client.ask_each((b"XINFO", b"STREAM", names[at]) for at in streams)
        found = dict.fromkeys(partitions, b"")
        for at, said in zip(streams, facts, strict=True):
            newest = fields_of(said).get(b"max-deleted-entry-id")
            found[partitions[at]] = newest if isinstance(newest, bytes) else b""
        return found
