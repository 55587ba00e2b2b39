"""Who calls, and at which terms, as Redis has it, cached.

An identity and its organization's terms live here for less than a second, and as long again and again while
Redis tells what changes, without being read. So a revoked or new credential counts within a second, a new
price or subscription too, and many callers in turn cost little more than one. They are read again in the
background after half a minute all the same, and hold for a minute at most. The cache is bounded in bytes: the
caller that called longest ago makes room for a newcomer. No guess makes anybody go, and guesses are looked up
a few at a time. That a credential is unknown may be said only by a verified Redis: otherwise nobody knows.
While it cannot say anything, callers it knew before are still known where their tenant has a lease.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from gateway.core.accounts.budgets import Budget, CallAttributes
from gateway.core.accounts.call_budgets import BudgetCache, CallBudgets
from gateway.core.accounts.definitions import ModelLists
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.billing.price_book import BASE_CURRENCY
from gateway.core.billing.sellers import Seller
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.lru import CachePool, LruCache
from gateway.core.model import Attribution, Caller, Service
from gateway.core.wait import in_task
from gateway.counters.admission.cache import (
    BOUNDS,
    NEVER,
    CachedCaller,
    CachedValue,
    CacheLimits,
    Changes,
    KeyLookup,
    LookupQueue,
)
from gateway.counters.admission.catalogue import CachedTerms, Catalogue, unheard
from gateway.counters.admission.stored import UNREADABLE, Identity, decode_identity
from gateway.counters.history_guard import ask_word
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.errors import CountersRefused, CountersUnavailable, EndedApiKey, InvalidApiKey

# Cached callers are read again after a while, though no change was told: many at once, behind calls.
#
# An unchanged one holds on. Another one counts as changed, so the next call looks it up.

# From when on what was read is read again.
AGAIN_S: Final = 30.0
# So many callers at once, so often; and while so many wait, another one is noted later.
AT_ONCE_MAX: Final = 128
EACH_S: Final = 0.05
WAITING_MAX: Final = 16_384


class CallerRefresh:
    """Of one worker: callers who are `due`, by their digests, and the one `task` that reads them.

    `changed` is told the name of each key that holds something else than is known.
    """

    def __init__(
        self,
        changes: Changes,
        changed: Callable[[bytes], None],
        known: LruCache[str, CachedCaller],
        terms: LruCache[int, CachedTerms],
        clock: Callable[[], float],
    ) -> None:
        self.due: dict[str, None] = {}
        self.task: asyncio.Task[None] | None = None
        self._changes, self._changed, self._clock = changes, changed, clock
        self._known, self._terms = known, terms

    def note(self, digest: str) -> None:
        """A caller is to be read again, with others who come to be due within a moment."""
        if digest in self.due or len(self.due) >= WAITING_MAX:
            return
        self.due[digest] = None
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while self.due:
            await asyncio.sleep(EACH_S)
            some = list(islice(self.due, AT_ONCE_MAX))
            for digest in some:
                del self.due[digest]
            await in_task(self._compare(some))

    async def _compare(self, digests: list[str]) -> None:
        """Ask for what is known of these, and for their terms, where that was read long ago."""
        asked_at = self._clock()
        asked: dict[bytes, CachedValue] = {}
        for digest in digests:
            known = self._known.find(digest)
            if known is None:
                continue
            if known.read_at + AGAIN_S < asked_at:
                asked[keys.identity(digest).encode()] = known
            organization_id = known.caller.organization_id
            terms = self._terms.find(organization_id)
            if terms is not None and terms.read_at + AGAIN_S < asked_at:
                asked[keys.organization_terms(organization_id).encode()] = terms
        readings = self._changes.read_together(list(asked))
        for (name, kept), reading in zip(asked.items(), readings, strict=True):
            try:
                reply, since = await reading.answer()
            except CountersUnavailable:
                continue  # it holds for no longer than it did
            if kept.raw == (reply or b""):
                kept.read_at, kept.since = asked_at, since
            else:
                self._changed(name)


IDENTITY_S = 0.8  # with the way to Redis, a change counts within a second
END_S = 0.001  # ends of keys are whole milliseconds
KNOWN_S_MAX = 60.0  # nothing holds for longer, whatever is told


class CallerCache(Catalogue):
    """Identities and terms of one worker.

    `clock` is monotonic; `today` tells the time of day in seconds since the epoch. `allowances` are
    told who is there, and say who is served without Redis: who was looked up in the last `stale_s`.
    """

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        today: Callable[[], float] = time.time,
        *,
        allowances: Allowances | None = None,
        stale_s: float = 0.0,
        bounds: CacheLimits = BOUNDS,
        log: Callable[..., None] = unheard,
        pool: CachePool | None = None,
    ) -> None:
        super().__init__(wires, Changes(wires, self._changed), clock, log)
        self._today = today
        self._allowances = allowances if allowances is not None else Allowances(clock)
        self._stale_s = stale_s
        self._known: LruCache[str, CachedCaller] = LruCache(bounds.known_bytes_max)
        self._terms: LruCache[int, CachedTerms] = LruCache(bounds.terms_bytes_max)
        # Credentials nobody has: until when, monotonic, and why. They are apart: guesses displace no caller.
        self._unknown: OrderedDict[str, tuple[float, type[InvalidApiKey]]] = OrderedDict()
        self._unknown_max = bounds.unknown_max
        self._turns = LookupQueue(bounds.look_ups_max, bounds.look_ups_waiting_max)
        self._rereading = CallerRefresh(self._changes, self._changed, self._known, self._terms, clock)
        if pool is not None:
            pool.join("callers", self._known)
            pool.join("terms", self._terms)

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a digest looked up a moment ago, or not changed since, or None."""
        known = self._known.find(digest)
        if known is None or (known.fresh < self._clock() and not self._renewed(digest, known)):
            return None
        return known.caller

    async def identify(self, digest: str) -> Caller:
        """Return the caller of a digest; InvalidApiKey if there is none, CountersUnavailable if nobody knows.

        Overloaded where too many are asked for that are not known here.
        """
        cached = self.cached(digest)
        if cached is not None:
            return cached
        known = self._known.find(digest)
        caller: Caller | None = None
        try:
            if known is None:
                caller = await self._look_up_in_turn(digest)
            else:
                caller = await self._look_up(digest, known.caller)
        except CountersUnavailable:
            if self._wires.of_key(keys.identity(digest).encode()).available:  # it answers, and will not
                raise
        caller = caller or await self._known_elsewhere(digest) or self._known_before(digest)
        if caller is None:
            raise CountersUnavailable
        return caller

    async def know(self, organization_id: int) -> None:
        """Have an organization's terms, for work that no call of it has begun here."""
        if self._holds(organization_id):
            return
        asked_at, terms = self._clock(), self._ask_terms(organization_id)
        try:
            self._learn(organization_id, *await terms.answer(), asked_at)
        finally:
            terms.leave()

    def _renewed(self, digest: str, known: CachedCaller) -> bool:
        """Whether who was known is known for as long again, since nothing that was read of it changed."""
        organization_id = known.caller.organization_id
        terms = self._terms.find(organization_id)
        if terms is None:
            return False
        fresh = self._changes.hold_until(known.since, IDENTITY_S)
        if terms.since != known.since:  # its organization is another server's
            fresh = min(fresh, self._changes.hold_until(terms.since, IDENTITY_S))
        read_at, now = min(known.read_at, terms.read_at), self._clock()
        fresh = min(fresh, read_at + KNOWN_S_MAX)
        if fresh < now or known.expired(self._today() * 1000):
            return False
        known.fresh = self._before_end(fresh, known.expires_ms)
        self._allowances.seen(known.caller)
        if read_at + AGAIN_S < now:
            self._rereading.note(digest)
        return True

    async def _look_up_in_turn(self, digest: str) -> Caller | None:
        """Return the same of who is not known here, when there is room: guesses wait for each other alone."""
        self._refuse_unknown(digest)
        turn = self._turns.take()
        try:
            await turn.wait
            cached = self.cached(digest)  # others may have asked for it meanwhile
            if cached is not None:
                return cached
            self._refuse_unknown(digest)
            return await self._look_up(digest, None)
        finally:
            self._turns.give_back(turn)

    def _changed(self, name: bytes) -> None:
        """A key of an identity or of terms changed: the next question reads it."""
        if name.startswith(keys.IDENTITIES):
            digest = keys.own_name(name)
            self._unknown.pop(digest, None)
            known = self._known.find(digest)
            if known is not None:
                known.since, known.fresh = NEVER, min(known.fresh, self._clock() - IDENTITY_S)
        elif (number := keys.own_name(name)).isdecimal():
            terms = self._terms.find(int(number))
            if terms is not None:
                terms.since = NEVER

    async def _look_up(self, digest: str, known: Caller | None) -> Caller | None:
        """Return the caller of a digest as Redis has it, None where it cannot say; InvalidApiKey for none.

        EndedApiKey for one whose end is kept, since what it stood for must stand for nobody else.
        its end is kept, since its stand-in must stand for nobody else. An answer is as old as its
        question. An answer that is told to change meanwhile is not cached.
        """
        # Who it was is looked up together with terms that may be others: one round trip, but for the first.
        name, asked_at = keys.identity(digest).encode(), self._clock()
        asked, terms = self._changes.read(name), None
        if known is not None and not self._holds(known.organization_id):
            terms = self._ask_terms(known.organization_id)
        try:
            raw, since = await asked.answer()
            if raw is None:
                wire = self._wires.of_key(name)
                if await ask_word(wire) != wire.run_id:
                    return None
                self._forget(digest, InvalidApiKey, None if asked.told else asked_at)
                raise InvalidApiKey
            assert isinstance(raw, bytes)
            found = _read_identity(raw)
            if found.has_ended(self._today() * 1000):
                self._forget(digest, EndedApiKey, None if asked.told else asked_at)
                raise EndedApiKey
            models = frozenset(found.m) if found.m is not None else None
            caller = Caller(
                found.o, found.t, found.k, found.p, found.u, models, found.h, found.n, found.y, found.r,
                found.s,
            )  # fmt: skip
            if known is not None and known == caller:
                caller = known
            if terms is not None and known is not None and known.organization_id != caller.organization_id:
                terms.leave()
                terms = None
            if terms is None and not self._holds(caller.organization_id):
                terms = self._ask_terms(caller.organization_id)
            if terms is not None:
                self._learn(caller.organization_id, *await terms.answer(), asked_at)
        finally:
            if terms is not None:
                terms.leave()
        fresh, held = asked_at + IDENTITY_S, self._terms.find(caller.organization_id)
        if asked.told or held is None or (terms is not None and terms.told):
            fresh = asked_at - IDENTITY_S
        elif terms is None:  # of those that were known since the last message counts
            fresh = min(fresh, self._changes.hold_until(held.since, IDENTITY_S))
        fresh = self._before_end(fresh, found.x)
        entry = CachedCaller(caller, raw, read_at=asked_at, fresh=fresh, expires_ms=found.x, since=since)
        self._known.put(digest, entry, entry.size)
        self._allowances.seen(caller)
        return caller

    def _before_end(self, fresh: float, expires_ms: int) -> float:
        """Return the same moment, but none after the end of the key."""
        if not expires_ms:
            return fresh
        return min(fresh, self._clock() + expires_ms / 1000 - self._today() - END_S)

    def _refuse_unknown(self, digest: str) -> None:
        """Raise what was found of a credential a moment ago that nobody has."""
        until, wrong = self._unknown.get(digest, (0.0, InvalidApiKey))
        if until >= self._clock():
            raise wrong

    def _forget(self, digest: str, wrong: type[InvalidApiKey], asked_at: float | None) -> None:
        """Nobody has this credential, as was asked then; None where something was told since."""
        self._known.drop(digest)
        if asked_at is None:
            return
        self._unknown[digest] = asked_at + IDENTITY_S, wrong
        self._unknown.move_to_end(digest)
        if len(self._unknown) > self._unknown_max:
            self._unknown.popitem(last=False)

    async def _known_elsewhere(self, digest: str) -> Caller | None:
        """Return who a digest stood for when its server could last be asked, where the account's own answers.

        That one's scripts know whether the key was revoked, so this is good for as long as it is remembered.
        """
        known = self._known.find(digest)
        if known is None or known.expired(self._today() * 1000):
            return None
        caller, asked_at = known.caller, self._clock()
        wire = self._wires.of(caller.partition)
        if not wire.available or wire is self._wires.of_key(keys.identity(digest).encode()):
            return None
        if not self._holds(caller.organization_id):
            try:
                answer, since = await self._ask_terms(caller.organization_id).answer()
            except CountersUnavailable:
                return None
            self._learn(caller.organization_id, answer, since, asked_at)
        self._allowances.seen(caller)
        return caller

    def _known_before(self, digest: str) -> Caller | None:
        """Return who a digest stood for when Redis could last be asked, where that is good enough."""
        known = self._known.find(digest)
        if known is None or known.fresh + self._stale_s < self._clock():
            return None
        if known.expired(self._today() * 1000) or not self._allowances.covers(known.caller):
            return None
        self._allowances.seen(known.caller)  # its lease stays, whatever Redis answers when it is back
        return known.caller

    def _holds(self, organization_id: int) -> bool:
        """Return whether terms that were read, up to 160 KB, are still the same."""
        terms, now = self._terms.find(organization_id), self._clock()
        if terms is None or terms.read_at + AGAIN_S < now:
            return False
        return self._changes.hold_until(terms.since, IDENTITY_S) >= now

    def _ask_terms(self, organization_id: int) -> KeyLookup:
        return self._changes.read(keys.organization_terms(organization_id).encode())

    def _learn(self, organization_id: int, reply: Reply, since: int, read_at: float) -> None:
        """Keep an organization's terms; the same terms stay the same object. Without any, none differ."""
        raw = reply if isinstance(reply, bytes) else b""
        terms = self._terms.find(organization_id)
        if terms is None or terms.raw != raw:
            try:
                terms = CachedTerms(raw, organization_id)
            except UNREADABLE as error:
                raise _unread("terms", error) from error
        terms.since, terms.read_at = since, read_at
        self._terms.put(organization_id, terms, terms.size)


