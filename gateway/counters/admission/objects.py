"""The owners of objects that upstreams store, by object id, in Redis, for a limited time.

Each id has one key, in a slot of its own, which names the organization whose call first returned this id. A
request for another organization's id gets the same answer as one for an unknown id. Each organization also
has two lists of its ids by expiry, which bound their number: objects that calls created to be kept, and ids
that models' answers mentioned, so that a day of answers displaces no file. Ids are random, so a digest of 128
bits is as good as the id. The fraction of its expiry in a list says how many tokens of text its upstream keeps of it,
as its making was charged: versions that know none take the whole seconds. Older versions wrote only one list. In a cluster the server of an owner's key may
be away when an answer has an id. An id that is only listed is claimed when its organization uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from gateway.core.calls.call import NO_SIZES
from gateway.core.families.family import KEPT_BRIEFLY, KEPT_OBJECTS
from gateway.core.model import Caller
from gateway.core.wait import Wait, begin
from gateway.counters.layouts.packing import TEXT_TOKENS_MAX
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.errors import CountersUnavailable

DIGEST_BYTES = 16
PARTS = 100
BRIEF_S = 6 * 3600  # how long ids are kept if the upstream stores nothing
NOTES_MAX = 100  # ids added for an organization before its list is trimmed again
CUT_MAX = 2_000  # ids deleted by one trim: more than one answer contains
TRIMS_MAX = 10_000  # lists whose last trim is remembered
TELL_INTERVAL_S = 60.0


class ObjectOwners:
    """Stores and checks the owners of objects; `unix_seconds` returns the time of day.

    An id is stored for `ttl_s` seconds after the last answer that contained it. Each list of an organization
    has the newest `objects_max` ids.
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
        # By list: additions left before a trim, the latest time of that, and the run id of its Redis.
        self._trims: dict[bytes, tuple[int, float, bytes]] = {}
        self._refused, self._said_at = 0, 0.0

    async def owned(self, caller: Caller, ids: Sequence[str]) -> bool:
        """Return whether all ids belong to the caller's organization; CountersUnavailable without Redis."""
        return await self.refused(caller, ids) is None

    async def refused(self, caller: Caller, ids: Sequence[str], unsure: Sequence[str] = ()) -> str | None:
        """Return one of `ids` that is not the organization's, or of `unsure` that is another's; None if none.

        Raise `CountersUnavailable` without Redis.
        """
        mine, groups = _organization(caller), dict[int, list[bytes]]()
        named = {_digest(id_): id_ for id_ in ids}
        texts = {_digest(text): text for text in unsure} | named
        for digest in texts:
            groups.setdefault(keys.partition_of_digest(digest.hex()), []).append(digest)
        asked = [(group, self._owners(partition, group)) for partition, group in groups.items()]
        nobodys: list[bytes] = []
        others: list[bytes] = []
        for group, wait in asked:
            owners = await wait
            assert isinstance(owners, list)
            for digest, owner in zip(group, owners, strict=True):
                if owner is not None and owner != mine:
                    others.append(digest)
                elif owner is None and digest in named:
                    nobodys.append(digest)
        if nobodys and not others:
            others = await self._claim_listed(caller, nobodys)
        return texts[others[0]] if others else None

    def sizes(self, caller: Caller, ids: Sequence[str]) -> Wait[list[tuple[int, int]]]:
        """Return when each id ends on the organization's lists, 0 if it is on none, and its tokens."""
        return begin(self._read_lists(caller, [_digest(id_) for id_ in ids]))

    def keep(  # noqa: PLR0917  # ids, and their size
        self, caller: Caller, ids: Sequence[str], kept: int = KEPT_OBJECTS, tokens: int = 0, added: int = 0,
        found: Mapping[str, tuple[int, int]] = NO_SIZES,
    ) -> Wait[None]:  # fmt: skip
        """Store the caller's organization as owner of ids, except of ids that another organization owns.

        `kept` selects the list: created objects, ids in a model's answer, or ids kept briefly. Beyond a
        list's maximum the oldest ids are deleted. An id gets the `tokens` of an answer if `sizes` would still
        return what its call has `found`; else what is stored grows by those that the call `added`.
        """
        scores = {id_: b"%r" % (end + size / TEXT_TOKENS_MAX) for id_, (end, size) in found.items() if end}
        digests = {_digest(id_): scores.get(id_, b"") for id_ in ids}
        return begin(self._keep(caller, digests, kept, tokens, added))

    def note(self, id_: str, payment: bytes) -> Wait[bytes | None]:
        """Store a payment for an object until its end, unless a later end is paid; return the one before.

        It ends with the object's owner at the latest.
        """
        wire, name = self._noted(id_)
        return begin(_bytes(wire.send(encode_script("note", (name,), (payment,)))))

    def noted(self, id_: str) -> Wait[bytes | None]:
        """Return the payment that is stored with an object, or None."""
        wire, name = self._noted(id_)
        return begin(_bytes(wire.send(encode(b"GET", name.encode()))))

    def _noted(self, id_: str) -> tuple[RedisConnection, str]:
        name = _digest(id_).hex()
        return self._wires.of(keys.partition_of_digest(name)), keys.object_note(name)

    async def _keep(
        self, caller: Caller, digests: Mapping[bytes, bytes], kept_as: int, tokens: int, added: int
    ) -> None:
        mine, sizes = _organization(caller), list[bytes]()
        ttl_s = min(self._ttl_s, BRIEF_S) if kept_as == KEPT_BRIEFLY else self._ttl_s
        claims = [self._claim(digest, mine, ttl_s) for digest in digests]
        for digest, claim in zip(digests, claims, strict=True):
            try:
                owner = await claim
            except CountersUnavailable:
                owner = None  # it is in the list, so it is claimed when it is used
            if owner == mine:
                self._send(digest, b"EXPIRE", b"%d" % ttl_s, b"GT")
            elif owner is not None:
                self._tell(caller)
                continue
            sizes += digest, digests[digest]
        if not sizes:
            return
        now, wire, lists = self._unix_seconds(), self._wires.of(caller.partition), _lists(caller)
        name, other = lists if kept_as == KEPT_OBJECTS else lists[::-1]
        numbers = [b"%d" % number for number in (now + ttl_s, tokens, added)]
        noted = wire.send(encode_script("grow", (name.decode(), other.decode()), (*numbers, *sizes)))
        if self._is_due(name, len(sizes) // 2, now, wire.run_id):
            wire.send(encode(b"EXPIRE", name, b"%d" % (self._ttl_s + self._ttl_s / PARTS)))
            begin(self._cut(caller, name, other))
        await noted

    async def _cut(self, caller: Caller, name: bytes, other: bytes) -> None:
        """Remove the oldest digests beyond the maximum from the list `name`, and their owner keys.

        The owner is kept if the `other` list has the digest, or if it is another organization.
        """
        wire = self._wires.of(caller.partition)
        most = self._objects_max
        digests_read = await wire.send(
            encode(b"ZRANGE", name, b"%d" % most, b"%d" % (most + CUT_MAX - 1), b"REV")
        )
        assert isinstance(digests_read, list)
        digests = [digest for digest in digests_read if isinstance(digest, bytes)]
        if not digests:
            return
        listed = await wire.send(encode(b"ZMSCORE", other, *digests))
        assert isinstance(listed, list)
        ending = [digest for digest, end in zip(digests, listed, strict=True) if end is None]
        asked = [self._send(digest, b"GET") for digest in ending]
        for digest, owner in zip(ending, asked, strict=True):
            if await owner == _organization(caller):
                self._send(digest, b"DEL", keys.object_note(digest.hex()).encode())
        wire.send(encode(b"ZREM", name, *digests))

    async def _claim_listed(self, caller: Caller, digests: Sequence[bytes]) -> list[bytes]:
        """Claim ids without owner if the organization's lists contain all; return those that it does not own."""
        now, mine = self._unix_seconds(), _organization(caller)
        left = [int(end - now) for end, _ in await self._read_lists(caller, digests)]
        unlisted = [digest for digest, ttl_s in zip(digests, left, strict=True) if ttl_s <= 0]
        if unlisted:
            return unlisted
        claims = [self._claim(digest, mine, ttl_s) for digest, ttl_s in zip(digests, left, strict=True)]
        owners = [await claim for claim in claims]
        return [digest for digest, owner in zip(digests, owners, strict=True) if owner not in (None, mine)]

    async def _read_lists(self, caller: Caller, digests: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return the expiry of each digest on the organization's lists, 0 if it is on none, and its tokens."""
        wire, listed = self._wires.of(caller.partition), [(0, 0)] * len(digests)
        asked = [wire.send(encode(b"ZMSCORE", name, *digests)) for name in _lists(caller)]
        for wait in asked:
            scores = await wait
            assert isinstance(scores, list)
            for at, score in enumerate(scores):
                if isinstance(score, bytes | float):
                    (end, tokens), (seconds, fraction) = listed[at], divmod(float(score), 1)
                    listed[at] = max(end, int(seconds)), max(tokens, round(fraction * TEXT_TOKENS_MAX))
        return listed

    def _claim(self, digest: bytes, mine: bytes, ttl_s: int) -> Wait[Reply]:
        """Set `mine` as owner of an id without one, for `ttl_s` seconds; the reply is the owner before."""
        return self._send(digest, b"SET", mine, b"NX", b"GET", b"EX", b"%d" % ttl_s)

    def _owners(self, partition: int, digests: Sequence[bytes]) -> Wait[Reply]:
        """Query the owners of ids whose keys are in one slot, in one command."""
        names = [keys.object_owner(digest.hex()).encode() for digest in digests]
        return self._wires.of(partition).send(encode(b"MGET", *names))

    def _send(self, digest: bytes, verb: bytes, *more: bytes) -> Wait[Reply]:
        """Send a command for the key of an id's owner, to the server that has it."""
        name = digest.hex()
        wire = self._wires.of(keys.partition_of_digest(name))
        return wire.send(encode(verb, keys.object_owner(name).encode(), *more))

    def _is_due(self, name: bytes, more: int, now: float, run_id: bytes) -> bool:
        """Return whether to trim a list now that gets `more` ids, and to extend its expiry.

        `now` is in Unix seconds. A server with another `run_id` than before makes it due, too.
        """
        trims = self._trims
        left, latest, where = trims.get(name, (0, 0.0, b""))
        left -= more
        is_due = left < 0 or now >= latest or where != run_id
        if is_due:
            if name not in trims and len(trims) >= self._trims_max:
                del trims[next(iter(trims))]
            left, latest = min(self._objects_max // PARTS, NOTES_MAX), now + self._ttl_s / PARTS
        trims[name] = left, latest, run_id
        return is_due

    def _tell(self, caller: Caller) -> None:
        """Count an answer with another organization's id, and log the number once a minute at most."""
        self._refused += 1
        now = self._unix_seconds()
        if now - self._said_at >= TELL_INTERVAL_S:
            self._said_at = now
            self._log(
                "an answer told of another organization's object, which stays that one's",
                organization_id=caller.organization_id, ids_until_now=self._refused, level="warning",
            )  # fmt: skip


async def _bytes(reply: Wait[Reply]) -> bytes | None:
    value = await reply
    return value if isinstance(value, bytes) else None


def _organization(caller: Caller) -> bytes:
    return b"%d" % caller.organization_id


def _lists(caller: Caller) -> tuple[bytes, bytes]:
    """Return the keys of the organization's two lists: objects, and ids in answers."""
    place = caller.partition, caller.organization_id
    return keys.objects(*place).encode(), keys.answers(*place).encode()


def _digest(id_: str) -> bytes:
    return sha256(id_.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]
