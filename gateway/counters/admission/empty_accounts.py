"""Shares, among all workers, which accounts of upstreams are out of money or quota.

A sorted set has the digests of the accounts, by the time at which they may be asked again. A worker reads it as
soon as Redis reports a change. The first answer of an account has a key of its own, and so has the question that one
of all workers may ask. While Redis is away, each worker goes by its own table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final

import msgspec

from gateway.core.empty_accounts import (
    AGAIN,
    ENTRIES_MAX,
    FORGOTTEN_S,
    LEFT_ALONE_S,
    OPENED,
    EmptyAccount,
    EmptyAccounts,
    EmptyReport,
)
from gateway.core.wait import in_task
from gateway.counters.admission.key_news import KeyNews
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

# The pause between two exchanges.
PAUSE_S = 0.05
# Entries whose ends differ by less than this count as the same.
SAME_S: Final = 0.5
NAME: Final = keys.EMPTY_ACCOUNTS.encode()
_LEFT_ALONE_MS: Final = b"%d" % (1000 * LEFT_ALONE_S)
_FORGOTTEN_S: Final = b"%d" % FORGOTTEN_S
_ALL: Final = b"%d" % (ENTRIES_MAX - 1)


class StoredEmptyAccount(msgspec.Struct, array_like=True):
    """The first answer of an empty account: its upstream, its status, and its time in ms."""

    upstream: Annotated[str, msgspec.Meta(max_length=256)]
    status: Annotated[int, msgspec.Meta(ge=100, le=999)]
    since_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredEmptyAccount).decode


async def read_empty_accounts(wires: RedisConnections) -> dict[str, StoredEmptyAccount]:
    """Return the first answers of the empty accounts, by their digests; CountersUnavailable without Redis."""
    wire = wires.of_key(NAME)
    names = await in_task(wire.send(encode(b"ZRANGE", NAME, b"0", _ALL)))
    accounts = [name.decode() for name in names if isinstance(name, bytes)] if isinstance(names, list) else []
    if not accounts:
        return {}
    stored = await in_task(
        wire.send(encode(b"MGET", *[keys.empty_account(account).encode() for account in accounts]))
    )
    assert isinstance(stored, list)
    answers = {}
    for account, raw in zip(accounts, stored, strict=True):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # of another version
            if isinstance(raw, bytes):
                answers[account] = _decode(raw)
    return answers


class SharedEmptyAccounts:
    """Exchanges one worker's `table` of empty accounts with Redis; `clock` is the table's clock."""

    def __init__(self, wires: RedisConnections, clock: Callable[[], float]) -> None:
        self._wires, self._clock = wires, clock
        self._news = KeyNews(wires, NAME)
        self._ahead_s = time.time() - clock()  # by our clock, until Redis told its time
        self.table = EmptyAccounts(self._news.come, self.claim)

    async def keep_sharing(self, pause_s: float = PAUSE_S) -> None:
        """Share empty accounts with other workers until cancelled: on changes, and at intervals."""
        await self._news.keep_sharing(self.share, pause_s)

    async def claim(self, account: str) -> float:
        """Return 0.0 if this worker may ask an account again, else the seconds until another's question is over.

        While Redis is away, each worker may.
        """
        now = self._clock()
        until_ms = int((now + self._ahead_s + LEFT_ALONE_S) * 1000)
        name, stated = keys.empty_account_question(account).encode(), b"%d" % until_ms
        question = encode(b"SET", name, stated, b"NX", b"GET", b"PX", _LEFT_ALONE_MS)
        try:
            other = await self._wires.of_key(NAME).send(question)
            if other is not None:
                until = (
                    int(other) / 1000 - self._ahead_s if isinstance(other, bytes) and other.isdigit() else 0.0
                )
                return max(SAME_S, until - now)
            for command in self._encode_left_alone(account, until_ms):
                self._wires.of_key(NAME).send(command)
        except CountersUnavailable:
            pass
        return 0.0

    async def share(self) -> None:
        """Adopt the empty accounts of other workers, and store this worker's reports.

        CountersUnavailable if Redis does not answer: then the reports are sent again.
        """
        wire, table = self._wires.of_key(NAME), self.table
        moment = await in_task(wire.send(encode(b"TIME")))
        assert isinstance(moment, list)
        now = self._clock()
        self._ahead_s = int(moment[0]) + int(moment[1]) / 1_000_000 - now  # type: ignore[arg-type]  # two numbers
        for account, report in [*table.reports.items()]:
            for wait in wire.send_together(*self._encode_report(account, report)):
                await in_task(wait)
            if table.reports.get(account) is report:
                del table.reports[account]
        raw = await in_task(wire.send(encode(b"ZRANGE", NAME, b"0", _ALL, b"WITHSCORES")))
        self._adopt(_read(raw), now)

    def _adopt(self, stored: dict[str, float], now: float) -> None:
        """Make the table what is `stored`: Unix times by account. Accounts with a report keep their entry."""
        table = self.table
        for account, at in stored.items():
            entry, until = table.entries.get(account), min(at - self._ahead_s, now + LEFT_ALONE_S)
            if account in table.reports or (entry is not None and abs(entry.until - until) < SAME_S):
                continue
            table.entries[account] = EmptyAccount(now if entry is None else entry.since, until)
        for account in [*table.entries]:
            if account not in stored and account not in table.reports:
                del table.entries[account]

    def _encode_report(self, account: str, report: EmptyReport) -> list[bytes]:
        """Return the commands that store a report about an account."""
        stored, question = keys.empty_account(account).encode(), keys.empty_account_question(account).encode()
        now_ms = int((self._clock() + self._ahead_s) * 1000)
        if report is OPENED:
            return [encode(b"ZREM", NAME, account.encode()), encode(b"DEL", stored, question)]
        if report is AGAIN:
            return [encode(b"DEL", question), encode(b"ZADD", NAME, b"XX", b"%d" % now_ms, account.encode())]
        until_ms = now_ms + int(1000 * LEFT_ALONE_S)
        first = _encode(StoredEmptyAccount(report.upstream, report.status, now_ms))
        before = b"(%d" % (now_ms - int(1000 * FORGOTTEN_S))
        return [
            encode(b"SET", stored, first, b"NX", b"EX", _FORGOTTEN_S),
            encode(b"SET", question, b"%d" % until_ms, b"PX", _LEFT_ALONE_MS),
            encode(b"ZREMRANGEBYSCORE", NAME, b"-inf", before),
            *self._encode_left_alone(account, until_ms),
        ]

    def _encode_left_alone(self, account: str, until_ms: int) -> list[bytes]:
        """Return the commands that store until when an account is left alone, and keep its first answer."""
        return [
            encode(b"ZADD", NAME, b"%d" % until_ms, account.encode()),
            encode(b"EXPIRE", NAME, _FORGOTTEN_S),
            encode(b"EXPIRE", keys.empty_account(account).encode(), _FORGOTTEN_S),
        ]


def _read(raw: object) -> dict[str, float]:
    """Return the Unix times in the sorted set, by account."""
    # RESP 3 has pairs with numbers, RESP 2 one list of texts.
    parts = raw if isinstance(raw, list) else []
    pairs = parts if not parts or isinstance(parts[0], list) else [*zip(parts[::2], parts[1::2], strict=True)]
    return {account.decode(): float(score) / 1000 for account, score in pairs}
