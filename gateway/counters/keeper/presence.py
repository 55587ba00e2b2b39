"""The presence of keepers in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import msgspec

from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersRefused, CountersUnavailable

SAID_EACH_S = 10.0
PRESENCE_KEPT_S = 60
_KEEPERS = keys.KEEPERS.encode()


@dataclass(frozen=True, slots=True)
class KeeperInfo:
    """The last report of a keeper: version, ids of its peppers (current one first), unreadable accounts."""

    version: str
    peppers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    unreadable: int = 0


class Presence:
    """Reports that this keeper runs, and how many accounts it cannot read."""

    def __init__(
        self,
        wires: RedisConnections,
        version: str,
        peppers: tuple[str, ...],
        unreadable: Callable[[], int] = int,
    ) -> None:
        self._wires, self._version, self._peppers = wires, version, peppers
        self._unreadable = unreadable

    async def keep_saying(self) -> None:
        """Renew the report of this keeper at intervals until cancelled."""
        while True:
            with suppress(CountersUnavailable, CountersRefused):  # a full server refuses writes
                wire = self._wires.of_key(_KEEPERS)
                raw = msgspec.json.encode(KeeperInfo(self._version, self._peppers, self._unreadable()))
                await in_task(wire.send(encode(b"SET", _KEEPERS, raw, b"EX", b"%d" % PRESENCE_KEPT_S)))
            await asyncio.sleep(SAID_EACH_S)


async def heard(wires: RedisConnections) -> KeeperInfo | None:
    """Return the last keeper's report, or None if it has expired or no keeper of this version wrote it.

    `CountersRefused` without the right to read it.
    """
    raw = await in_task(wires.of_key(_KEEPERS).send(encode(b"GET", _KEEPERS)))
    try:
        return msgspec.json.decode(raw, type=KeeperInfo) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
