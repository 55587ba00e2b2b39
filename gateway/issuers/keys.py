"""The keys of issuers as this worker has them: read ahead, again when a token names an unknown one, and
kept while their issuer does not answer.

A flood of tokens with made-up key ids asks an issuer no more often than anybody: once in `AGAIN_S`. Until
then nobody knows whether a key is made up or new. It is 503: clients ask again, and a new key is good then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import ceil
from typing import Final, TypeVar

from gateway.core.issuers import (
    ALGORITHM,
    SIGNATURE,
    UNKNOWN_KEY,
    Issuer,
    SignedToken,
    refused,
)
from gateway.errors import IssuerUnavailable, TollkeeperError
from gateway.extras import loading
from gateway.issuers.key_set import FETCH_S_MAX, KeySet, UnreadableKeys, VerifyingKey

LOOK_S: Final = 0.5
# How long keys count as what an issuer has now, from a file or over the network, and until it is asked again.
FILE_FRESH_S: Final = 10.0
FRESH_S: Final = 300.0
AGAIN_S: Final = 10.0
# Keys of an issuer that does not answer verify for so long.
KEPT_S: Final = 86_400.0
WAITING_MAX: Final = 256

T = TypeVar("T")
Log = Callable[..., None]
Read = Callable[[Issuer], KeySet]


def read_keys(issuer: Issuer) -> KeySet:
    """Return an issuer's keys as they are now; `UnreadableKeys` says why they cannot be read."""
    with loading("oidc"):  # some 20 MB, for workers that have issuers alone
        from gateway.issuers import fetching  # noqa: PLC0415  # as above

    return fetching.fetch_keys(issuer)


