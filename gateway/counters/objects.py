"""Whose the objects are that upstreams keep: each organization's ids, in Redis, for a while.

One sorted set an organization, of digests by the time they are forgotten. An id that is not in it is
another organization's or nobody's, which nobody is told. Ids are random, so a digest of 128 bits is as
good as the id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.counters import keys
from gateway.counters.wire import Reply, Wire, encode

DIGEST_BYTES = 16


class Objects:
    """The ids of objects by organization; `unix_seconds` is the time of day.

    An id is kept for `ttl_s`, the newest `objects_max` of an organization at most.
    """

    def __init__(self, wire: Wire, unix_seconds: Callable[[], float], ttl_s: float, objects_max: int) -> None:
        self._wire = wire
        self._unix_seconds = unix_seconds
        self._ttl_s = ttl_s
        self._objects_max = objects_max

    async def owned(self, caller: Caller, ids: Sequence[str]) -> bool:
        """Whether all of these are the caller's organization's. CountersUnavailable where nobody knows."""
        name = keys.objects(caller.partition, caller.organization_id).encode()
        ends = await self._wire.send(encode(b"ZMSCORE", name, *map(_digest, ids)))
        assert isinstance(ends, list)
        now = self._unix_seconds()
        return all(isinstance(end, bytes) and float(end) > now for end in ends)

    def keep(self, caller: Caller, ids: Sequence[str]) -> Wait[Reply]:
        """Note that these are the caller's organization's, the oldest of too many forgotten."""
        name = keys.objects(caller.partition, caller.organization_id).encode()
        end = b"%d" % (self._unix_seconds() + self._ttl_s)
        members = [part for one in ids for part in (end, _digest(one))]
        wire = self._wire
        kept = wire.send(encode(b"ZADD", name, b"GT", *members))
        wire.send(encode(b"ZREMRANGEBYRANK", name, b"0", b"%d" % -(self._objects_max + 1)))
        wire.send(encode(b"EXPIRE", name, b"%d" % self._ttl_s))
        return kept


def _digest(id_: str) -> bytes:
    return sha256(id_.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]
