"""Who calls and what is served, as Redis has it: identities and the catalogue, cached briefly.

An identity lives a second here, found or not, so a revoked or new credential counts within one.
That a credential is unknown may be said only by a verified Redis: otherwise nobody knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from gateway.core.model import Caller, Service
from gateway.core.wait import in_task
from gateway.counters import keys
from gateway.counters.wire import Wire, encode
from gateway.errors import CountersUnavailable, InvalidApiKey

IDENTITY_S = 1.0
CATALOGUE_S = 0.5
FIRST_CATALOGUE_S = 0.02
IDENTITIES_MAX = 50_000


class _Identity(msgspec.Struct):
    o: int
    t: int
    k: int
    p: int
    u: str = ""
    m: list[str] | None = None


class _Service(msgspec.Struct):
    id: int
    key: str
    meter: str = "subscription"
    counts_tokens: bool = True
    credits: int = 0
    one_time: bool = False


class _Catalogue(msgspec.Struct):
    version: int
    services: dict[str, _Service]


_IDENTITY = msgspec.json.Decoder(_Identity)
_CATALOGUE = msgspec.json.Decoder(_Catalogue)


def encode_catalogue(version: int, services: list[Service]) -> bytes:
    """The catalogue as the keeper writes it."""
    return msgspec.json.encode({"version": version, "services": {one.key: one for one in services}})


def encode_identity(caller: Caller) -> bytes:
    """An identity as the keeper writes it."""
    return msgspec.json.encode(
        {
            "o": caller.organization_id,
            "t": caller.tenant_id,
            "k": caller.key_id,
            "p": caller.partition,
            "u": caller.user,
            "m": sorted(caller.models) if caller.models is not None else None,
        }
    )


class Directory:
    """Identities and services of one worker. `version` is the catalogue's, 0 before the first read."""

    def __init__(self, wire: Wire, clock: Callable[[], float]) -> None:
        self.version = 0
        self._wire = wire
        self._clock = clock
        self._raw = b""
        self._services: dict[str, Service] = {}
        self._known: dict[str, tuple[Caller | None, float]] = {}

    def service(self, key: str) -> Service | None:
        """The service of a key, None if there is none; CountersUnavailable before the first catalogue."""
        if not self.version:
            raise CountersUnavailable
        return self._services.get(key)

    def cached(self, digest: str) -> Caller | None:
        """The caller of a digest looked up within the last second, or None."""
        entry = self._known.get(digest)
        if entry is None or entry[1] < self._clock():
            return None
        return entry[0]

    async def identify(self, digest: str) -> Caller:
        """The caller of a digest; InvalidApiKey if there is none, CountersUnavailable if nobody knows."""
        entry = self._known.get(digest)
        if entry is not None and entry[1] >= self._clock():
            if entry[0] is None:
                raise InvalidApiKey
            return entry[0]
        raw = await self._wire.send(encode(b"GET", keys.identity(digest).encode()))
        if raw is None:
            verified = await self._wire.send(encode(b"GET", keys.VERIFIED.encode()))
            if verified != self._wire.run_id:
                raise CountersUnavailable
            self._remember(digest, None)
            raise InvalidApiKey
        assert isinstance(raw, bytes)
        found = _IDENTITY.decode(raw)
        models = frozenset(found.m) if found.m is not None else None
        caller = Caller(found.o, found.t, found.k, found.p, found.u, models)
        if entry is not None and entry[0] == caller:
            caller = entry[0]
        self._remember(digest, caller)
        return caller

    async def refresh(self) -> None:
        """Read the catalogue again."""
        raw = await self._wire.send(encode(b"GET", keys.CATALOGUE.encode()))
        if not isinstance(raw, bytes):
            raise CountersUnavailable
        self._load(raw)

    async def first_catalogue(self, within_s: float) -> bool:
        """Wait, bounded, until there is a catalogue; called before anything is served."""
        give_up = self._clock() + within_s
        while not self.version and self._clock() < give_up:
            await self._read_catalogue()
            await asyncio.sleep(FIRST_CATALOGUE_S)
        return self.version > 0

    async def keep_fresh(self) -> None:
        """Read the catalogue twice a second, until cancelled; what cannot be read stays as it was."""
        while True:
            await self._read_catalogue()
            await asyncio.sleep(CATALOGUE_S)

    async def _read_catalogue(self) -> None:
        with suppress(CountersUnavailable):
            raw = await in_task(self._wire.send(encode(b"GET", keys.CATALOGUE.encode())))
            if isinstance(raw, bytes):
                self._load(raw)

    def _load(self, raw: bytes) -> None:
        if raw == self._raw:
            return
        catalogue = _CATALOGUE.decode(raw)
        self._services = {
            key: Service(one.id, one.key, one.meter, one.counts_tokens, one.credits, one.one_time)
            for key, one in catalogue.services.items()
        }
        self.version = catalogue.version
        self._raw = raw

    def _remember(self, digest: str, caller: Caller | None) -> None:
        if len(self._known) >= IDENTITIES_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = caller, self._clock() + IDENTITY_S
