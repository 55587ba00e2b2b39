"""How many rows wait to be stored, as keepers say it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode

UNSTORED_KEPT_S = 10
_UNSTORED = keys.UNSTORED.encode()


@dataclass(frozen=True, slots=True)
class UnstoredRows:
    """Why no row of a server's partitions is stored, and for how many seconds; `code` is an SQLSTATE, or "".

    `server` is the address of one of several servers of Redis, else "".
    """

    why: str
    seconds: float
    code: str = ""
    server: str = ""

    def __str__(self) -> str:
        whose = f" of {self.server}" if self.server else ""
        return f"no row{whose} could be stored for {self.seconds:,.0f} s: {self.why}"


async def say_unstored(wires: RedisConnections, unstored: UnstoredRows | None) -> None:
    """Store why no rows are stored, for `UNSTORED_KEPT_S` seconds, or None: they are again.

    CountersUnavailable without Redis.
    """
    command = [b"DEL", _UNSTORED]
    if unstored is not None:
        command = [b"SET", _UNSTORED, msgspec.json.encode(unstored), b"EX", b"%d" % UNSTORED_KEPT_S]
    await in_task(wires.of_key(_UNSTORED).send(encode(*command)))


async def read_unstored(wires: RedisConnections) -> UnstoredRows | None:
    """Return why a keeper stores no rows; None if each does, or one of another version says so."""
    raw = await in_task(wires.of_key(_UNSTORED).send(encode(b"GET", _UNSTORED)))
    try:
        return msgspec.json.decode(raw, type=UnstoredRows) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
