"""Identifies callers, and knows the terms of their organizations, from Redis, cached.

A cached identity and its organization's terms are valid for less than a second. While Redis reports changes,
this is prolonged without reading. So a revoked or new credential, a new price or subscription counts within a
second, and many callers cost little more than one. After half a minute they are read again in the background,
and none is valid for more than a minute. The cache is bounded in bytes: a new caller displaces the one that
called longest ago. Guessed credentials displace nobody, and only a few are looked up at once. Only a verified
Redis may say that a credential is unknown. Until then, callers known before are served if their tenant has a
lease.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from gateway.core.accounts.budgets import CallAttributes
from gateway.core.accounts.call_budgets import BudgetCache, CallBudgets, CallerBudget
from gateway.core.accounts.definitions import ModelLists
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.accounts.tags import Tags, tags_of
from gateway.core.billing.price_book import BASE_CURRENCY
from gateway.core.billing.sellers import Seller
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.lru import CachePool, LruCache
from gateway.core.model import Attribution, Caller, Service
from gateway.core.wait import in_task
from gateway.counters.admission.cache import BOUNDS, CachedCaller, CachedValue, CacheLimits
from gateway.counters.admission.catalogue import CachedTerms, Catalogue, unheard
from gateway.counters.admission.key_changes import NEVER, Changes, KeyLookup
from gateway.counters.admission.lookup_queue import LookupQueue
from gateway.counters.admission.stored import UNREADABLE, Identity, decode_identity
from gateway.counters.history_guard import ask_word
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.errors import CountersRefused, CountersUnavailable, EndedApiKey, InvalidApiKey

# Cached callers are read again after a while, even without a reported change: in batches, behind calls.
#
# An unchanged one stays valid. A difference counts as a change, so the next call looks the caller up.

# The age at which a value is read again.
AGAIN_S: Final = 30.0
# Callers read in one batch, the pause before each, and the most that wait; beyond it a caller is noted later.
AT_ONCE_MAX: Final = 128
EACH_S: Final = 0.05
WAITING_MAX: Final = 16_384


class CallerRefresh:
    """Reads cached callers of one worker again. `due` has their digests; `task` reads them.

    `changed` is called with the name of each key whose value differs from the cached one.
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
        """Schedule a cached caller to be read again, in one batch with others that are due by then."""
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
        """Query the identities of these digests, and their organizations' terms; skip recently read ones."""
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
                continue  # it stays valid no longer than it was
            if kept.raw == (reply or b""):
                kept.read_at, kept.since = asked_at, since
            else:
                self._changed(name)


IDENTITY_S = 0.8  # together with the round trip to Redis, a change counts within a second
END_S = 0.001  # keys expire in whole milliseconds
KNOWN_S_MAX = 60.0  # no value is valid for longer, even without a reported change