class IssuerKeys:
    """One issuer's keys. `clock` is monotonic; `read` waits, and is run in a thread."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float], log: Log, read: Read) -> None:
        self.issuer = issuer
        self.keys: KeySet | None = None
        self.why = "they were not read yet"
        self._clock, self._log, self._read = clock, log, read
        self._read_at = self._asked_at = -float("inf")
        self._reading: asyncio.Future[None] | None = None
        self._waiting = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to read them again."""
        fresh_s = FILE_FRESH_S if self.issuer.jwks_file else FRESH_S
        now = self._clock()
        return now - self._read_at >= fresh_s and now - self._asked_at >= AGAIN_S

    async def refresh(self) -> None:
        """Read them; parallel callers wait for the same answer."""
        await asyncio.shield(self._begun())

    async def find(self, token: SignedToken) -> VerifyingKey:
        """Return a token's key; InvalidApiKey if the issuer has none, IssuerUnavailable if not known."""
        known = self._known(token)
        if known is not None:
            return known
        left_s = self._asked_at + AGAIN_S - self._clock()
        asked = (self._reading is not None or left_s <= 0) and self._waiting < WAITING_MAX
        if asked:
            self._waiting += 1
            try:
                await self.refresh()
            finally:
                self._waiting -= 1
            known = self._known(token)
        if known is not None:
            return known
        if self.keys is None or self._read_at < self._asked_at:
            raise IssuerUnavailable(retry_after_s=int(AGAIN_S))
        if not asked and token.key_id is not None:
            raise IssuerUnavailable(
                "The token names a key that its issuer did not have a moment ago; it is asked again soon.",
                retry_after_s=max(1, ceil(left_s)),
            )
        raise refused(UNKNOWN_KEY, "The token names no key of its issuer.")

    async def verify(self, token: SignedToken) -> VerifyingKey:
        """Return the key that signed a token, by an algorithm of its issuer; InvalidApiKey where none did."""
        if token.algorithm not in self.issuer.algorithms:
            raise refused(ALGORITHM, "The token's algorithm is not accepted.")
        key = await self.find(token)
        if not key.verifies(token):
            raise refused(SIGNATURE, "The token's signature is wrong.")
        return key

    async def at_hand(self) -> KeySet:
        """Return the keys of the issuer, at once if known, else once they are read.

        If due, they are refreshed in the background; IssuerUnavailable if none can be read.
        """
        reading = self._begun() if self.is_due else self._reading
        if self._kept() is None and reading is not None:
            await asyncio.shield(reading)
        kept = self._kept()
        if kept is None:
            raise IssuerUnavailable(retry_after_s=int(AGAIN_S))
        return kept

    def has(self, key: VerifyingKey) -> bool:
        """Return whether a key is the issuer's still."""
        kept = self._kept()
        keys = kept.keys if kept is not None else ()
        return any(one.key_id == key.key_id and one.public == key.public for one in keys)

    def _known(self, token: SignedToken) -> VerifyingKey | None:
        kept = self._kept()
        return kept.find(token) if kept is not None else None

    def _kept(self) -> KeySet | None:
        """Return the read keys, unless that is too long ago."""
        if self.keys is not None and self._clock() - self._read_at >= KEPT_S:
            self.keys = None
        return self.keys

    def _begun(self) -> asyncio.Future[None]:
        """Return the reading that is under way, from now on where none was."""
        if self._reading is None:
            self._asked_at = self._clock()
            self._reading = asyncio.ensure_future(self._take())
            self._reading.add_done_callback(self._done)
        return self._reading

    async def _take(self) -> None:
        try:
            keys = await asyncio.wait_for(in_thread(lambda: self._read(self.issuer)), 2 * FETCH_S_MAX)
        except (TollkeeperError, TimeoutError) as error:
            why = error.message if isinstance(error, TollkeeperError) else "it does not answer"
            if why != self.why:
                self._log("issuer_unread", issuer=self.issuer.issuer, why=why, level="warning")
            self.why = why
            return
        if self.why:
            self._log("issuer_read", issuer=self.issuer.issuer, keys=len(keys.keys))
        self.keys, self.why, self._read_at = keys, "", self._clock()

    def _done(self, reading: asyncio.Future[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()


def in_thread(read: Callable[[], T], ended: Callable[[], None] = lambda: None) -> asyncio.Future[T]:
    """Return the result of a thread that nobody waits for at the end.

    The loop is told when it has `ended`, though nobody may be left who wants what it found.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        result: T | TollkeeperError
        try:
            result = read()
        except TollkeeperError as error:
            result = error
        except Exception as error:  # noqa: BLE001  # the waiter gets any error
            result = UnreadableKeys(type(error).__name__)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result)

    def tell(result: T | TollkeeperError) -> None:
        ended()
        if found.done():
            return
        if isinstance(result, TollkeeperError):
            found.set_exception(result)
        else:
            found.set_result(result)

    threading.Thread(target=run, name="issuer", daemon=True).start()
    return found


class AllKeys:
    """The keys of every issuer that the configuration names."""

    def __init__(self, clock: Callable[[], float], log: Log, read: Read = read_keys) -> None:
        self._clock, self._log, self._read = clock, log, read
        self._by_issuer: dict[str, IssuerKeys] = {}
        self._refreshing: set[asyncio.Task[None]] = set()

    def of(self, issuer: str) -> IssuerKeys | None:
        """Return those of an issuer, None where it is not one of ours."""
        return self._by_issuer.get(issuer)

    def renew(self, issuers: Iterable[Issuer]) -> None:
        """Apply these issuers; keys that were read of unchanged issuers stay."""
        before = self._by_issuer
        self._by_issuer = {
            one.issuer: there
            if (there := before.get(one.issuer)) is not None and there.issuer == one
            else IssuerKeys(one, self._clock, self._log, self._read)
            for one in issuers
        }

    def unread(self) -> list[tuple[str, int]]:
        """Return for each issuer 1 if its keys are not read yet, or the last read failed; else 0."""
        return [(name, int(bool(one.why))) for name, one in self._by_issuer.items()]

    async def keep_fresh(self) -> None:
        """Read keys ahead of the tokens that need them, until cancelled."""
        while True:
            for one in self._by_issuer.values():
                if one.is_due:
                    task = asyncio.create_task(one.refresh())
                    self._refreshing.add(task)
                    task.add_done_callback(self._refreshing.discard)
            await asyncio.sleep(LOOK_S)
