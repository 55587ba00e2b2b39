"""Holds that callers settle by the API, stored in Redis, so that any worker settles a hold that another one
made.

Besides the hold itself, Redis stores a record of it, the end that its caller chose, and the answers to
requests with an `Idempotency-Key`. A worker first writes the end of a hold, once (`SET NX`), and then
settles. If another worker finds an end that was not applied yet, it settles in the same way, and settling
twice charges once.

If Redis loses a hold, the workers that remember it store it again, without what it reserved. Its settlement
then finds no hold, and a keeper charges it, unless the ledger has its charge.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final, cast

import msgspec
from msgspec.structs import replace

from gateway.core.accounts.caller_holds import LIFE_S_MAX, CallerHold, HeldAmounts, HoldDeletion, HoldEnd
from gateway.core.model import Caller
from gateway.core.shares import leaves_others
from gateway.core.text import batched
from gateway.core.times import began_ms
from gateway.core.wait import Wait, begin, in_task
from gateway.counters.admission.remembered_holds import RememberedHold, RememberedHolds
from gateway.counters.admission.stored import UNREADABLE
from gateway.counters.history_guard import ask_word
from gateway.counters.layouts.packing import (
    BY_DEFINITIONS,
    CLOSED,
    CODE,
    EXTEND,
    EXTENDED,
    account_keys,
    read_marker,
)
from gateway.counters.layouts.states import HOLD_RECLAIMED, unpack_hold
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode, encode_script
from gateway.counters.settlement_log.log import DELETION, SettlementLog
from gateway.errors import (
    CountersRefused,
    CountersUnavailable,
    HoldEnded,
    HoldNotFound,
    IdempotencyConflict,
    TooManyHolds,
)

# How long an open hold is stored beyond its time, for keepers that were away.
OPEN_MS: Final = 7 * 86_400_000
# How long an ended hold is stored, to answer its settlement again; and a released one, for requests in
# progress.
ENDED_MS: Final = 3_600_000
RELEASED_MS: Final = 60_000
# Per organization: open holds (some 1 KiB each, 16 KiB at most), ended ones, and requests with an
# `Idempotency-Key` (some 1 KiB). A further open hold is refused; of the others the oldest is dropped.
OPEN_MAX: Final = 20_000
ENDED_MAX: Final = 50_000
IDEMPOTENT_MAX: Final = 50_000
# A place is taken before its hold is made: it is free again after this time if its worker dies in between.
PLACE_MS: Final = 60_000
# The most entries that one write drops to make room.
MADE_ROOM_MAX: Final = 100
# How long the answer to a request with an `Idempotency-Key` is stored.
IDEMPOTENT_MS: Final = 86_400_000
# After this time without an answer its worker counts as dead: a repeated request takes over.
RUNNING_MS: Final = 10_000
ID_CHARACTERS: Final = 36
# An id begins with the time when it was made, in ms (RFC 9562, version 7).
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# The longest time from the beginning of a hold to its last settlement.
KNOWN_MS: Final = 1000 * LIFE_S_MAX + ENDED_MS
# Remembered holds that are stored again by one write.
RESTORED_AT_ONCE: Final = 64
# How long the indexes of open holds outlive the last one.
_INDEX_S: Final = b"%d" % (LIFE_S_MAX + ENDED_MS // 1000)
_GONE: Final = -1


class _Request(msgspec.Struct):
    """A request with an `Idempotency-Key`: the digest of its body, the hold's id, its start, its answer."""

    body: str
    id: str
    began_ms: int
    answer: str = ""


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_hold = msgspec.json.Decoder(CallerHold).decode
_decode_end = msgspec.json.Decoder(HoldEnd).decode


def read_hold(raw: object) -> CallerHold | None:
    """Return the decoded record of a caller's hold; None if it is missing, or of a newer version."""
    try:
        return _decode_hold(raw) if isinstance(raw, bytes) else None
    except UNREADABLE:
        return None


