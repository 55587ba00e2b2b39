"""Services and prices, as the keeper wrote them for everybody: catalogue, weights and prices.

All are read whenever others are told of, and seldom besides; twice a second where nothing is told, or while
not all is verified. One older than the known one counts only once it stands in a Redis that was verified: a
server that was replaced may lack the latest for a while. One that cannot be read, or was written by a newer
keeper, is logged once, and the one before stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.definitions import NO_LISTS, NegotiatedTerms, OrganizationTerms
from gateway.core.accounts.plans import Weights
from gateway.core.accounts.run_policies import NO_POLICIES
from gateway.core.billing.price_book import PriceBook
from gateway.core.billing.sellers import Seller
from gateway.core.billing.vector import ModelPrice, Vector
from gateway.core.calls.capacity import Share
from gateway.core.calls.routes import ModelRule
from gateway.core.calls.tariff import SUBSCRIPTION, as_negotiated, other_currency
from gateway.core.lru import the_one
from gateway.core.model import PARTITIONS, HoldRequest, Service
from gateway.core.wait import in_task
from gateway.counters.admission.cache import NEVER, CachedValue, Changes
from gateway.counters.admission.stored import (
    UNREADABLE,
    StoredPrices,
    decode_catalogue,
    decode_prices,
    decode_terms,
    version_of,
)
from gateway.counters.history_guard import ask_word, says_verified
from gateway.counters.layouts.packing import ANY_PLAN
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersRefused, CountersUnavailable, ServiceNotIncluded

# What models cost, as Redis has it: the price book of one worker.
#
# Prices that begin later come long before, so each is in force at its time by the worker's own clock, and a
# new one as soon as Redis tells of it, within half a second otherwise. One that cannot be read, or was
# written by a newer keeper, is logged once, and the one before stays in force.

_PRICES, _HEAD = keys.PRICES.encode(), keys.PRICES_HEAD.encode()


def unheard(what: str, **facts: object) -> None:
    """Where nobody listens."""


class PriceCache:
    """The book and its `version`, 0 before the first one was read; `log` is told of those that cannot be."""

    __slots__ = ("_book", "_log", "_looked_at", "_sellers", "_told", "_wires", "version")

    def __init__(self, wires: RedisConnections, log: Callable[..., None]) -> None:
        self.version = 0
        self._book = PriceBook()
        self._sellers: frozenset[str] = frozenset()
        self._wires = wires
        self._log = log
        # The head of the last read one, good or not; and the last logged one.
        self._looked_at = b""
        self._told = ""

    @property
    def unread(self) -> bool:
        """Whether those that are there could not be read when they were looked at last."""
        return self._told != ""

    def read_for(self, sellers: frozenset[str]) -> None:
        """Keep the lists of these sellers too, from the next refresh on."""
        if sellers != self._sellers:
            self._sellers, self._looked_at = sellers, b""

    def vector(self, model: str, currency: str, at_ms: float, seller: Seller | None = None) -> Vector | None:
        """Return the price in force of a model at a time (ms since the epoch), None where there is none."""
        return self._book.vector(model, currency, at_ms, seller)

    def base_rate(self, currency: str, at_ms: float) -> str | None:
        """Return how much of a currency a unit of the base was at a time; None where nobody says."""
        return self._book.base_rate(currency, at_ms)

    async def refresh(self) -> None:
        """Read the book again if there is another; CountersUnavailable where Redis cannot be asked."""
        try:
            stored = await self._newer()
        except (CountersRefused, *UNREADABLE) as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log("prices cannot be read", error=self._told, in_force=self.version, level="error")
            return
        if stored is not None:
            told, prices = stored
            self._book = PriceBook(prices, told.rates)
            self.version, self._told = told.version, ""

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
            self._looked_at = before  # of a server that may lack the latest
            return None
        return stored


# An organization's terms, as they resolve services for its callers.
#
# Subscription services are those its subscription includes. Of services with another meter it may use all.
# Where its terms say `listed`, it may use those services alone that it has a price for, whatever their meter.
#
# A service is resolved once a version of the catalogue and of the terms, and stays the same object
# while neither changes: what is made for a service elsewhere is found again.

# The cache entry of an organization takes so many bytes, and so many more for each it was read from
# (measured).
TERMS_BYTES: Final = 1024
TERMS_COPIES: Final = 5
# How many ways to have a service organizations share that have negotiated nothing of it.
USUAL_MAX: Final = 4_096


class CachedTerms(CachedValue):
    """One organization's terms; `budgets` are those of its calls, None where it has none."""

    def __init__(self, raw: bytes, organization_id: int = 0) -> None:
        self.raw, self.since, self.read_at = raw, NEVER, 0.0
        self.size = TERMS_BYTES + TERMS_COPIES * len(raw)
        self._terms = decode_terms(raw) if raw else OrganizationTerms()
        self._since_ms, self._until_ms = float(self._terms.since_ms), float(self._terms.until_ms)
        self._subscribed = self._terms.subscribed
        self._features = frozenset(self._terms.features)
        self._negotiated = {one.service_id: one for one in self._terms.negotiated}
        self.currency = self._terms.currency
        self.models = None if self._terms.models == NO_LISTS else self._terms.models
        self.runs = None if self._terms.runs == NO_POLICIES else self._terms.runs
        self.spent = self._terms.spent
        budgets = self._terms.budgets
        self.budgets = OrganizationBudgets(organization_id, budgets, self.currency) if budgets else None
        self._organization_id = organization_id
        self._no_budgets: OrganizationBudgets | None = None
        self._resolved: dict[str, _ResolvedService] = {}
        # The one that was asked for last: most organizations call one.
        self._last: _ResolvedService | None = None

    @property
    def no_budgets(self) -> OrganizationBudgets:
        """What calls of runs take from besides, where there are no budgets: the same object each time."""
        if self._no_budgets is None:
            self._no_budgets = OrganizationBudgets(self._organization_id, (), self.currency)
        return self._no_budgets

    def resolve(self, service: Service, now_ms: float) -> Service:
        """The catalogue's service as this organization has it; ServiceNotIncluded where it may not use it."""
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
    """A service of the catalogue as one organization has it; `included` is the one its subscription pays.

    That is so from `since_ms` on and before `until_ms`. `given` says that it may use it, as far as that does
    not depend on a subscription.
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
    """Return the one of all organizations that have a service so: what all calls read stays near at hand."""
    name = id(known.base), known.why if not known.given else "", known.since_ms, known.until_ms
    return the_one(_usual, name, known, USUAL_MAX)  # what is kept has its base, so no other has that id


_usual: Final[dict[tuple[int, str, float, float], _ResolvedService]] = {}


# Which weights a tenant's calls go by: those of its plan, as the catalogue has them.
#
# Which plan a tenant follows is known from what Redis answered last: `reserve` names the plan whose weights
# it went by, and is told of another. Where no plan has weights, nothing is asked.

TENANTS_MAX = 50_000
NO_PLAN = 0
_NONE: Mapping[int, Weights] = {}


class WeightCache:
    """The weights of one worker. `by_plan` has those of every plan that weighs anything."""

    __slots__ = ("_plans", "_tenants_max", "by_plan")

    def __init__(self, tenants_max: int = TENANTS_MAX) -> None:
        self.by_plan = _NONE
        self._tenants_max = tenants_max
        # Plans by tenant.
        self._plans: dict[int, int] = {}

    def load(self, millionths: Mapping[int, Mapping[str, int]]) -> None:
        """Go by what another catalogue says."""
        self.by_plan = {plan_id: Weights.of(weights) for plan_id, weights in millionths.items() if weights}

    def plan_of(self, request: HoldRequest) -> int:
        """Return the plan a call is taken to be of; any, where weights change nothing about it."""
        if not self.by_plan or not request.service.counts_tokens:
            return ANY_PLAN
        return self._plans.get(request.caller.tenant_id, NO_PLAN)

    def learn(self, tenant_id: int, plan_id: int) -> None:
        """A tenant follows this plan."""
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
        # The partitions whose very Redis no keeper has compared with PostgreSQL, as of the last look.
        self.unverified = frozenset(range(PARTITIONS))
        self._wires, self._changes, self._clock, self._log = wires, changes, clock, log
        self._raw = b""
        # Why the last one that was looked at cannot be read, empty where it can.
        self._told = ""
        self._services: dict[str, Service] = {}
        self._models: tuple[ModelRule, ...] = ()
        self._shares: tuple[Share, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether a keeper has compared all there is of this very Redis."""
        return not self.unverified

    @property
    def unread(self) -> list[tuple[str, int]]:
        """Of the catalogue and of prices, whether those that are there cannot be read: 1 or 0."""
        return [("catalogue", int(self._told != "")), ("prices", int(self.prices.unread))]

    def service(self, key: str) -> Service | None:
        """The service of a key, None if there is none; CountersUnavailable before the first catalogue."""
        return self.catalogue().get(key)

    def catalogue(self) -> Mapping[str, Service]:
        """Return every service by its key; CountersUnavailable before the first catalogue."""
        if not self.version:
            raise CountersUnavailable
        return self._services

    def models(self) -> tuple[ModelRule, ...]:
        return self._models

    def shares(self) -> tuple[Share, ...]:
        return self._shares

    async def refresh(self) -> None:
        """Read the catalogue again; one older than the known one waits for the next look.

        One that cannot be read leaves what was read before.
        """
        raw = await self._wires.of_key(_NAME).send(encode(b"GET", _NAME))
        if not isinstance(raw, bytes):
            raise CountersUnavailable
        try:
            if not self._is_older(raw):
                self._load(raw)
        except UNREADABLE as error:
            self._tell(str(error))

    async def first_catalogue(self, within_s: float) -> bool:
        """Wait, bounded, until there is a catalogue; called before anything is served."""
        give_up = self._clock() + within_s
        while not self.version and self._clock() < give_up:
            await self._read_catalogue()
            await asyncio.sleep(FIRST_CATALOGUE_S)
        return self.version > 0

    async def keep_fresh(self) -> None:
        """Read catalogue and prices whenever others are told of, and now and then; else they stay."""
        while True:
            is_read = await self._read_catalogue()
            told = is_read and self.verified and self._changes.hears
            await self._changes.others(TOLD_CATALOGUE_S if told else CATALOGUE_S)

    async def _read_catalogue(self) -> bool:
        """Return whether there was one, and prices could be asked for."""
        words, is_read = [(wire, ask_word(wire)) for wire in self._wires.wires], False
        with suppress(CountersUnavailable):
            try:
                raw = await in_task(self._wires.of_key(_NAME).send(encode(b"GET", _NAME), upkeep=True))
                if isinstance(raw, bytes) and (not self._is_older(raw) or await self._may_be_older()):
                    self._load(raw)
                    is_read = True
            except (CountersRefused, *UNREADABLE) as error:
                self._tell(str(error))
        verified = [wire for wire, word in words if await says_verified(wire, word)]
        self.unverified = frozenset(range(PARTITIONS)).difference(*(one.partitions for one in verified))
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
        found = decode_catalogue(raw)
        self._services = found.services
        if found.models != self._models:
            self._models = found.models
        if found.shares != self._shares:
            self._shares = found.shares
        self.weighing.load(found.weights)
        self.version = found.version
        self._raw, self._told = raw, ""
