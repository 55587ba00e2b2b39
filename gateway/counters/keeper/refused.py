"""Refused calls as the keeper reads them: batches in the order they came, removed once they are rows."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.accounts.refusals import RefusedBatch, read_batch
from gateway.counters.keeper.client import Client, entry_of
from gateway.counters.redis import keys


class RefusedStream:
    """The stream that all workers add to."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, count: int) -> list[tuple[bytes, RefusedBatch | None]]:
        """The oldest batches with their ids; None for what cannot be read."""
        found = await self._client.ask_everybodys(
            b"XRANGE", keys.REFUSED.encode(), b"-", b"+", b"COUNT", b"%d" % count
        )
        entries = map(entry_of, found) if isinstance(found, list) else ()
        return [(entry_id, read_batch(packed)) for entry_id, packed in entries]

    async def forget(self, ids: Sequence[bytes]) -> None:
        """Remove batches that are stored."""
        await self._client.ask_everybodys(b"XDEL", keys.REFUSED.encode(), *ids)