class CallerCache(Catalogue):
    """The cached identities and terms of one worker.

    `clock` is monotonic; `today` returns seconds since the epoch. `allowances` learn of each caller, and
    decide who is served without Redis: callers looked up in the last `stale_s` seconds.
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
        self._today, self._wall = today, today
        self._allowances = allowances if allowances is not None else Allowances(clock)
        self._stale_s = stale_s
        self._known: LruCache[str, CachedCaller] = LruCache(bounds.known_bytes_max)
        self._terms: LruCache[int, CachedTerms] = LruCache(bounds.terms_bytes_max)
        # Whether terms with groups were read: else no call looks for its own.
        self.grouped = False
        # Unknown credentials: the error, and its monotonic end. Kept apart, so that guesses displace no
        # caller.
        self._unknown: OrderedDict[str, tuple[float, type[InvalidApiKey]]] = OrderedDict()
        self._unknown_max = bounds.unknown_max
        self._turns = LookupQueue(bounds.look_ups_max, bounds.look_ups_waiting_max)
        self._rereading = CallerRefresh(self._changes, self._changed, self._known, self._terms, clock)
        if pool is not None:
            pool.join("callers", self._known)
            pool.join("terms", self._terms)

    def adjust(self, ahead_s: float) -> None:
        """Set by how many seconds our clock is ahead: keys end, and prices begin, by the time of Redis."""
        self._today = (lambda: self._wall() - ahead_s) if ahead_s else self._wall

    def cached(self, digest: str) -> Caller | None:
        """Return the caller of a digest if its cache entry is valid; otherwise None."""
        known = self._known.find(digest)
        if known is None or (known.fresh < self._clock() and not self._renewed(digest, known)):
            return None
        return known.caller

    async def identify(self, digest: str) -> Caller:
        """Return the caller of a digest; raise InvalidApiKey if the digest is unknown.

        CountersUnavailable if Redis cannot decide and no cached caller may be used. Overloaded if too many
        unknown digests are being looked up.
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
            if self._wires.of_key(keys.identity(digest).encode()).available:  # Redis answers, and refuses
                raise
        caller = caller or await self._known_elsewhere(digest) or self._known_before(digest)
        if caller is None:
            raise CountersUnavailable
        return caller

    async def know(self, organization_id: int) -> None:
        """Load an organization's terms into the cache, for work without a call, as settling jobs."""
        if self._terms_are_valid(organization_id):
            return
        asked_at, terms = self._clock(), self._ask_terms(organization_id)
        try:
            self._learn(organization_id, *await terms.answer(), asked_at)
        finally:
            terms.leave()

    def _renewed(self, digest: str, known: CachedCaller) -> bool:
        """Return whether a cached caller is valid again, because nothing it was read from has changed."""
        organization_id = known.caller.organization_id
        terms = self._terms.find(organization_id)
        if terms is None:
            return False
        fresh = self._changes.hold_until(known.since, IDENTITY_S)
        if terms.since != known.since:  # its organization is on another server
            fresh = min(fresh, self._changes.hold_until(terms.since, IDENTITY_S))
        read_at, now = min(known.read_at, terms.read_at), self._clock()
        fresh = min(fresh, read_at + KNOWN_S_MAX)
        if fresh < now or known.expired(self._today() * 1000):
            return False
        known.fresh = self._before_end(fresh, known.expires_ms)
        self._allowances.note_caller(known.caller)
        if read_at + AGAIN_S < now:
            self._rereading.note(digest)
        return True

    async def _look_up_in_turn(self, digest: str) -> Caller | None:
        """Return the caller of an uncached digest, after waiting for a turn; None if Redis cannot decide."""
        self._refuse_unknown(digest)
        turn = self._turns.take()
        try:
            await turn.wait
            cached = self.cached(digest)  # another request may have looked it up meanwhile
            if cached is not None:
                return cached
            self._refuse_unknown(digest)
            return await self._look_up(digest, None)
        finally:
            self._turns.give_back(turn)

    def _changed(self, name: bytes) -> None:
        """Expire the cache entry of a changed identity or terms, so that the next call reads it."""
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
        """Return the caller of a digest from Redis; None if Redis cannot decide.

        `known` is the cached caller, if there is one. InvalidApiKey for an unknown digest; EndedApiKey for a
        key that ended and is still stored, so that its tokens do not pass to another subject. The result is
        not cached if a change was reported after the query was sent.
        """
        # A known caller is queried together with its terms: one round trip. The first time takes two.
        name, asked_at = keys.identity(digest).encode(), self._clock()
        asked, terms = self._changes.read(name), None
        if known is not None and not self._terms_are_valid(known.organization_id):
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
            identity = _read_identity(raw)
            if identity.has_ended(self._today() * 1000):
                self._forget(digest, EndedApiKey, None if asked.told else asked_at)
                raise EndedApiKey
            models = frozenset(identity.m) if identity.m is not None else None
            caller = Caller(
                identity.o, identity.t, identity.k, identity.p, identity.u, models, identity.h, identity.n, identity.y, identity.r,
                identity.s, tuple(identity.g.items()),
            )  # fmt: skip
            if known is not None and known == caller:
                caller = known
            if terms is not None and known is not None and known.organization_id != caller.organization_id:
                terms.leave()
                terms = None
            if terms is None and not self._terms_are_valid(caller.organization_id):
                terms = self._ask_terms(caller.organization_id)
            if terms is not None:
                self._learn(caller.organization_id, *await terms.answer(), asked_at)
        finally:
            if terms is not None:
                terms.leave()
        fresh, held = asked_at + IDENTITY_S, self._terms.find(caller.organization_id)
        if asked.told or held is None or (terms is not None and terms.told):
            fresh = asked_at - IDENTITY_S
        elif terms is None:  # valid as long as its terms, counted from the last message of Redis
            fresh = min(fresh, self._changes.hold_until(held.since, IDENTITY_S))
        fresh = self._before_end(fresh, identity.x)
        entry = CachedCaller(caller, raw, read_at=asked_at, fresh=fresh, expires_ms=identity.x, since=since)
        self._known.put(digest, entry, entry.size)
        self._allowances.note_caller(caller)
        return caller

    def _before_end(self, fresh: float, expires_ms: int) -> float:
        """Return `fresh`, a monotonic time in seconds, or the time when the key expires, if earlier."""
        if not expires_ms:
            return fresh
        return min(fresh, self._clock() + expires_ms / 1000 - self._today() - END_S)

    def _refuse_unknown(self, digest: str) -> None:
        """Raise the stored error of a credential that was found unknown a moment ago."""
        until, wrong = self._unknown.get(digest, (0.0, InvalidApiKey))
        if until >= self._clock():
            raise wrong

    def _forget(self, digest: str, wrong: type[InvalidApiKey], asked_at: float | None) -> None:
        """Drop a cached caller, and remember that its credential gets the error `wrong`, from `asked_at` on.

        `asked_at` is the monotonic time of the query; None, if a change was reported since, remembers
        nothing.
        """
        self._known.drop(digest)
        if asked_at is None:
            return
        self._unknown[digest] = asked_at + IDENTITY_S, wrong
        self._unknown.move_to_end(digest)
        if len(self._unknown) > self._unknown_max:
            self._unknown.popitem(last=False)

    async def _known_elsewhere(self, digest: str) -> Caller | None:
        """Return the cached caller if its identity's server does not answer, but the account's server does.

        Such an identity is used without a time limit, because the scripts on the account's server know
        whether the key was revoked.
        """
        known = self._known.find(digest)
        if known is None or known.expired(self._today() * 1000):
            return None
        caller, asked_at = known.caller, self._clock()
        wire = self._wires.of(caller.partition)
        if not wire.available or wire is self._wires.of_key(keys.identity(digest).encode()):
            return None
        if not self._terms_are_valid(caller.organization_id):
            try:
                answer, since = await self._ask_terms(caller.organization_id).answer()
            except CountersUnavailable:
                return None
            self._learn(caller.organization_id, answer, since, asked_at)
        self._allowances.note_caller(caller)
        return caller

    def _known_before(self, digest: str) -> Caller | None:
        """Return the cached caller while Redis is away, if it was valid lately and its tenant has a lease."""
        known = self._known.find(digest)
        if known is None or known.fresh + self._stale_s < self._clock():
            return None
        if known.expired(self._today() * 1000) or not self._allowances.covers(known.caller):
            return None
        # The lease remains, whatever Redis answers when it is back.
        self._allowances.note_caller(known.caller)
        return known.caller

    def _terms_are_valid(self, organization_id: int) -> bool:
        """Return whether the cached terms of an organization are still valid.

        They are read again when `AGAIN_S` old, even without a reported change. Until then they are valid
        for `IDENTITY_S` after the last message of their server, which would have reported a change.
        """
        terms, now = self._terms.find(organization_id), self._clock()
        if terms is None or terms.read_at + AGAIN_S < now:
            return False
        return self._changes.hold_until(terms.since, IDENTITY_S) >= now

    def _ask_terms(self, organization_id: int) -> KeyLookup:
        return self._changes.read(keys.organization_terms(organization_id).encode())

    def _learn(self, organization_id: int, reply: Reply, since: int, read_at: float) -> None:
        """Store an organization's terms, from `reply`, in the cache; an empty reply means default terms.

        All changes since the period numbered `since` were reported; `read_at` is the monotonic time of the
        query. Unchanged terms keep their object. CountersRefused if the terms are unreadable.
        """
        raw = reply if isinstance(reply, bytes) else b""
        terms = self._terms.find(organization_id)
        if terms is None or terms.raw != raw:
            try:
                terms = CachedTerms(raw, organization_id)
            except UNREADABLE as error:
                raise _unread("terms", error) from error
        terms.since, terms.read_at = since, read_at
        if terms.groups is not None:
            self.grouped = True
        self._terms.put(organization_id, terms, terms.size)


