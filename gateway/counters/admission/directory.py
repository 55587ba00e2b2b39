"""Who calls, what is served and at which terms, as Redis has it, cached briefly.

An identity lives less than a second here, found or not, so a revoked or new credential counts within one;
its organization's terms are read with it, so a new price or subscription does too.
That a credential is unknown may be said only by a verified Redis: otherwise nobody knows. While it
cannot say anything, callers it knew before are still known where their tenant has a lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from gateway.core.billing.cost import BASE_CURRENCY, Vector
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.model import Caller, Service
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.prices import Prices, unheard
from gateway.counters.admission.stored import decode_catalogue, decode_identity
from gateway.counters.admission.terms import Terms
from gateway.counters.admission.weighing import Weighing
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Reply, Wire, encode
from gateway.errors import CountersUnavailable, InvalidApiKey

IDENTITY_S = 0.8  # with the way to Redis, a change counts within a second
CATALOGUE_S = 0.5
FIRST_CATALOGUE_S = 0.02
IDENTITIES_MAX = 50_000
UNKNOWN_MAX = 4096  # digests nobody has, kept apart: guesses displace no caller


class Directory:
    """Identities, terms, services, prices and weights of one worker.

    `version` is the catalogue's, 0 before the first read; `stand_ins` says which models have another's price.

    `clock` is monotonic; `today` tells the time of day in seconds since the epoch. `allowances` are
    told who is there, and say who is served without Redis: who was looked up in the last `stale_s`.
    """

    def __init__(
        self,
        wire: Wire,
        clock: Callable[[], float],
        today: Callable[[], float] = time.time,
        *,
        allowances: Allowances | None = None,
        stale_s: float = 0.0,
        identities_max: int = IDENTITIES_MAX,
        unknown_max: int = UNKNOWN_MAX,
        log: Callable[..., None] = unheard,
    ) -> None:
        self.version = 0
        self.stand_ins: StandIns = NO_STAND_INS
        self.prices = Prices(wire, log)
        self.weighing = Weighing()
        # Whether a keeper has compared this very Redis with PostgreSQL, as of the last look.
        self.verified = False
        self._wire, self._clock, self._today = wire, clock, today
        self._raw = b""
        self._services: dict[str, Service] = {}
        self._meters: dict[int, str] = {}
        self._allowances = allowances if allowances is not None else Allowances(clock)
        self._stale_s = stale_s
        self._identities_max, self._unknown_max = identities_max, unknown_max
        # Until when an entry is fresh, monotonic, and when its key expires, in ms (0: never).
        self._known: dict[str, tuple[Caller, float, int]] = {}
        # Until when a digest is taken for nobody's, monotonic.
        self._unknown: dict[str, float] = {}
        self._terms: dict[int, Terms] = {}

    def service(self, key: str) -> Service | None:
        """The service of a key, None if there is none; CountersUnavailable before the first catalogue."""
        return self.catalogue().get(key)

    def catalogue(self) -> Mapping[str, Service]:
        """Every service by its key; CountersUnavailable before the first catalogue."""
        if not self.version:
            raise CountersUnavailable
        return self._services

    def resolve(self, caller: Caller, key: str) -> Service | None:
        """The service of a key as the caller's organization has it, for this call; None if there is none.

        ServiceNotIncluded where the organization may not use it, CountersUnavailable where its terms
        are not known: a caller just identified has them.
        """
        service = self._services.get(key)
        terms = self._terms.get(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        return terms.resolve(service, self._today() * 1000, self._meters) if service is not None else None

    def price(self, caller: Caller, model: str, ago_s: float, own: bool = False) -> Vector | None:
        """What a model cost so many seconds ago, in the organization's currency, else in that of the base.

        None where there is no such price; with `own` in no other currency than the organization's.
        """
        terms = self._terms.get(caller.organization_id)
        currency = BASE_CURRENCY if terms is None else terms.currency
        at_ms = (self._today() - ago_s) * 1000
        found = self.prices.vector(model, currency, at_ms)
        if found is None and currency != BASE_CURRENCY and not own:
            found = self.prices.vector(model, BASE_CURRENCY, at_ms)
        return found

    def price_as(self, caller: Caller, model: str, ago_s: float, own: bool = False) -> Vector | None:
        """The same of the model that stands in for one without a price; None where none does."""
        other = self.stand_ins.of(model)
        return self.price(caller, other, ago_s, own) if other else None

    def cached(self, digest: str) -> Caller | None:
        """The caller of a digest looked up a moment ago, or None."""
        entry = self._known.get(digest)
        if entry is None or entry[1] < self._clock():
            return None
        return entry[0]

    async def identify(self, digest: str) -> Caller:
        """The caller of a digest; InvalidApiKey if there is none, CountersUnavailable if nobody knows."""
        entry = self._known.get(digest)
        if entry is not None and entry[1] >= self._clock():
            return entry[0]
        if entry is None and self._unknown.get(digest, 0.0) >= self._clock():
            raise InvalidApiKey
        try:
            caller: Caller | None = await self._look_up(digest, entry[0] if entry is not None else None)
        except CountersUnavailable:
            if self._wire.available:  # it answers, and will not
                raise
            caller = None
        caller = caller or self._known_before(digest)
        if caller is None:
            raise CountersUnavailable
        return caller

    async def _look_up(self, digest: str, known: Caller | None) -> Caller | None:
        """The caller of a digest as Redis has it, None where it cannot say; InvalidApiKey for none."""
        # Who it was is looked up together with the terms: one round trip, but for the first time.
        asked = self._wire.send(encode(b"GET", keys.identity(digest).encode()))
        terms = self._ask_terms(known.organization_id) if known is not None else None
        raw = await asked
        if raw is None:
            verified = await self._wire.send(encode(b"GET", keys.VERIFIED.encode()))
            if verified != self._wire.run_id:
                return None
            self._remember_unknown(digest)
            raise InvalidApiKey
        assert isinstance(raw, bytes)
        found = decode_identity(raw)
        models = frozenset(found.m) if found.m is not None else None
        caller = Caller(found.o, found.t, found.k, found.p, found.u, models, found.h)
        if known == caller:
            assert known is not None
            caller = known
        if terms is None or known is None or known.organization_id != caller.organization_id:
            terms = self._ask_terms(caller.organization_id)
        self._learn(caller.organization_id, await terms)
        self._remember(digest, caller, found.x)
        self._allowances.seen(caller)
        return caller

    def _known_before(self, digest: str) -> Caller | None:
        """Who a digest stood for when Redis could last be asked, where that is good enough."""
        caller, fresh, expires_ms = self._known.get(digest, _NOBODY)
        if caller is None or fresh + self._stale_s < self._clock():
            return None
        if expires_ms and self._today() * 1000 >= expires_ms:
            return None
        if not self._allowances.covers(caller):
            return None
        self._allowances.seen(caller)  # its lease stays, whatever Redis answers when it is back
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
        """Read catalogue and prices twice a second, until cancelled; what cannot be read stays as it was."""
        while True:
            await self._read_catalogue()
            await asyncio.sleep(CATALOGUE_S)

    async def _read_catalogue(self) -> None:
        verified = False
        with suppress(CountersUnavailable):
            confirmed = self._wire.send(encode(b"GET", keys.VERIFIED.encode()))
            raw = await in_task(self._wire.send(encode(b"GET", keys.CATALOGUE.encode())))
            if isinstance(raw, bytes):
                self._load(raw)
            verified = await in_task(confirmed) == self._wire.run_id
        self.verified = verified
        with suppress(CountersUnavailable):
            await self.prices.refresh()

    def _load(self, raw: bytes) -> None:
        if raw == self._raw:
            return
        catalogue = decode_catalogue(raw)
        self._services = catalogue.services
        self._meters = {service.id: service.meter for service in catalogue.services.values()}
        self.weighing.load(catalogue.weights)
        self.version = catalogue.version
        self._raw = raw

    def _ask_terms(self, organization_id: int) -> Wait[Reply]:
        return self._wire.send(encode(b"GET", keys.organization_terms(organization_id).encode()))

    def _learn(self, organization_id: int, reply: Reply) -> None:
        """Keep an organization's terms; the same terms stay the same object. Without any, none differ."""
        raw = reply if isinstance(reply, bytes) else b""
        terms = self._terms.pop(organization_id, None)
        if terms is None or terms.raw != raw:
            terms = Terms(raw)
        if len(self._terms) >= self._identities_max:
            del self._terms[next(iter(self._terms))]
        self._terms[organization_id] = terms

    def _remember(self, digest: str, caller: Caller, expires_ms: int) -> None:
        known = self._known
        if len(known) >= self._identities_max and digest not in known:
            del known[next(iter(known))]
        known[digest] = caller, self._clock() + IDENTITY_S, expires_ms

    def _remember_unknown(self, digest: str) -> None:
        self._known.pop(digest, None)
        unknown = self._unknown
        if len(unknown) >= self._unknown_max and digest not in unknown:
            del unknown[next(iter(unknown))]
        unknown[digest] = self._clock() + IDENTITY_S


_NOBODY: tuple[Caller | None, float, int] = (None, 0.0, 0)
