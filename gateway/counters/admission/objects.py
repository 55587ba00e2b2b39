"""Whose the objects are that upstreams keep: an owner for each id, in Redis, for a while.

Each id has one key, in a slot of its own, that names its organization: the first whose answer told of it. Who
asks is told the same of another's id and of nobody's. Beside it each organization has a list of its ids by
the time they are forgotten, which bounds how many it has. Ids are random, so a digest of 128 bits is as good
as the id. Older versions wrote the list alone, and in a cluster an owner's server may be away while an answer
tells of an id: such an id is claimed when its organization names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from gateway.core.model import Caller
from gateway.core.wait import Wait, begin
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

DIGEST_BYTES = 16
PARTS = 100
NOTES_MAX = 100  # ids an organization is given before its list is cut again
CUT_MAX = 2_000  # ids that are forgotten at once: more than one answer tells of
TRIMS_MAX = 10_000  # organizations whose lists were cut lately
TELL_INTERVAL_S = 60.0


class ObjectOwners:
    """The owners of objects; `unix_seconds` is the time of day.

    An id is kept for `ttl_s` after an answer told of it last, the newest `objects_max` of an organization at
    most.
    """

    def __init__(
        self,
        wires: RedisConnections,
        unix_seconds: Callable[[], float],
        ttl_s: float,
        objects_max: int,
        *,
        log: Callable[..., None] = lambda *_, **__: None,
        trims_max: int = TRIMS_MAX,
    ) -> None:
        self._wires, self._unix_seconds, self._log = wires, unix_seconds, log
        self._ttl_s, self._objects_max, self._trims_max = int(ttl_s), objects_max, trims_max
        # By organization: how many more until its list is cut, when at the latest, and in which Redis it was.
        self._trims: dict[int, tuple[int, float, bytes]] = {}
        self._refused, self._said_at = 0, 0.0

    async def owned(self, caller: Caller, ids: Sequence[str]) -> bool:
        """Whether all of these are the caller's organization's. CountersUnavailable where nobody knows."""
        mine, digests = _organization(caller), [_digest(one) for one in ids]
        asked = [self._send(one, b"GET") for one in digests]
        owners = [await one for one in asked]
        nobodys = [digest for digest, owner in zip(digests, owners, strict=True) if owner is None]
        if not nobodys or any(owner not in (None, mine) for owner in owners):
            return all(owner == mine for owner in owners)
        return await self._claim_listed(caller, nobodys)

    def keep(self, caller: Caller, ids: Sequence[str]) -> Wait[None]:
        """Give these to the caller's organization, but for those of another; the oldest of too many go."""
        return begin(self._keep(caller, [_digest(one) for one in ids]))

    async def _keep(self, caller: Caller, digests: Sequence[bytes]) -> None:
        mine, kept = _organization(caller), list[bytes]()
        claims = [self._claim(one, mine, self._ttl_s) for one in digests]
        for digest, claim in zip(digests, claims, strict=True):
            try:
                owner = await claim
            except CountersUnavailable:
                owner = None  # it is in the list, so it is claimed when it is named
            if owner == mine:
                self._send(digest, b"EXPIRE", b"%d" % self._ttl_s)
            elif owner is not None:
                self._tell(caller)
                continue
            kept.append(digest)
        if kept:
            await self._note(caller, kept)

    async def _note(self, caller: Caller, digests: Sequence[bytes]) -> None:
        """Add these to the organization's list."""
        now, name, wire = self._unix_seconds(), _list_of(caller), self._wires.of(caller.partition)
        end = b"%d" % (now + self._ttl_s)
        noted = wire.send(encode(b"ZADD", name, b"GT", *[part for one in digests for part in (end, one)]))
        if self._is_due(caller.organization_id, len(digests), now, wire.run_id):
            wire.send(encode(b"EXPIRE", name, b"%d" % (self._ttl_s + self._ttl_s / PARTS)))
            begin(self._cut(caller))
        await noted

    async def _cut(self, caller: Caller) -> None:
        """Forget all but the newest; an owner that is another by now stays."""
        name, wire = _list_of(caller), self._wires.of(caller.partition)
        most = self._objects_max
        found = await wire.send(encode(b"ZRANGE", name, b"%d" % most, b"%d" % (most + CUT_MAX - 1), b"REV"))
        assert isinstance(found, list)
        digests = [one for one in found if isinstance(one, bytes)]
        if not digests:
            return
        asked = [self._send(one, b"GET") for one in digests]
        for digest, owner in zip(digests, asked, strict=True):
            if await owner == _organization(caller):
                self._send(digest, b"DEL")
        wire.send(encode(b"ZREM", name, *digests))

    async def _claim_listed(self, caller: Caller, digests: Sequence[bytes]) -> bool:
        """Claim what nobody owns and the organization's list has; whether that is all of these."""
        wire = self._wires.of(caller.partition)
        ends = await wire.send(encode(b"ZMSCORE", _list_of(caller), *digests))
        assert isinstance(ends, list)
        now, mine = self._unix_seconds(), _organization(caller)
        left = [int(float(end) - now) if isinstance(end, bytes | float) else 0 for end in ends]
        if min(left) <= 0:
            return False
        claims = [self._claim(digest, mine, ttl_s) for digest, ttl_s in zip(digests, left, strict=True)]
        return all([await one in (None, mine) for one in claims])

    def _claim(self, digest: bytes, mine: bytes, ttl_s: int) -> Wait[Reply]:
        """Own an id that nobody does; who owned it before."""
        return self._send(digest, b"SET", mine, b"NX", b"GET", b"EX", b"%d" % ttl_s)

    def _send(self, digest: bytes, verb: bytes, *more: bytes) -> Wait[Reply]:
        """Ask something of an owner's key, where it stands."""
        name = digest.hex()
        wire = self._wires.of(keys.partition_of_digest(name))
        return wire.send(encode(verb, keys.object_owner(name).encode(), *more))

    def _is_due(self, organization_id: int, more: int, now: float, run_id: bytes) -> bool:
        """Whether a list to which so many are added is to be cut now, and its end to be put off."""
        trims = self._trims
        left, latest, where = trims.get(organization_id, (0, 0.0, b""))
        left -= more
        is_due = left < 0 or now >= latest or where != run_id
        if is_due:
            if organization_id not in trims and len(trims) >= self._trims_max:
                del trims[next(iter(trims))]
            left, latest = min(self._objects_max // PARTS, NOTES_MAX), now + self._ttl_s / PARTS
        trims[organization_id] = left, latest, run_id
        return is_due

    def _tell(self, caller: Caller) -> None:
        """An answer told of another organization's object: people are told once a minute at most."""
        self._refused += 1
        now = self._unix_seconds()
        if now - self._said_at >= TELL_INTERVAL_S:
            self._said_at = now
            self._log(
                "an answer told of another organization's object, which stays that one's",
                organization_id=caller.organization_id, ids_until_now=self._refused, level="warning",
            )  # fmt: skip


def _organization(caller: Caller) -> bytes:
    return b"%d" % caller.organization_id


def _list_of(caller: Caller) -> bytes:
    return keys.objects(caller.partition, caller.organization_id).encode()


def _digest(id_: str) -> bytes:
    return sha256(id_.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]
