"""Services, weights and prices, which the keeper writes for all workers: the catalogue and the price list.

A worker reads them whenever a change is reported, and rarely otherwise; twice a second if Redis reports no
changes or is not verified. A version older than the known one counts only if the Redis was verified, because
a replaced server may lack the latest for a while. A version that cannot be read, or that a newer keeper
wrote, is logged once, and the one before stays in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.definitions import NO_LISTS, NegotiatedTerms, OrganizationTerms, Share
from gateway.core.accounts.groups import NO_GROUPS, Groups
from gateway.core.accounts.run_policies import NO_POLICIES
from gateway.core.accounts.weights import Weights
from gateway.core.billing.price_book import PriceBook
from gateway.core.billing.sellers import Seller
from gateway.core.billing.vector import ModelPrice, Vector
from gateway.core.calls.routes import ModelRule
from gateway.core.calls.tariff import SUBSCRIPTION, as_negotiated, other_currency
from gateway.core.lru import the_one
from gateway.core.model import PARTITIONS, HoldRequest, Service
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.cache import CachedValue
from gateway.counters.admission.key_changes import NEVER, Changes
from gateway.counters.admission.stored import (
    UNREADABLE,
    StoredPrices,
    decode_catalogue,
    decode_prices,
    decode_terms,
    version_of,
)
from gateway.counters.history_guard import ask_word, says_verified
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import ANY_PLAN
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout, ServiceNotIncluded

# The price book of one worker: the prices of models, read from Redis.
#
# Future prices are stored long before, so each is in force at its time by the worker's own clock. A new one
# is read when Redis reports it, or else within half a second. A price list that cannot be read, or that a
# newer keeper wrote, is logged once, and the one before stays in force.

_PRICES, _HEAD = keys.PRICES.encode(), keys.PRICES_HEAD.encode()


def unheard(what: str, **facts: object) -> None:
    """Discard a log message."""


class PriceCache:
    """The price book and its `version`, 0 before the first read; `log` gets errors of reading."""

    __slots__ = ("_book", "_log", "_looked_at", "_sellers", "_told", "_wires", "version")

    def __init__(self, wires: RedisConnections, log: Callable[..., None]) -> None:
        self.version = 0
        self._book = PriceBook()
        self._sellers: frozenset[str] = frozenset()
        self._wires = wires
        self._log = log
        # The head of the last list that was read, valid or not; and the last logged error.
        self._looked_at = b""
        self._told = ""

    @property
    def unread(self) -> bool:
        """Whether the price list in Redis could not be read at the last refresh."""
        return self._told != ""

    def read_for(self, sellers: frozenset[str]) -> None:
        """Read the price lists of these sellers too, from the next refresh on."""
        if sellers != self._sellers:
            self._sellers, self._looked_at = sellers, b""

    def vector(self, model: str, currency: str, at_ms: float, seller: Seller | None = None) -> Vector | None:
        """Return a model's price in force at a time (ms since the epoch); None if there is none."""
        return self._book.vector(model, currency, at_ms, seller)

    def base_rate(self, currency: str, at_ms: float) -> str | None:
        """Return the exchange rate at a time: units of a currency per base unit; None if unknown."""
        return self._book.base_rate(currency, at_ms)

    async def refresh(self) -> None:
        """Read the price book again if it changed; CountersUnavailable if Redis does not answer."""
        try:
            stored = await self._newer()
        except (CountersRefused, *UNREADABLE) as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log("prices cannot be read", error=self._told, in_force=self.version, level="error")
            return
        if stored is not None:
            definitions, prices = stored
            self._book = PriceBook(prices, definitions.rates)
            self.version, self._told = definitions.version, ""

    async def _newer(self) -> tuple[StoredPrices, list[ModelPrice]] | None:
        head = await in_task(self._wires.of_key(_HEAD).send(encode(b"GET", _HEAD), upkeep=True))
        if not isinstance(head, bytes) or head == self._looked_at:
            return None
        wire = self._wires.of_key(_PRICES)
        raw = await in_task(wire.send(encode(b"GET", _PRICES)))
        before, self._looked_at = self._looked_at, head
        if raw is None:  # its next writer may write the same head
            self._looked_at = before
            raise ValueError("there are none")
        stored = decode_prices(raw if isinstance(raw, bytes) else b"", self._sellers)
        if stored[0].version < self.version and not await says_verified(wire, ask_word(wire)):
            self._looked_at = before  # from a server that may lack the latest
            return None
        return stored


