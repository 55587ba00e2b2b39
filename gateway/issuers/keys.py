"""The cached keys of issuers in this worker.

They are fetched ahead, again when a token names an unknown key, and kept while their issuer does not answer.
A flood of tokens with made-up key ids causes no more requests than others: one per `AGAIN_S`. Until then it
is unknown whether such a key is made up or new, so the answer is 503: clients retry, and a new key is known
then.
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
# How long keys from a file and from the network count as current; the shortest time between two requests.
FILE_FRESH_S: Final = 10.0
FRESH_S: Final = 300.0
AGAIN_S: Final = 10.0
# How long keys are used while their issuer does not answer.
KEPT_S: Final = 86_400.0
WAITING_MAX: Final = 256

T = TypeVar("T")
Log = Callable[..., None]
Read = Callable[[Issuer], KeySet]


def read_keys(issuer: Issuer) -> KeySet:
    """Return the current keys of an issuer. Raise `UnreadableKeys` with the reason if that fails."""
    with loading("oidc"):  # some 20 MB, only for workers with issuers
        from gateway.issuers import fetching  # noqa: PLC0415  # as above

    return fetching.fetch_keys(issuer)


class IssuerKeys:
    """One issuer's keys. `clock` is monotonic; `read` blocks, and runs in a thread."""

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
        """Whether it is time to read the keys again."""
        fresh_s = FILE_FRESH_S if self.issuer.jwks_file else FRESH_S
        now = self._clock()
        return now - self._read_at >= fresh_s and now - self._asked_at >= AGAIN_S

    async def refresh(self) -> None:
        """Read the keys. Parallel callers share one request."""
        await asyncio.shield(self._begun())

    async def find(self, token: SignedToken) -> VerifyingKey:
        """Return the key that a token names; read the issuer's keys again if it is not among them.

        Raise InvalidApiKey if the issuer has no such key, IssuerUnavailable if the keys cannot be read.
        """
        known = self._find_key(token)
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
            known = self._find_key(token)
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
        """Return the key that signed a token. Raise InvalidApiKey if its algorithm or signature is wrong."""
        if token.algorithm not in self.issuer.algorithms:
            raise refused(ALGORITHM, "The token's algorithm is not accepted.")
        key = await self.find(token)
        if not key.verifies(token):
            raise refused(SIGNATURE, "The token's signature is wrong.")
        return key

    async def at_hand(self) -> KeySet:
        """Return the keys of the issuer, immediately if they are known, else after reading.

        If a refresh is due, it runs in the background. Raise IssuerUnavailable if no keys can be read.
        """
        reading = self._begun() if self.is_due else self._reading
        if self._current_keys() is None and reading is not None:
            await asyncio.shield(reading)
        kept = self._current_keys()
        if kept is None:
            raise IssuerUnavailable(retry_after_s=int(AGAIN_S))
        return kept

    def has(self, key: VerifyingKey) -> bool:
        """Return whether a key still belongs to the issuer."""
        kept = self._current_keys()
        keys = kept.keys if kept is not None else ()
        return any(one.key_id == key.key_id and one.public == key.public for one in keys)

    def _find_key(self, token: SignedToken) -> VerifyingKey | None:
        kept = self._current_keys()
        return kept.find(token) if kept is not None else None

    def _current_keys(self) -> KeySet | None:
        """Return the keys; None, after discarding them, if they were read over `KEPT_S` seconds ago."""
        if self.keys is not None and self._clock() - self._read_at >= KEPT_S:
            self.keys = None
        return self.keys

    def _begun(self) -> asyncio.Future[None]:
        """Return the running read of keys; start one if there is none."""
        if self._reading is None:
            self._asked_at = self._clock()
            self._reading = asyncio.ensure_future(self._take())
            self._reading.add_done_callback(self._finish_reading)
        return self._reading

    async def _take(self) -> None:
        """Read the issuer's keys in a thread, or keep the present ones if that fails."""
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

    def _finish_reading(self, reading: asyncio.Future[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()


def in_thread(read: Callable[[], T], ended: Callable[[], None] = lambda: None) -> asyncio.Future[T]:
    """Run `read` in a daemon thread, which the end of the process does not wait for, and return its result.

    `ended` is called in the loop afterwards, even if the result is no longer wanted.
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
    """The keys of all configured issuers."""

    def __init__(self, clock: Callable[[], float], log: Log, read: Read = read_keys) -> None:
        self._clock, self._log, self._read = clock, log, read
        self._by_issuer: dict[str, IssuerKeys] = {}
        self._refreshing: set[asyncio.Task[None]] = set()

    def of(self, issuer: str) -> IssuerKeys | None:
        """Return the keys of an issuer; None if it is not configured."""
        return self._by_issuer.get(issuer)

    def renew(self, issuers: Iterable[Issuer]) -> None:
        """Replace the issuers. Keys of unchanged issuers are kept."""
        before = self._by_issuer
        self._by_issuer = {
            issuer.issuer: there
            if (there := before.get(issuer.issuer)) is not None and there.issuer == issuer
            else IssuerKeys(issuer, self._clock, self._log, self._read)
            for issuer in issuers
        }

    def unread(self) -> list[tuple[str, int]]:
        """Return (issuer, 1 if its keys are not read yet or the last read failed, else 0) for each issuer."""
        return [(name, int(bool(one.why))) for name, one in self._by_issuer.items()]

    async def keep_fresh(self) -> None:
        """Read keys before tokens need them, until cancelled."""
        while True:
            for one in self._by_issuer.values():
                if one.is_due:
                    task = asyncio.create_task(one.refresh())
                    self._refreshing.add(task)
                    task.add_done_callback(self._refreshing.discard)
            await asyncio.sleep(LOOK_S)