def _read_identity(raw: bytes) -> Identity:
    """Return an identity as it was written; CountersRefused for what nobody here can read."""
    try:
        return decode_identity(raw)
    except UNREADABLE as error:
        raise _unread("identities", error) from error


def _unread(what: str, error: Exception) -> CountersRefused:
    return CountersRefused(f"Redis has {what} that cannot be read: {error}")


# The terms of a caller: services, budgets and prices, of the callers in `callers.py`.
class Directory(CallerCache):
    """Identities, terms, services, prices and weights of one worker.

    `stand_ins` says which models have another's price, `spent` how callers are told that an amount is spent
    where neither key nor organization says.
    """

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        today: Callable[[], float] = time.time,
        *,
        allowances: Allowances | None = None,
        stale_s: float = 0.0,
        bounds: CacheLimits = BOUNDS,
        log: Callable[..., None] = unheard,
        pool: CachePool | None = None,
    ) -> None:
        super().__init__(
            wires, clock, today, allowances=allowances, stale_s=stale_s, bounds=bounds, log=log, pool=pool,
        )  # fmt: skip
        self.stand_ins: StandIns = NO_STAND_INS
        self._sellers: Mapping[str, Seller] = {}
        self.spent = UNSAID
        self._budgets = BudgetCache()
        if pool is not None:
            pool.join("budgets", self._budgets.known)

    def resolve(self, caller: Caller, key: str) -> Service | None:
        """Return the service of a key as the caller's organization has it, for this call; None if there is
        none.

        ServiceNotIncluded where the organization may not use it, CountersUnavailable where its terms
        are not known: a caller just identified has them.
        """
        service = self._services.get(key)
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        return terms.resolve(service, self._today() * 1000) if service is not None else None

    def budgets(  # noqa: PLR0917  # whose call it is, and what it says
        self,
        caller: Caller,
        service_id: int,
        said: Attribution,
        call: CallRequest,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets | None:
        """Return the budgets that a call takes from, with its run; None where that is none.

        CountersUnavailable where they are unknown. Without `remember` no other call's are forgotten for it.
        """
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        budgets = terms.budgets
        if budgets is None:
            if run is None:
                return None
            budgets = terms.no_budgets
        now_ms = int(self._today() * 1000)
        if run is None and remember:
            found = self._budgets.find_by_caller(budgets, caller, service_id, said, call, now_ms)
        else:
            asked = budgets.asked(caller, service_id, said, call)
            found = self._budgets.find(budgets, asked, now_ms, remember, run)
        return found if found.accounts else None

    def budgets_of(self, caller: Caller, said: Attribution) -> list[tuple[str, Budget]]:
        """The budgets that this caller's calls may take from, whatever they ask for, with their accounts."""
        terms = self._terms.find(caller.organization_id)
        if terms is None or terms.budgets is None:
            return []
        user = caller.acts_for(said.user)
        asked = CallAttributes(caller.tenant_id, caller.key_id, 0, user, said.project_id, (), said.session)
        return terms.budgets.of_caller(asked)

    def pays_in(self, caller: Caller) -> str:
        terms = self._terms.find(caller.organization_id)
        return BASE_CURRENCY if terms is None else terms.currency

    def model_lists(self, caller: Caller) -> ModelLists | None:
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        return terms.models

    def run_policies(self, caller: Caller) -> CallRunPolicies:
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        found: CallRunPolicies = () if terms.runs is None else terms.runs.of(caller.tenant_id)
        return found if caller.runs is None else (("API key", caller.runs), *found)

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        terms = self._terms.find(caller.organization_id)
        of_organization = UNSAID if terms is None else terms.spent
        return caller.spent.else_of(of_organization).else_of(self.spent)

    def sell(self, sellers: Mapping[str, Seller]) -> None:
        """Go by these sellers of the upstreams."""
        self._sellers = sellers
        self.prices.read_for(frozenset({one.name for one in sellers.values()}))

    def price(
        self, caller: Caller, model: str, ago_s: float, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return what a model cost so many seconds ago, in the organization's currency, else in that of the
        base.

        None where there is no such price; with `own` in no other currency than the organization's.
        """
        currency = self.pays_in(caller)
        at_ms, seller = (self._today() - ago_s) * 1000, self._sellers.get(upstream)
        found = self.prices.vector(model, currency, at_ms, seller)
        if found is None and currency != BASE_CURRENCY and not own:
            found = self.prices.vector(model, BASE_CURRENCY, at_ms, seller)
        return found

    def base_rate(self, caller: Caller, ago_s: float) -> str | None:
        """Return how much of the organization's currency a unit of the base was so many seconds ago."""
        return self.prices.base_rate(self.pays_in(caller), (self._today() - ago_s) * 1000)

    def price_as(
        self, caller: Caller, model: str, ago_s: float, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        other = self.stand_ins.of(model)
        return self.price(caller, other, ago_s, own, upstream) if other else None
