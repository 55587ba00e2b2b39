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
from typing import Annotated

import msgspec

from gateway.core.circuit_breaker import (
    ENTRIES_MAX,
    EVERYBODY,
    FIELDS_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    BackoffEntry,
    CircuitBreaker,
)
from gateway.core.wait import in_task
from gateway.counters.admission.key_news import NEWS_S, KeyNews
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

# The pause after each exchange, and then the longest wait for news if Redis reports no changes.
PAUSE_S, UNREPORTED_S = 0.05, 0.05
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
        self._news = KeyNews(wires, _NAME)
        self.table = CircuitBreaker(begun=self._news.come)
        self._raw: object = None
        self._stored: list[_Stored] = []

    async def keep_sharing(self, pause_s: float = PAUSE_S, news_s: float = UNREPORTED_S) -> None:
        """Share backoffs of upstreams with other workers until cancelled: on changes, and at intervals."""
        while True:
            self._news.clear()
            shared = False
            with suppress(CountersUnavailable):
                await self.share()
                shared = self._news.is_reported
            self.table.sweep(self._clock())
            await asyncio.sleep(pause_s)
            await self._news.wait(max(news_s, NEWS_S) if shared else news_s)

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
        stored = {entry.name: entry for entry in self._stored}
        for name, entry in stored.items():
            self.table.take(name, _cooled(entry, ahead_s), now)
        known = self.table.entries
        added = {
            name: _pack_entry(name, entry, ahead_s)
            for name, entry in known.items()
            if name not in stored
            or entry.organization_id != stored[name].organization_id
            or entry.until + ahead_s > stored[name].until_ms / 1000 + SAME_S
        }
        if added:
            await self._write(
                {name: entry for name, entry in stored.items() if name in known} | added, ahead_s
            )

    async def _write(self, entries: dict[str, _Stored], ahead_s: float) -> None:
        last_ms = max(entry.until_ms for entry in entries.values())
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


def _cooled(stored: _Stored, ahead_s: float) -> BackoffEntry:
    fields = tuple(line.encode("latin-1") for line in stored.fields)
    until, told_until = stored.until_ms / 1000 - ahead_s, stored.told_until_ms / 1000 - ahead_s
    return BackoffEntry(until, told_until, fields, stored.organization_id)


def _pack_entry(name: str, entry: BackoffEntry, ahead_s: float) -> _Stored:
    return _Stored(
        name,
        int((entry.until + ahead_s) * 1000),
        int((entry.told_until + ahead_s) * 1000),
        [line.decode("latin-1") for line in entry.fields],
        entry.organization_id,
    )