# An organization's terms, which decide the services and prices of its callers.
#
# Services of a subscription need a subscription that includes them. Any organization may use the others. If
# its terms are `listed`, it may use only services with a price of its own, whatever their meter.
#
# A service is resolved once for a version of the catalogue and of the terms, and remains the same object
# until one changes, so that other caches can use it as a key.

# Measured bytes of an organization's cache entry: a fixed part, and this many for each stored byte.
TERMS_BYTES: Final = 1024
TERMS_COPIES: Final = 5
# The most resolved services that organizations without negotiated terms share.
USUAL_MAX: Final = 4_096


class CachedTerms(CachedValue):
    """One organization's cached terms; `budgets` are the budgets of its calls, None if it has none.

    `groups` are those of its callers, likewise.
    """

    def __init__(self, raw: bytes, organization_id: int = 0) -> None:
        self.raw, self.since, self.read_at = raw, NEVER, 0.0
        self.size = TERMS_BYTES + TERMS_COPIES * len(raw)
        self._terms = decode_terms(raw) if raw else OrganizationTerms()
        self._since_ms, self._until_ms = float(self._terms.since_ms), float(self._terms.until_ms)
        self._subscribed = self._terms.subscribed
        self._features = frozenset(self._terms.features)
        self._negotiated = {price.service_id: price for price in self._terms.negotiated}
        self.currency = self._terms.currency
        self.models = None if self._terms.models == NO_LISTS else self._terms.models
        self.runs = None if self._terms.runs == NO_POLICIES else self._terms.runs
        self.spent = self._terms.spent
        self.tags = self._terms.tags
        budgets = self._terms.budgets
        self.groups = None if self._terms.groups == NO_GROUPS else Groups(self._terms.groups)
        self.budgets = (
            OrganizationBudgets(organization_id, budgets, self.currency, self.groups) if budgets else None
        )
        self._organization_id = organization_id
        self._no_budgets: OrganizationBudgets | None = None
        self._resolved: dict[str, _ResolvedService] = {}
        # The last resolved one: most organizations call one service.
        self._last: _ResolvedService | None = None

    @property
    def no_budgets(self) -> OrganizationBudgets:
        """The empty budgets of an organization, for its calls in a run; always the same object."""
        if self._no_budgets is None:
            self._no_budgets = OrganizationBudgets(self._organization_id, (), self.currency)
        return self._no_budgets

    def resolve(self, service: Service, now_ms: float) -> Service:
        """Return a service at this organization's terms; ServiceNotIncluded if it may not use it."""
        known = self._last
        if known is None or known.base is not service:
            known = self._last = self._known_as(service)
        if known.since_ms <= now_ms < known.until_ms:
            return known.included
        if not known.given:
            raise ServiceNotIncluded(known.why, retry_helps=False)
        if known.service.meter != SUBSCRIPTION:
            return known.service
        if self._since_ms <= now_ms < self._until_ms:
            raise ServiceNotIncluded(retry_helps=False)
        if self._subscribed or 0 < self._until_ms <= now_ms:
            raise ServiceNotIncluded("The organization's subscription is not in force.", retry_helps=False)
        return known.service

    def _known_as(self, service: Service) -> _ResolvedService:
        known = self._resolved.get(service.key)
        if known is None or known.base is not service:
            known = self._resolved[service.key] = self._resolve(service)
        return known

    def _resolve(self, service: Service) -> _ResolvedService:
        negotiated = self._negotiated.get(service.id)
        known = _ResolvedService(service, negotiated)
        if costs := other_currency(known.service, self.currency):
            known.given = False
            known.why = f"This service costs {costs}, and the organization pays in {self.currency}."
        elif self._terms.listed and negotiated is None:
            known.given = False
        if known.given and known.service.meter == SUBSCRIPTION and service.key in self._features:
            known.since_ms, known.until_ms = self._since_ms, self._until_ms
        return known if negotiated is not None else _shared(known)


