"""Who calls, what is served and at which terms, as Redis has it, cached.

An identity and its organization's terms live here for less than a second, and as long again and again while
Redis tells what changes, without being read. So a revoked or new credential counts within a second, a new
price or subscription too, and many callers in turn cost little more than one. Who was looked up or
renewed longest ago makes room for a newcomer, one for one: nobody's renewal and no guess makes anybody go.
That a credential is unknown may be said only by a verified Redis: otherwise nobody knows. While it
cannot say anything, callers it knew before are still known where their tenant has a lease.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from gateway.core.accounts.budgets import Asked, Budget
from gateway.core.accounts.call_budgets import CallBudgets, KnownBudgets
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.billing.vector import BASE_CURRENCY, Vector
from gateway.core.calls.call import Call
from gateway.core.model import Attribution, Caller, Service
from gateway.counters.admission.catalogue import Catalogue
from gateway.counters.admission.changes import NEVER, Changes, Reading
from gateway.counters.admission.known import Known, keep
from gateway.counters.admission.prices import unheard
from gateway.counters.admission.stored import decode_identity
from gateway.counters.admission.terms import Terms
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.verified import ask_word
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable, InvalidApiKey

IDENTITY_S = 0.8  # with the way to Redis, a change counts within a second
IDENTITIES_MAX = 50_000
UNKNOWN_MAX = 4096  # digests nobody has, kept apart: guesses displace no caller


class Directory(Catalogue):
    """Identities, terms, services, prices and weights of one worker.

    `stand_ins` says which models have another's price.

    `clock` is monotonic; `today` tells the time of day in seconds since the epoch. `allowances` are
    told who is there, and say who is served without Redis: who was looked up in the last `stale_s`.
    """

    def __init__(
        self,
        wires: Wires,
        clock: Callable[[], float],
        today: Callable[[], float] = time.time,
        *,
        allowances: Allowances | None = None,
        stale_s: float = 0.0,
        identities_max: int = IDENTITIES_MAX,
        unknown_max: int = UNKNOWN_MAX,
        log: Callable[..., None] = unheard,
    ) -> None:
        super().__init__(wires, Changes(wires, self._changed), clock, log)
        self.stand_ins: StandIns = NO_STAND_INS
        self._budgets = KnownBudgets()
        self._today = today
        self._allowances = allowances if allowances is not None else Allowances(clock)
        self._stale_s = stale_s
        self._identities_max, self._unknown_max = identities_max, unknown_max
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # until when, monotonic
        self._terms: OrderedDict[int, Terms] = OrderedDict()

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

    def budgets(
        self, caller: Caller, service_id: int, said: Attribution, call: Call, remember: bool = True
    ) -> CallBudgets | None:
        """The budgets that a call takes from, None where it takes from none; CountersUnavailable: unknown.

        Without `remember` no other call's are forgotten for it.
        """
        terms = self._terms.get(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        budgets = terms.budgets
        if budgets is None:
            return None
        asked = budgets.asked(caller, service_id, said, call)
        found = self._budgets.find(budgets, asked, int(self._today() * 1000), remember)
        return found if found.accounts else None

    def budgets_of(self, caller: Caller, said: Attribution) -> list[tuple[str, Budget]]:
        """The budgets that this caller's calls may take from, whatever they ask for, with their accounts."""
        terms = self._terms.get(caller.organization_id)
        if terms is None or terms.budgets is None:
            return []
        user = caller.acts_for(said.user)
        asked = Asked(caller.tenant_id, caller.key_id, 0, user, said.project_id, (), said.session)
        return terms.budgets.of_caller(asked)

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
        """The caller of a digest looked up a moment ago, or not changed since, or None."""
        known = self._known.get(digest)
        if known is None or (known.fresh < self._clock() and not self._renewed(digest, known)):
            return None
        return known.caller

    async def identify(self, digest: str) -> Caller:
        """The caller of a digest; InvalidApiKey if there is none, CountersUnavailable if nobody knows."""
        cached = self.cached(digest)
        if cached is not None:
            return cached
        known = self._known.get(digest)
        if known is None and self._unknown.get(digest, 0.0) >= self._clock():
            raise InvalidApiKey
        caller: Caller | None = None
        try:
            caller = await self._look_up(digest, known.caller if known is not None else None)
        except CountersUnavailable:
            if self._wires.of_key(keys.identity(digest).encode()).available:  # it answers, and will not
                raise
        caller = caller or await self._known_elsewhere(digest) or self._known_before(digest)
        if caller is None:
            raise CountersUnavailable
        return caller

    def _renewed(self, digest: str, known: Known) -> bool:
        """Whether who was known is known for as long again, since nothing that was read of it changed."""
        terms = self._terms.get(known.caller.organization_id)
        if terms is None:
            return False
        fresh = self._changes.hold_until(known.since, IDENTITY_S)
        if terms.since != known.since:  # its organization is another server's
            fresh = min(fresh, self._changes.hold_until(terms.since, IDENTITY_S))
        if fresh < self._clock() or known.expired(self._today() * 1000):
            return False
        known.fresh = fresh
        self._known.move_to_end(digest)
        self._terms.move_to_end(known.caller.organization_id)
        self._allowances.seen(known.caller)
        return True

    def _changed(self, name: bytes) -> None:
        """A key of an identity or of terms changed: whoever asks next reads it."""
        if name.startswith(keys.IDENTITIES):
            digest = keys.own_name(name)
            self._unknown.pop(digest, None)
            known = self._known.get(digest)
            if known is not None:
                known.since, known.fresh = NEVER, min(known.fresh, self._clock() - IDENTITY_S)
        elif (number := keys.own_name(name)).isdecimal():
            terms = self._terms.get(int(number))
            if terms is not None:
                terms.since = NEVER

    async def _look_up(self, digest: str, known: Caller | None) -> Caller | None:
        """The caller of a digest as Redis has it, None where it cannot say; InvalidApiKey for none."""
        # Who it was is looked up together with terms that may be others: one round trip, but for the first.
        name = keys.identity(digest).encode()
        asked, terms = self._changes.read(name), None
        if known is not None and not self._holds(known.organization_id):
            terms = self._ask_terms(known.organization_id)
        raw, since = await asked.answer()
        if raw is None:
            wire = self._wires.of_key(name)
            if await ask_word(wire) != wire.run_id:
                return None
            self._known.pop(digest, None)
            keep(self._unknown, digest, self._clock() + IDENTITY_S, self._unknown_max)
            raise InvalidApiKey
        assert isinstance(raw, bytes)
        found = decode_identity(raw)
        models = frozenset(found.m) if found.m is not None else None
        caller = Caller(found.o, found.t, found.k, found.p, found.u, models, found.h)
        if known is not None and known == caller:
            caller = known
        if terms is None or known is None or known.organization_id != caller.organization_id:
            terms = None if self._holds(caller.organization_id) else self._ask_terms(caller.organization_id)
        if terms is not None:
            self._learn(caller.organization_id, *await terms.answer())
        entry = Known(caller, self._clock() + IDENTITY_S, found.x, since)
        keep(self._known, digest, entry, self._identities_max)
        self._allowances.seen(caller)
        return caller

    async def _known_elsewhere(self, digest: str) -> Caller | None:
        """Who a digest stood for when its server could last be asked, where the account's own answers.

        That one's scripts know whether the key was revoked, so this is good for as long as it is remembered.
        """
        known = self._known.get(digest)
        if known is None or known.expired(self._today() * 1000):
            return None
        caller = known.caller
        wire = self._wires.of(caller.partition)
        if not wire.available or wire is self._wires.of_key(keys.identity(digest).encode()):
            return None
        if not self._holds(caller.organization_id):
            try:
                answer, since = await self._ask_terms(caller.organization_id).answer()
            except CountersUnavailable:
                return None
            self._learn(caller.organization_id, answer, since)
        self._allowances.seen(caller)
        return caller

    def _known_before(self, digest: str) -> Caller | None:
        """Who a digest stood for when Redis could last be asked, where that is good enough."""
        known = self._known.get(digest)
        if known is None or known.fresh + self._stale_s < self._clock():
            return None
        if known.expired(self._today() * 1000) or not self._allowances.covers(known.caller):
            return None
        self._allowances.seen(known.caller)  # its lease stays, whatever Redis answers when it is back
        return known.caller

    def _holds(self, organization_id: int) -> bool:
        """Whether terms that were read, of which there may be 160 KB, are what they are still."""
        terms = self._terms.get(organization_id)
        if terms is None or self._changes.hold_until(terms.since, IDENTITY_S) < self._clock():
            return False
        self._terms.move_to_end(organization_id)
        return True

    def _ask_terms(self, organization_id: int) -> Reading:
        return self._changes.read(keys.organization_terms(organization_id).encode())

    def _learn(self, organization_id: int, reply: Reply, since: int) -> None:
        """Keep an organization's terms; the same terms stay the same object. Without any, none differ."""
        raw = reply if isinstance(reply, bytes) else b""
        terms = self._terms.get(organization_id)
        if terms is None or terms.raw != raw:
            terms = Terms(raw, organization_id)
        terms.since = since
        keep(self._terms, organization_id, terms, self._identities_max)
