"""Shares, among all workers, which upstreams are in backoff, in one small key.

A worker reads the key as soon as Redis reports a change, or ten times a second without reports, and adopts
unknown entries. It adds its own missing entries, at once if they are new. If two workers write at once, an
entry may be lost, and its worker adds it again. While Redis is away, each worker uses its own entries. The
times in the key are Redis' time, so workers need no common clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, cast

import msgspec

from gateway.core.accounts.refusals import Refusals
from gateway.core.circuit_breaker import (
    ENTRIES_MAX,
    EVERYBODY,
    FIELDS_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    BackoffEntry,
    CircuitBreaker,
)
from gateway.core.model import Caller
from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode, encode_script
from gateway.errors import CountersUnavailable, RateLimited

# The pause after each exchange, and then the longest wait for news.
PAUSE_S, NEWS_S = 0.05, 0.05
# The longest wait for news if Redis reports changes.
TOLD_S = 20.0
# Entries whose ends differ by less than this count as the same.
SAME_S = 0.5
STORED_BYTES_MAX = 512 * 1024
_NAME = keys.COOLING.encode()

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Line = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]+:[\x20-\x7e]*\Z", max_length=FIELDS_BYTES_MAX)]


class _Stored(msgspec.Struct, array_like=True):
    """One entry as stored in the key."""

    name: Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]
    until_ms: _Number
    told_until_ms: _Number
    fields: list[_Line]
    organization_id: _Number = EVERYBODY  # an older worker applies it to all organizations


_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], list[_Stored]] = msgspec.json.Decoder(
    Annotated[list[_Stored], msgspec.Meta(max_length=ENTRIES_MAX)]
).decode


class SharedCircuitBreaker:
    """Exchanges one worker's circuit breaker `table` with the shared key; `clock` is the table's clock."""

    def __init__(self, wires: RedisConnections, clock: Callable[[], float]) -> None:
        self._wires, self._clock = wires, clock
        self._news = asyncio.Event()
        self.table = CircuitBreaker(begun=self._news.set)
        self._raw: object = None
        self._stored: list[_Stored] = []
        wires.hear(self._told)

    async def keep_sharing(self, pause_s: float = PAUSE_S, news_s: float = NEWS_S) -> None:
        """Share backoffs of upstreams with other workers until cancelled: on changes, and at intervals."""
        while True:
            self._news.clear()
            shared = False
            with suppress(CountersUnavailable):
                await self.share()
                shared = self._wires.of_key(_NAME).hearing.since > 0
            self.table.sweep(self._clock())
            await asyncio.sleep(pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(news_s, TOLD_S) if shared else news_s):
                    await self._news.wait()

    def _told(self, name: bytes) -> None:
        if not name or name == _NAME:
            self._news.set()

    async def share(self) -> None:
        """Adopt other workers' backoffs of upstreams, and add missing ones.

        CountersUnavailable if Redis does not answer.
        """
        asked = self._wires.of_key(_NAME).send_together(encode(b"TIME"), encode(b"GET", _NAME))
        time, raw = await in_task(asked[0]), await in_task(asked[1])
        assert isinstance(time, list)
        now = self._clock()
        ahead_s = int(time[0]) + int(time[1]) / 1_000_000 - now  # type: ignore[arg-type]  # two numbers
        if raw != self._raw:
            self._raw, self._stored = raw, _read(raw)
        stored = {one.name: one for one in self._stored}
        for name, one in stored.items():
            self.table.take(name, _cooled(one, ahead_s), now)
        known = self.table.entries
        added = {
            name: _kept(name, one, ahead_s)
            for name, one in known.items()
            if name not in stored
            or one.organization_id != stored[name].organization_id
            or one.until + ahead_s > stored[name].until_ms / 1000 + SAME_S
        }
        if added:
            await self._write({name: one for name, one in stored.items() if name in known} | added, ahead_s)

    async def _write(self, entries: dict[str, _Stored], ahead_s: float) -> None:
        last_ms = max(one.until_ms for one in entries.values())
        left_ms = max(1, last_ms - int((self._clock() + ahead_s) * 1000))
        packed = _encode(list(entries.values()))
        await in_task(self._wires.of_key(_NAME).send(encode(b"SET", _NAME, packed, b"PX", b"%d" % left_ms)))


def _read(raw: object) -> list[_Stored]:
    """Return the upstreams' backoffs in the shared key's value; [] if this version cannot read it."""
    if not isinstance(raw, bytes) or len(raw) > STORED_BYTES_MAX:
        return []
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []


def _cooled(one: _Stored, ahead_s: float) -> BackoffEntry:
    fields = tuple(line.encode("latin-1") for line in one.fields)
    until, told_until = one.until_ms / 1000 - ahead_s, one.told_until_ms / 1000 - ahead_s
    return BackoffEntry(until, told_until, fields, one.organization_id)


def _kept(name: str, one: BackoffEntry, ahead_s: float) -> _Stored:
    return _Stored(
        name,
        int((one.until + ahead_s) * 1000),
        int((one.told_until + ahead_s) * 1000),
        [line.decode("latin-1") for line in one.fields],
        one.organization_id,
    )


# A rate limit for queries that cost nothing: a number a minute for each API key, over all workers.
#
# A refused key is remembered here until its next query is allowed, so that a flood queries Redis only about
# once a second.

USAGES_A_MINUTE = 60
WAITING_MAX = 4096


class Throttle:
    """Limits queries to `a_minute` for each API key. `clock` returns monotonic seconds."""

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        a_minute: int = USAGES_A_MINUTE,
        *,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._wires, self._clock = wires, clock
        self._a_minute, self._waiting_max = a_minute, waiting_max
        self._waiting: dict[int, float] = {}

    async def admit(self, caller: Caller) -> None:
        """Count one query of an API key; RateLimited if it queries too often.

        CountersUnavailable if Redis does not answer.
        """
        waiting, key_id = self._waiting, caller.key_id
        until = waiting.get(key_id)
        if until is not None:
            left_s = until - self._clock()
            if left_s > 0:
                raise self._refusal(left_s)
            del waiting[key_id]
        name, wire = keys.bucket(caller.partition, key_id), self._wires.of(caller.partition)
        wait_ms = cast("int", await wire.send(encode_script("throttle", (name,), (b"%d" % self._a_minute,))))
        if wait_ms > 0:
            if len(waiting) >= self._waiting_max and key_id not in waiting:
                del waiting[next(iter(waiting))]
            waiting[key_id] = self._clock() + wait_ms / 1000
            raise self._refusal(wait_ms / 1000)

    def _refusal(self, left_s: float) -> RateLimited:
        wait = max(1, -int(-left_s // 1))
        refusal = RateLimited(
            f"Rate limit of this API key: {self._a_minute} of {self._a_minute} requests a minute for its own "
            f"usage are used. Try again in {wait} s.",
            retry_after_s=wait,
            retry_helps=True,
        )
        refusal.scope = "key"
        return refusal


# Refused calls, as a worker reports them: batches in one stream, each sent until Redis has it.
#
# No call waits for this. While Redis is away, or no keeper reads the stream, a batch is kept and sent again
# with the same number. Later refusals are counted for the next one, within the bounds of `Refusals`.

SEND_S = 0.5
# Batches of all workers that may wait for a keeper.
BATCHES_MAX = 64
FIELD = b"b"


class RefusedCalls:
    """Sends this worker's batches of refused calls to the stream; `worker` is unique to this process."""

    def __init__(
        self, wires: RedisConnections, refusals: Refusals, worker: str, *, batches_max: int = BATCHES_MAX
    ) -> None:
        self._wires, self._refusals, self._worker, self._batches_max = wires, refusals, worker, batches_max
        self._number, self._waiting = 0, b""

    async def keep_sending(self) -> None:
        """Send this worker's batches of refused calls at intervals until cancelled."""
        while True:
            await asyncio.sleep(SEND_S)
            with suppress(CountersUnavailable):
                await self.send()

    async def leave(self) -> None:
        """Send all remaining batches of refused calls, before this worker stops."""
        with suppress(CountersUnavailable):
            while await self.send():
                pass

    async def send(self) -> bool:
        """Send the next batch of refused calls to the stream; False if there is none, or the stream is full.

        CountersUnavailable if Redis does not answer: then the same batch is sent again.
        """
        if not self._waiting:
            self._waiting = self._refusals.take(self._worker, self._number + 1)
            self._number += bool(self._waiting)
        if not self._waiting:
            return False
        name = keys.REFUSED.encode()
        wire = self._wires.of_key(name)
        length = await in_task(wire.send(encode(b"XLEN", name)))
        if not isinstance(length, int) or length >= self._batches_max:
            return False
        await in_task(wire.send(encode(b"XADD", name, b"*", FIELD, self._waiting)))
        self._waiting = b""
        return True