def _read_identity(raw: bytes) -> Identity:
    """Return a decoded identity; raise CountersRefused if it cannot be read."""
    try:
        return decode_identity(raw)
    except UNREADABLE as error:
        raise _unread("identities", error) from error


def _unread(what: str, error: Exception) -> CountersRefused:
    return CountersRefused(f"Redis has {what} that cannot be read: {error}")


class Directory(CallerCache):
    """Identities, terms, services, prices and weights, as one worker has them cached.

    `stand_ins` names models that are charged at another model's price. `spent` is the answer to a spent limit
    where neither the API key nor the organization sets one.
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
        """Return the service of a key at the terms of the caller's organization; None if there is no such
        service.

        ServiceNotIncluded if the organization may not use it; CountersUnavailable if its terms are not
        cached, which they are for a caller just identified.
        """
        service = self._services.get(key)
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        return terms.resolve(service, self._today() * 1000) if service is not None else None

    def budgets(  # noqa: PLR0917  # whose call it is, and what it asks for
        self,
        caller: Caller,
        service_id: int,
        attribution: Attribution,
        call: CallRequest,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets | None:
        """Return the budgets that a call takes from, and its `run`; None if there are none.

        `attribution` is the attribution that the caller sent: user, project, session. CountersUnavailable if the
        terms are not cached. Without `remember`, the result displaces no cached one.
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
            accounts = self._budgets.find_by_caller(budgets, caller, service_id, attribution, call, now_ms)
        else:
            asked = budgets.attributes_of(caller, service_id, attribution, call)
            accounts = self._budgets.find(budgets, asked, now_ms, remember, run)
        return accounts if accounts.accounts else None

    def definitions(
        self, caller: Caller, accounts: tuple[str, ...], attribution: Attribution, call: CallRequest
    ) -> tuple[bytes, ...]:
        """Return the windows of budget accounts as they are defined now, packed; empty for one of no budget.

        The others of the parameters are those of a call that took from these accounts.
        """
        terms = self._terms.find(caller.organization_id)
        if terms is None:
            raise CountersUnavailable
        budgets = terms.no_budgets if terms.budgets is None else terms.budgets
        return budgets.definitions(
            accounts, self.groups(caller, attribution, call), int(self._today() * 1000)
        )

    def groups(self, caller: Caller, attribution: Attribution, call: CallRequest) -> tuple[int, ...]:
        """Return the ids of the groups that a call is in; `attribution` is the attribution that the caller sent."""
        terms = self._terms.find(caller.organization_id)
        if terms is None or terms.groups is None:
            return ()
        return terms.groups.of(
            caller, caller.acts_for(attribution.user, call.spec.user), attribution.project_id
        )

    def budgets_of(self, caller: Caller, attribution: Attribution) -> list[CallerBudget]:
        """Return the accounts and budgets that any call of a caller, attributed as `attribution`, may take from."""
        terms = self._terms.find(caller.organization_id)
        if terms is None or terms.budgets is None:
            return []
        user = caller.acts_for(attribution.user)
        asked = CallAttributes(
            caller.tenant_id, caller.key_id, 0, user, attribution.project_id, (), attribution.session,
            tags=self.tags(caller, attribution), groups=terms.budgets.groups_of(caller, attribution),
        )  # fmt: skip
        return terms.budgets.of_caller(asked)

    def tags(self, caller: Caller, attribution: Attribution) -> Tags:
        """Return the tags of a call that its organization declares."""
        terms = self._terms.find(caller.organization_id)
        if terms is None or not terms.tags:
            return ()
        return tags_of(terms.tags, caller.tags, attribution.tags)

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
        call_run_policies: CallRunPolicies = () if terms.runs is None else terms.runs.of(caller.tenant_id)
        return call_run_policies if caller.runs is None else (("API key", caller.runs), *call_run_policies)

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        terms = self._terms.find(caller.organization_id)
        of_organization = UNSAID if terms is None else terms.spent
        return caller.spent.else_of(of_organization).else_of(self.spent)

    def sell(self, sellers: Mapping[str, Seller]) -> None:
        """Set the sellers of upstreams, whose price lists apply to their calls."""
        self._sellers = sellers
        self.prices.read_for(frozenset({seller.name for seller in sellers.values()}))

    def price(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        """Return the price of a model at a time, in the organization's currency, or else in the base currency.

        None if there is no price; with `own`, only the organization's currency counts.
        """
        currency, seller = self.pays_in(caller), self._sellers.get(upstream)
        vector = self.prices.vector(model, currency, at_ms, seller)
        if vector is None and currency != BASE_CURRENCY and not own:
            vector = self.prices.vector(model, BASE_CURRENCY, at_ms, seller)
        return vector

    def base_rate(self, caller: Caller, at_ms: int) -> str | None:
        """Return the exchange rate at a time: the organization's currency per base unit."""
        return self.prices.base_rate(self.pays_in(caller), at_ms)

    def price_as(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        other = self.stand_ins.of(model)
        return self.price(caller, other, at_ms, own, upstream) if other else None
