"""Whose the objects are that upstreams keep: each organization's ids, in Redis, for a while.

One sorted set an organization, of digests by the time they are forgotten. An id that is not in it is
another organization's or nobody's, which nobody is told. Ids are random, so a digest of 128 bits is as
good as the id. Most calls make an object, so to keep one is one command: the set is cut to its size and
its end put off once a hundredth of either has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import Wire, encode

DIGEST_BYTES = 16
PARTS = 100
TRIMS_MAX = 10_000  # organizations whose sets were cut lately


class Objects:
    """The ids of objects by organization; `unix_seconds` is the time of day.

    An id is kept for `ttl_s`, the newest `objects_max` of an organization at most.
    """

    def __init__(
        self,
        wire: Wire,
        unix_seconds: Callable[[], float],
        ttl_s: float,
        objects_max: int,
        *,
        trims_max: int = TRIMS_MAX,
    ) -> None:
        self._wire, self._unix_seconds = wire, unix_seconds
        self._ttl_s, self._objects_max, self._trims_max = ttl_s, objects_max, trims_max
        # By organization: how many more until its set is cut, when at the latest, and in which Redis it was.
        self._trims: dict[int, tuple[int, float, bytes]] = {}

    async def owned(self, caller: Caller, ids: Sequence[str]) -> bool:
        """Whether all of these are the caller's organization's. CountersUnavailable where nobody knows."""
        name = keys.objects(caller.partition, caller.organization_id).encode()
        ends = await self._wire.send(encode(b"ZMSCORE", name, *map(_digest, ids)))
        assert isinstance(ends, list)
        now = self._unix_seconds()
        return all(isinstance(end, bytes | float) and float(end) > now for end in ends)

    def keep(self, caller: Caller, ids: Sequence[str]) -> Wait[Reply]:
        """Note that these are the caller's organization's, the oldest of too many forgotten."""
        name = keys.objects(caller.partition, caller.organization_id).encode()
        now = self._unix_seconds()
        end = b"%d" % (now + self._ttl_s)
        members = [part for one in ids for part in (end, _digest(one))]
        wire = self._wire
        kept = wire.send(encode(b"ZADD", name, b"GT", *members))
        if self._is_due(caller.organization_id, len(ids), now):
            wire.send(encode(b"ZREMRANGEBYRANK", name, b"0", b"%d" % -(self._objects_max + 1)))
            wire.send(encode(b"EXPIRE", name, b"%d" % (self._ttl_s + self._ttl_s / PARTS)))
        return kept

    def _is_due(self, organization_id: int, more: int, now: float) -> bool:
        """Whether a set to which so many are added is to be cut now, and its end to be put off."""
        trims, run_id = self._trims, self._wire.run_id
        left, latest, where = trims.get(organization_id, (0, 0.0, b""))
        left -= more
        is_due = left < 0 or now >= latest or where != run_id
        if is_due:
            if organization_id not in trims and len(trims) >= self._trims_max:
                del trims[next(iter(trims))]
            left, latest, where = self._objects_max // PARTS, now + self._ttl_s / PARTS, run_id
        trims[organization_id] = left, latest, where
        return is_due


def _digest(id_: str) -> bytes:
    return sha256(id_.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]