class _ResolvedService:
    """A service at one organization's terms; `included` is the service while a subscription pays for it.

    That time is from `since_ms` until before `until_ms`. `given` is whether the organization may use the
    service, apart from subscriptions; `why` is the message if not.
    """

    __slots__ = ("base", "given", "included", "service", "since_ms", "until_ms", "why")

    def __init__(self, base: Service, negotiated: NegotiatedTerms | None) -> None:
        self.base = base
        self.given = True
        self.why = "This service was not given to the organization."
        self.since_ms = self.until_ms = 0.0
        self.service = as_negotiated(base, negotiated)
        self.included = replace(self.service, needs_plan=False)


def _shared(known: _ResolvedService) -> _ResolvedService:
    """Return the object that all organizations with this same service share, for the processor's cache."""
    name = id(known.base), known.why if not known.given else "", known.since_ms, known.until_ms
    return the_one(_usual, name, known, USUAL_MAX)  # the value has its base, so no other has that id


_usual: Final[dict[tuple[int, str, float, float], _ResolvedService]] = {}


# The weights of a tenant's calls: those of its plan in the catalogue.
#
# A worker learns a tenant's plan from Redis' answers: `reserve` sends the plan that its weights belong to,
# and gets the right one if it differs. If no plan has weights, nothing is sent.

TENANTS_MAX = 50_000
NO_PLAN = 0
_NONE: Mapping[int, Weights] = {}


class WeightCache:
    """The weights of one worker. `by_plan` has the weights of each plan that defines any."""

    __slots__ = ("_plans", "_tenants_max", "by_plan")

    def __init__(self, tenants_max: int = TENANTS_MAX) -> None:
        self.by_plan = _NONE
        self._tenants_max = tenants_max
        # Plan ids by tenant id.
        self._plans: dict[int, int] = {}

    def load(self, millionths: Mapping[int, Mapping[str, int]]) -> None:
        """Replace all weights of tokens, in millionths by plan id and kind, by those of a new catalogue."""
        self.by_plan = {plan_id: Weights.of(weights) for plan_id, weights in millionths.items() if weights}

    def plan_of(self, request: HoldRequest) -> int:
        """Return the plan id last learned for a call's tenant; ANY_PLAN for a call without weighed tokens."""
        if not self.by_plan or not request.service.counts_tokens:
            return ANY_PLAN
        return self._plans.get(request.caller.tenant_id, NO_PLAN)

    def learn(self, tenant_id: int, plan_id: int) -> None:
        """Remember the plan of a tenant."""
        if len(self._plans) >= self._tenants_max and tenant_id not in self._plans:
            del self._plans[next(iter(self._plans))]
        self._plans[tenant_id] = plan_id


CATALOGUE_S, TOLD_CATALOGUE_S = 0.5, 20.0
FIRST_CATALOGUE_S = 0.02
_NAME = keys.CATALOGUE.encode()