class CallerHolds:
    """The holds of callers, for one worker. `today` returns the time of day in seconds.

    The settlement log `log` keeps deletions while Redis is away, and what this worker knows of holds.
    `restored` counts the holds that it stored again after a loss, `forgotten` requests for a hold that Redis
    may have lost and nobody stored again.
    """

    def __init__(
        self, wires: RedisConnections, today: Callable[[], float], log: SettlementLog,
        ended_max: int = ENDED_MAX, idempotent_max: int = IDEMPOTENT_MAX,
        *, say: Callable[..., None] = lambda *_, **__: None,
    ) -> None:  # fmt: skip
        self.restored = self.forgotten = 0
        self._wires, self._today, self._log, self._say = wires, today, log, say
        self._ended_max, self._idempotent_max = ended_max, idempotent_max
        self._entered: set[str] = set()  # ids whose place is taken, and whose hold is not stored yet
        self._remembered = RememberedHolds(log.note_hold)

    def now_ms(self) -> int:
        return int(self._today() * 1000)

    async def begin(self, caller: Caller, key: str, body: bytes, id_: str) -> tuple[str, bytes]:
        """Return the id of the hold for a request with this idempotency `key`, and its stored answer, or b"".

        The hold's id is `id_`, or that of the first request with the key, so that a request repeated after a
        worker's death makes no second hold. IdempotencyConflict if the first request had another `body`.
        """
        name, now_ms = _idempotent(caller, key), self.now_ms()
        mine = _Request(_digest(body), id_, now_ms)
        if await self._set(caller.partition, name, mine, IDEMPOTENT_MS, b"NX"):
            for gone in await self._index(
                caller.partition, _requests(caller), name, IDEMPOTENT_MS, self._idempotent_max
            ):
                await self._ask(caller.partition, b"DEL", gone)
            return id_, b""
        raw = await self._ask(caller.partition, b"GET", name)
        if raw is None:  # it was refused just now
            raise IdempotencyConflict(retry_after_s=1)
        request = _decode_request(cast("bytes", raw))
        if request.body != mine.body:
            raise IdempotencyConflict("This Idempotency-Key was used with another body.", retry_helps=False)
        if request.answer:
            return request.id, request.answer.encode()
        if now_ms - request.began_ms < RUNNING_MS:
            raise IdempotencyConflict("The first request with this key is still running.", retry_after_s=1)
        await self._set(caller.partition, name, _Request(mine.body, request.id, now_ms), IDEMPOTENT_MS)
        return request.id, b""

    async def forget(self, caller: Caller, key: str) -> None:
        name = _idempotent(caller, key)
        await self._pipeline(caller.partition, (b"DEL", name), (b"ZREM", _requests(caller), name))

    async def enter(self, caller: Caller, id_: str) -> None:
        """Add a hold to the indexes of open holds.

        Raise `TooManyHolds` if the organization or the API key has too many. The hold is added before they
        are counted, so that concurrent requests cannot exceed the maximum together.
        """
        now_ms, names = self.now_ms(), _open_indexes(caller)
        until = b"%d" % (now_ms + PLACE_MS)
        commands: list[tuple[bytes, ...]]
        commands = [(b"ZREMRANGEBYSCORE", name, b"-inf", b"%d" % now_ms) for name in names]
        commands += [(b"ZADD", name, b"NX", until, id_.encode()) for name in names]
        commands += [(b"EXPIRE", name, _INDEX_S) for name in names]
        commands += [(b"ZCARD", name) for name in names]
        counted = cast("list[int]", await self._pipeline(caller.partition, *commands))
        _, _, is_new, _, _, _, of_all, own = counted
        if not is_new:
            return  # a repeated request, whose hold is open
        self._entered.add(id_)
        left = OPEN_MAX - of_all
        if not leaves_others(own - 1, 1, left):
            self.leave(caller, id_)
            whose = "organization has" if left < 0 else "API key leaves to others of"
            raise TooManyHolds(f"Of {OPEN_MAX} open holds this {whose} no more: end some.", retry_after_s=60)

    def leave(self, caller: Caller, id_: str) -> None:
        if id_ in self._entered:
            self._entered.remove(id_)
            names = _open_indexes(caller)
            begin(self._pipeline(caller.partition, *((b"ZREM", name, id_.encode()) for name in names)))

    async def keep(self, hold: CallerHold, key: str = "", body: bytes = b"", answer: bytes = b"") -> None:
        life_ms = max(0, hold.expires_ms - self.now_ms()) + OPEN_MS
        self._entered.discard(hold.id)
        await self._set(hold.partition, _record(hold), hold, life_ms)
        await self._list(hold)
        self._remembered.remember(RememberedHold(hold, hold.expires_ms + ENDED_MS))
        if key:
            done = _Request(_digest(body), hold.id, hold.created_ms, answer.decode())
            await self._set(hold.partition, _idempotent(hold.caller, key), done, IDEMPOTENT_MS)

    async def _list(self, hold: CallerHold) -> None:
        until = b"%d" % (hold.expires_ms + ENDED_MS)  # by then a keeper has ended it
        names = _open_indexes(hold.caller)
        listed = [(b"ZADD", name, until, hold.id.encode()) for name in names]
        await self._pipeline(hold.partition, *listed, *((b"EXPIRE", name, _INDEX_S) for name in names))

    async def _unlist(self, hold: CallerHold) -> None:
        names = _open_indexes(hold.caller)
        await self._pipeline(hold.partition, *((b"ZREM", name, hold.id.encode()) for name in names))

    async def find(self, caller: Caller, id_: str) -> CallerHold:
        if not id_.isascii() or len(id_) != ID_CHARACTERS:
            raise HoldNotFound
        raw = await self._ask(caller.partition, b"GET", keys.caller_hold(caller.partition, id_).encode())
        hold = read_hold(raw)
        if hold is None and raw is not None:
            raise CountersRefused("Redis has a hold that cannot be read.")
        if raw is None:
            await self._miss(caller, id_)
        if (
            hold is None
            or hold.tenant_id != caller.tenant_id
            or hold.organization_id != caller.organization_id
        ):
            raise HoldNotFound
        return hold

    async def _miss(self, caller: Caller, id_: str) -> None:
        """Count a hold that Redis may have lost.

        Raise `CountersUnavailable` unless all of Redis' data is verified, and all workers stored again what
        they remember: only then a missing hold does not exist.
        """
        wire = self._wires.of(caller.partition)
        named = keys.marker(caller.partition).encode(), keys.holds_since(caller.partition).encode()
        asked = ask_word(wire), wire.send(encode(b"GET", named[0])), wire.send(encode(b"GET", named[1]))
        word, marker, since = [await answer for answer in asked]
        run_id, _, catalogue = read_marker(marker)
        if not word == run_id == wire.run_id:
            raise CountersUnavailable
        if catalogue == CLOSED:
            raise CountersUnavailable(retry_after_s=1)
        made_ms = began_ms(id_) if _ID.fullmatch(id_) else 0
        if self.now_ms() - KNOWN_MS < made_ms < _read_since(since)[1]:
            self.forgotten += 1
            self._say(
                "hold forgotten", hold=id_, organization_id=caller.organization_id, level="error",
                tenant_id=caller.tenant_id, api_key_id=caller.key_id,
            )  # fmt: skip

    async def restore(self, partitions: Collection[int]) -> None:
        """Store the remembered holds again that these partitions have lost. Must run in an asyncio task.

        The inner hold, which reserves its amounts, is not made again.
        """
        now_ms, before = self.now_ms(), self.restored
        lost = (
            record
            for record in self._remembered
            if record.hold.partition in partitions and record.until_ms > now_ms
        )
        for some in batched(lost, RESTORED_AT_ONCE):
            for wait in [begin(self._store_again(record, now_ms)) for record in some]:
                self.restored += await in_task(wait)
        if self.restored > before:
            self._say("holds stored again", count=self.restored - before, level="warning")
        for noted in [begin(self._note_since(partition, now_ms)) for partition in partitions]:
            await in_task(noted)

    async def _store_again(self, record: RememberedHold, now_ms: int) -> bool:
        """Store a remembered hold with its end, unless Redis has it as it is; return whether it had none."""
        hold, p, name, life_ms = (
            record.hold,
            record.hold.partition,
            _record(record.hold),
            record.until_ms - now_ms,
        )
        if record.end is not None:  # first: no hold that has ended may be seen without its end
            await self._set(p, _end(hold), record.end, life_ms, b"NX")
        is_new = await self._set(p, name, hold, life_ms, b"NX")
        if await self.end_of(hold) is not None:  # also where another worker stored it as open
            await self._unlist(hold)
            await self._ask(p, b"EXPIRE", name, b"%d" % (ENDED_MS // 1000), b"LT")
        elif is_new:
            await self._list(hold)
        else:
            stored = read_hold(await self._ask(p, b"GET", name))
            if stored is not None and stored.expires_ms < hold.expires_ms:  # extended since by this worker
                await self._set(p, name, hold, life_ms)
        return is_new

    async def _note_since(self, partition: int, now_ms: int) -> None:
        """Store when the present epoch of a partition was seen first: Redis may have lost older holds."""
        name = keys.holds_since(partition).encode()
        raw, marker = await self._pipeline(
            partition, (b"GET", name), (b"GET", keys.marker(partition).encode())
        )
        _, epoch, _ = read_marker(marker)
        if _read_since(raw)[0] != epoch:
            await self._ask(partition, b"SET", name, b"%d %d" % (epoch, now_ms))

    def recall(self, raw: bytes) -> None:
        """Remember a hold that the settlement log of a dead worker has."""
        self._remembered.recall(raw)

    def note_again(self) -> None:
        """Write the open holds to the settlement log again: for its next owner, or as it drops old records."""
        self._remembered.note_again()

    async def keep_noting(self) -> None:
        """Note open holds again within the time that the settlement log keeps its records, until cancelled."""
        while True:
            await asyncio.sleep(self._log.keep_s / 2)
            self._remembered.forget(self.now_ms())
            self.note_again()

    async def end_of(self, hold: CallerHold) -> HoldEnd | None:
        raw = await self._ask(hold.partition, b"GET", _end(hold))
        return _decode_end(raw) if isinstance(raw, bytes) else None

    async def decide(self, hold: CallerHold, end: HoldEnd) -> HoldEnd:
        life_ms = max(0, hold.expires_ms - self.now_ms()) + OPEN_MS
        if await self._set(hold.partition, _end(hold), end, life_ms, b"NX"):
            return end
        ending = await self.end_of(hold)
        if ending is None:  # it was undone just now
            raise CountersUnavailable(retry_after_s=1)
        return ending

    async def ended(self, hold: CallerHold, end: HoldEnd) -> None:
        end.applied = True
        life_ms = RELEASED_MS if end.released else ENDED_MS
        # Nothing is settled again: the call's facts are in its row alone.
        end, hold = replace(end, facts=""), replace(hold, metadata="", columns="")
        await self._set(hold.partition, _end(hold), end, life_ms)
        await self._set(hold.partition, _record(hold), hold, life_ms)
        self._remembered.remember(RememberedHold(hold, self.now_ms() + ENDED_MS, end))
        await self._unlist(hold)
        index = keys.ended_holds(hold.partition, hold.organization_id).encode()
        for gone in await self._index(hold.partition, index, hold.id.encode(), life_ms, self._ended_max):
            record, ended = (of(hold.partition, gone.decode()) for of in (keys.caller_hold, keys.hold_end))
            await self._ask(hold.partition, b"DEL", record.encode(), ended.encode())

    async def is_gone(self, hold: CallerHold) -> bool:
        raw = await self._ask(hold.partition, b"GET", keys.hold(hold.partition, hold.id).encode())
        return not isinstance(raw, bytes) or unpack_hold(raw)[0].flags & HOLD_RECLAIMED > 0

    async def undecide(self, hold: CallerHold) -> None:
        await self._ask(hold.partition, b"DEL", _end(hold))

    def delete_later(self, caller: Caller, id_: str, route: str) -> Wait[None]:
        wish = HoldDeletion(caller.partition, caller.organization_id, caller.tenant_id, id_, route)
        return self._log.spool(msgspec.json.encode(wish), DELETION)

    async def extend(
        self, hold: CallerHold, ttl_ms: int, wanted: HeldAmounts, definitions: tuple[bytes, ...] = ()
    ) -> HeldAmounts:
        """Renew a hold, and raise it to the `wanted` amounts, all or none; return those that it could have.

        `definitions` are those of its budget accounts now, empty for the stored one.
        """
        p = hold.partition
        wire, accounts = self._wires.of(p), account_keys(p, hold.budgets, indexed=False)
        names = (
            keys.marker(p), keys.deadlines(p), keys.outbox(p), keys.hold(p, hold.id),
            keys.tenant_state(p, hold.tenant_id), keys.organization_state(p, hold.organization_id), *accounts,
        )  # fmt: skip
        packed = EXTEND.pack(
            0, -1, wanted.tokens, -1, wanted.credits, 0, wanted.money, wanted.budget_tokens, len(hold.budgets),
            BY_DEFINITIONS if definitions else True, hold.id.encode(),
        )  # fmt: skip
        arguments = wire.run_id, b"%d" % ttl_ms, packed, *definitions
        answer = await wire.send(encode_script("extend", names, arguments))
        if not isinstance(answer, bytes) or len(answer) != CODE.size + EXTENDED.size:
            raise CountersUnavailable
        tokens, credits_, _, money, budget_tokens = EXTENDED.struct.unpack_from(answer, CODE.size)
        if tokens == _GONE:
            raise HoldEnded
        return HeldAmounts(int(tokens), int(credits_), hold.held.units, int(money), int(budget_tokens))

    async def _set(self, partition: int, name: bytes, value: object, life_ms: int, *more: bytes) -> bool:
        written = msgspec.json.encode(value)
        return await self._ask(partition, b"SET", name, written, b"PX", b"%d" % life_ms, *more) is not None

    async def _index(self, partition: int, index: bytes, name: bytes, life_ms: int, most: int) -> list[bytes]:
        """Add a name to an index, with the time it expires; remove and return the oldest beyond `most`."""
        now_ms = self.now_ms()
        counted = await self._pipeline(
            partition,
            (b"ZADD", index, b"%d" % (now_ms + life_ms), name),
            (b"ZREMRANGEBYSCORE", index, b"-inf", b"%d" % now_ms),
            (b"EXPIRE", index, b"%d" % (max(life_ms, ENDED_MS) // 1000)),
            (b"ZCARD", index),
        )
        beyond = cast("int", counted[-1]) - most
        if beyond < 1:
            return []
        last = b"%d" % (min(beyond, MADE_ROOM_MAX) - 1)
        gone = cast("list[bytes]", await self._ask(partition, b"ZRANGE", index, b"0", last))
        await self._ask(partition, b"ZREM", index, *gone)
        return gone

    async def _pipeline(self, partition: int, *commands: tuple[bytes, ...]) -> list[Reply]:
        wire = self._wires.of(partition)
        replies = [wire.send(encode(*command)) for command in commands]
        return [await reply for reply in replies]

    async def _ask(self, partition: int, *command: bytes) -> Reply:
        return await self._wires.of(partition).send(encode(*command))


def _record(hold: CallerHold) -> bytes:
    return keys.caller_hold(hold.partition, hold.id).encode()


def _open_indexes(caller: Caller) -> tuple[bytes, bytes]:
    """Return the keys of the indexes of open holds: the organization's, and the API key's."""
    p = caller.partition
    return keys.open_holds(p, caller.organization_id).encode(), keys.key_holds(p, caller.key_id).encode()


def _requests(caller: Caller) -> bytes:
    return keys.idempotents(caller.partition, caller.organization_id).encode()


def _end(hold: CallerHold) -> bytes:
    return keys.hold_end(hold.partition, hold.id).encode()


def _read_since(raw: Reply) -> tuple[int, int]:
    """Return the epoch and the time in ms of `keys.holds_since`; (0, 0) if nothing is stored."""
    epoch, ms = raw.split() if isinstance(raw, bytes) else (0, 0)
    return int(epoch), int(ms)


def _idempotent(caller: Caller, key: str) -> bytes:
    named = f"{caller.tenant_id} {caller.key_id} {key}"
    return keys.idempotent(caller.partition, sha256(named.encode()).hexdigest()[:32]).encode()


def _digest(body: bytes) -> str:
    return sha256(body).hexdigest()