class Catalogue:
    """Services, weights and prices of one worker. `version` is the catalogue's, 0 before the first read."""

    def __init__(
        self, wires: RedisConnections, changes: Changes, clock: Callable[[], float], log: Callable[..., None]
    ) -> None:
        self.version = 0
        self.prices = PriceCache(wires, log)
        self.weighing = WeightCache()
        # The partitions that, at the last look, no keeper had verified on this Redis: all, before each server
        # that can be reached was asked once.
        self.unverified, self._has_asked = frozenset(range(PARTITIONS)), False
        self._wires, self._changes, self._clock, self._log = wires, changes, clock, log
        self._raw = b""
        # Why the last catalogue read is invalid; empty if it is valid.
        self._told = ""
        self._services: dict[str, Service] = {}
        self._models: tuple[ModelRule, ...] = ()
        self._shares: tuple[Share, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether a keeper has verified all partitions on this Redis."""
        return not self.unverified

    @property
    def unread(self) -> list[tuple[str, int]]:
        """The catalogue and the prices by name: 1 if the stored one cannot be read, otherwise 0."""
        return [("catalogue", int(self._told != "")), ("prices", int(self.prices.unread))]

    def service(self, key: str) -> Service | None:
        """Return the service of a key, or None; CountersUnavailable before the first catalogue."""
        return self.catalogue().get(key)

    def catalogue(self) -> Mapping[str, Service]:
        """Return all services by key; CountersUnavailable before the first catalogue."""
        if not self.version:
            raise CountersUnavailable
        return self._services

    def models(self) -> tuple[ModelRule, ...]:
        return self._models

    def shares(self) -> tuple[Share, ...]:
        return self._shares

    async def refresh(self) -> None:
        """Read the catalogue again. An older or unreadable one leaves the known one in force."""
        raw = await self._wires.of_key(_NAME).send(encode(b"GET", _NAME))
        if not isinstance(raw, bytes):
            raise CountersUnavailable
        try:
            if not self._is_older(raw):
                self._load(raw)
        except UNREADABLE as error:
            self._tell(str(error))

    async def first_catalogue(self, within_s: float) -> bool:
        """Wait up to `within_s` seconds for the first catalogue; return whether it was read."""
        give_up = self._clock() + within_s
        while not self.version and self._clock() < give_up:
            await self._read_catalogue()
            await asyncio.sleep(FIRST_CATALOGUE_S)
        return self.version > 0

    async def keep_fresh(self) -> None:
        """Read catalogue and prices when a change is reported, and at intervals, until cancelled."""
        while True:
            is_read = await self._read_catalogue()
            is_told = is_read and self.verified and self._changes.hears
            await self._changes.others(TOLD_CATALOGUE_S if is_told else CATALOGUE_S)

    async def _read_catalogue(self) -> bool:
        """Read the catalogue, the prices, and which partitions are verified.

        Return False if no catalogue could be loaded, or Redis does not answer.
        """
        words, is_read = [(wire, ask_word(wire)) for wire in self._wires.wires], False
        with suppress(CountersUnavailable):
            try:
                raw = await in_task(self._wires.of_key(_NAME).send(encode(b"GET", _NAME), upkeep=True))
                if isinstance(raw, bytes) and (not self._is_older(raw) or await self._may_be_older()):
                    self._load(raw)
                    is_read = True
            except (CountersRefused, *UNREADABLE) as error:
                self._tell(str(error))
        waiting = [(wire, await find_waiting_partitions(wire, word)) for wire, word in words]
        self._has_asked |= bool(words) and all(some is not None or wire.cause for wire, some in waiting)
        if self._has_asked:
            served = (set(wire.part.partitions) - some for wire, some in waiting if some is not None)
            self.unverified = frozenset(range(PARTITIONS)).difference(*served)
        try:
            await self.prices.refresh()
        except CountersUnavailable:
            return False
        return is_read

    def _is_older(self, raw: bytes) -> bool:
        return raw != self._raw and version_of(raw) < self.version

    async def _may_be_older(self) -> bool:
        wire = self._wires.of_key(_NAME)
        return await says_verified(wire, ask_word(wire))

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._log("catalogue cannot be read", error=why, in_force=self.version, level="error")

    def _load(self, raw: bytes) -> None:
        if raw == self._raw:
            self._told = ""
            return
        catalogue = decode_catalogue(raw)
        self._services = catalogue.services
        if catalogue.models != self._models:
            self._models = catalogue.models
        if catalogue.shares != self._shares:
            self._shares = catalogue.shares
        self.weighing.load(catalogue.weights)
        self.version = catalogue.version
        self._raw, self._told = raw, ""


async def find_waiting_partitions(wire: RedisConnection, word: Wait[Reply]) -> frozenset[int] | None:
    """Return the partitions of a server that admit no calls yet; None without an answer.

    `word` is a reply to `ask_word`. While a keeper verifies the server, the partitions' markers are asked for.
    """
    asked = wire.part.partitions
    with suppress(CountersUnavailable):
        if await says_verified(wire, word):
            return frozenset()
        waits = wire.send_together(*(encode(b"GET", keys.marker(p).encode()) for p in asked))
        return frozenset(
            [p for p, wait in zip(asked, waits, strict=True) if not await _read_admits(wire, wait)]
        )
    return None


async def _read_admits(wire: RedisConnection, marker: Wait[Reply]) -> bool:
    with suppress(CountersRefused, NewerLayout):
        run_id, _, catalogue = packing.read_marker(await in_task(marker))
        return run_id == wire.run_id and catalogue != packing.CLOSED
    return False
