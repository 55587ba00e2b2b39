"""The whole system, in process and step by step, next to the model: whatever happens, both say the same.

Real Valkey and PostgreSQL, the Admin API's store, and every part of the keeper, which may die in
the middle of a pass, run twice, or find its Redis restarted or empty.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import redis

from gateway.core.calls.tariff import rate_of
from gateway.core.model import HoldExtension, Service, SettleResult, TokenUsage
from gateway.counters.admission.callers import Directory
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable, ServiceNotIncluded
from gateway.run.expirer import expirer
from persistence.billing.credit_balances import Allocations
from tests.background.backend import Backend
from tests.builders import Call as RealCall
from tests.builders import World, credits_of, driven, prices_of
from tests.conftest import ValkeyServer
from tests.model.domain import NEVER, Call, Grant, Organization, Plan, Price, Tenant
from tests.persistence.keeper.agenda import on_agenda
from tests.persistence.migrated import empty
from tests.persistence.scenario import broken

TTL_MS = 3_600_000
TRIES_MAX = 3
PATIENCE = {"call_s": 10.0, "stall_s": 10.0}  # the keeper's own
MODEL = "m"
KEYS = ("m-unit", "m-token", "m-once", "m-use", "m-sub", "m-both")
TIERS = [[(5, "0.0015"), (None, "0.00101")], [(3, "0.002"), (12, "0.0000015"), (None, "0.001")]]
TOKEN_PRICES = [(1_500_000, 4_000_000), (2_000_001, 1_000_000)]
PLANS = [
    {"total_amount": 500, "overage_policy": "block", "rollover_max": 100},
    {"total_amount": 300, "overage_policy": "carry"},
    {"total_amount": 200, "overage_policy": "bill", "overage_unit_price": Decimal("0.001")},
    {"total_amount": None},
]


def _pricing(tiers: list[tuple[int | None, str]]) -> dict[str, Any]:
    return {"tiers": [{"up_to": end, "unit_price": price} for end, price in tiers]}


def _per_million(prices: tuple[int, int]) -> dict[str, Any]:
    return {"per_million": {"*": {"input": prices[0], "output": prices[1], "cached": None}}}


class System:
    """One organization with two tenants: `tenants[0]` has a plan of its own, the other its subscription's."""

    def __init__(self, server: ValkeyServer, database: str) -> None:
        self.server, self.database = server, database
        self.backend = Backend(server.url, database, **PATIENCE)
        self.worlds: list[World] = []
        self.services: dict[str, int] = {}
        self.plans: list[int] = []
        self.offers: list[int] = []
        self.calls: list[tuple[Call, RealCall, Service]] = []
        self.lane: list[tuple[Call, int, int, int]] = []
        self.owner = 0
        self.subscription = 0
        # The model: what is in force, and what waits to be pushed.
        self.organization = Organization()
        self.tenants = [Tenant(), Tenant()]
        self.prices: dict[str, Price] = {}
        self.included: set[str] | None = None
        # What is written, in force or not: the catalogue, what was negotiated, plans and who follows them.
        self.catalogue: dict[str, Price] = {}
        self.negotiated: dict[str, int] = {}
        self.terms: list[Plan] = []
        self.follows: list[int | None] = [0, 1]
        self.offer: int | None = 0
        self.bounds: tuple[int, int | None] = (0, None)
        self.services_open = self.services_in_force = "all"
        self.patience = 0.0
        self.in_force: dict[str, int] = {}
        self.waiting: list[Callable[[], None]] = []
        self.copies: list[bytes] = []
        self.today = datetime.now(UTC).date()

    # --- beginning and end --------------------------------------------------------------

    async def begin(self) -> None:
        """An empty world with everything that is defined once."""
        empty(self.database)
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()
        await self.backend.wire.open()
        models = {row["name"]: row["id"] for row in self.backend.rows("select id, name from business_model")}
        known = {row["key"]: row["id"] for row in self.backend.rows("select id, key from service")}
        for key in KEYS:
            model = {"m-use": "Pay-Per-Use", "m-sub": "Subscription"}.get(key, "Consumption")
            values: dict[str, Any] = {
                "name": key, "credits": 50 if key == "m-once" else 3, "business_model_id": models[model],
                "counts_tokens": True if key == "m-both" else None, "pricing": self._first_pricing(key),
                "service_type": "One-Time" if key == "m-once" else "Pay-As-You-Go",
            }  # fmt: skip
            if key in known:
                await self.backend.write("services", "change", known[key], **values)
                self.services[key] = known[key]
            else:
                self.services[key] = await self.backend.made("services", key=key, **values)
        self.catalogue = {
            "m-unit": Price("m-unit", "consumption", credits=3),
            "m-both": Price("m-both", "consumption", counts=True, credits=3),
            "m-once": Price("m-once", "consumption", credits=50, once=True),
            "m-token": Price("m-token", "consumption", credits=3, per_million=TOKEN_PRICES[0]),
            "m-use": Price("m-use", "pay_per_use", tiers=_model_tiers(TIERS[0])),
            "m-sub": Price("m-sub", "subscription", counts=True),
        }
        for number, values in enumerate(PLANS):
            self.plans.append(await self.backend.made("token-plans", name=f"plan {number}", **values))
            self.terms.append(_terms(self.plans[-1], values))
        for features, plan in ((["m-sub"], self.plans[1]), ([], self.plans[2])):
            self.offers.append(
                await self.backend.made(
                    "subscription-plans",
                    name=f"offer {plan}",
                    monthly_cost=Decimal(1),
                    annual_cost=Decimal(9),
                    feature_access=features,
                    token_plan_id=plan,
                )
            )
        self.owner = await self.backend.made("organizations", name="owner")
        ids = [await self._tenant(self.plans[0]), await self._tenant(None)]
        since = self.today - timedelta(days=9)
        self.subscription = await self.backend.made(
            "organization-subscriptions", organization_id=self.owner, plan_id=self.offers[0],
            start_date=since, end_date=since + timedelta(days=365), billing_interval="monthly",
        )  # fmt: skip
        await self.backend.verify()
        await self.backend.push()
        self.tenants[0].follow(self.terms[0])
        self.tenants[1].follow(self.terms[1])
        self.define()
        self.worlds = [
            World(self.server.url, organization_id=self.owner, tenant_id=tenant, key_id=key, made=True)
            for tenant, key, _ in ids
        ]
        self.digests = [digest for _, _, digest in ids]

    async def end(self) -> None:
        for world in self.worlds:
            world.client.close()
        await self.backend.close()

    def _first_pricing(self, key: str) -> dict[str, Any] | None:
        return {"m-use": _pricing(TIERS[0]), "m-token": _per_million(TOKEN_PRICES[0])}.get(key)

    async def _tenant(self, plan: int | None) -> tuple[int, int, str]:
        its = {"name": f"tenant {plan}", "organization_id": self.owner, "plan_id": plan}
        tenant = await self.backend.made("tenants", **its)
        digest = uuid.uuid4().hex * 2
        key = await self.backend.made("api-keys", tenant_id=tenant, name="k", digest=digest, prefix="tk_x")
        return tenant, key, digest

    # --- calls --------------------------------------------------------------------------

    async def reserve(self, which: int, key: str, need: int, units: int) -> None:
        """A call is admitted, or refused for the reason the model gives."""
        model, world = self.tenants[which], self.worlds[which]
        price = self.prices[key]
        directory = Directory(self.backend.wire, time.monotonic)
        await driven(directory.refresh())
        caller = await driven(directory.identify(self.digests[which]))
        if not self._may_use(key):
            try:
                directory.resolve(caller, key)
            except ServiceNotIncluded:
                return
            raise AssertionError("a service that is not included was resolved")
        service = directory.resolve(caller, key)
        assert service is not None
        held = credits_of(service, TokenUsage(input=need, output=0, units=units), MODEL)
        call = world.reserve(
            need if service.counts_tokens else 0, service=service, credits_=held, units=units, ttl_ms=TTL_MS
        )
        expected = self.organization.reserve(model, price, call.id, need, units)
        assert call.verdict.name == (expected if isinstance(expected, str) else "ADMITTED")
        if isinstance(expected, Call):
            assert call.decision.held_tokens == expected.tokens
            self.calls.append((expected, call, service))

    def _may_use(self, key: str) -> bool:
        """Whether the organization's terms, as they are in force, let it use a service."""
        given = self.services_in_force == "all" or key in self.in_force
        return given and (key != "m-sub" or key in (self.included or ()))

    async def extend(self, at: int, seen: int, margin: int) -> None:
        """A call that runs: its hold follows what was seen of it."""
        if not self.calls:
            return
        call, real, service = self.calls[at % len(self.calls)]
        if call.state != "open":
            return
        rate = rate_of(service, prices_of(service, MODEL), 10)
        live = HoldExtension(real.request.caller, real.id, 0, seen, rate=rate)
        real.world.extended([(live, margin)])
        price = call.price

        def worth(tokens: int) -> int:
            return price.cost(min(tokens, 10), max(0, tokens - 10), 1) if price.per_million else 0

        self.organization.extend(call, seen, worth(seen), (seen + margin, worth(seen + margin)))

    async def settle(self, at: int, read: int, written: int, units: int, again: bool) -> None:
        """A call ends with what it used; once more where its answer was lost."""
        if not self.calls:
            return
        call, real, service = self.calls.pop(at % len(self.calls))
        tokens = read + written if service.counts_tokens else 0
        credits_ = credits_of(service, TokenUsage(read, written, units=units), MODEL)
        assert credits_ == call.price.cost(read, written, units)
        settled = real.settle(tokens, credits=credits_, units=units, metadata=b'{"model":"m"}')
        if call.state == "open":
            assert settled is SettleResult.DONE
            self.organization.charge(call, tokens, credits_, units)
        else:
            assert settled in {SettleResult.RECLAIMED, SettleResult.UNKNOWN}
            self.lane.append((call, tokens, credits_, units))
        if again:
            assert real.settle(tokens, credits=credits_, units=units) in {
                SettleResult.UNKNOWN,
                SettleResult.RECLAIMED,
            }

    async def fail(self, at: int) -> None:
        """A call ends without any use."""
        if not self.calls:
            return
        call, real, _ = self.calls.pop(at % len(self.calls))
        real.release()
        if call.state == "open":
            self.organization.fail(call)

    async def die(self, at: int) -> None:
        """A call goes silent: its hold is taken back, and it may settle after all."""
        if not self.calls:
            return
        call, real, _ = self.calls[at % len(self.calls)]
        if call.state != "open":
            return
        real.world.client.zadd(keys.deadlines(real.world.p), {real.id: 1})
        await self.backend.reclaimer.sweep()
        assert await self.backend.reclaimer.sweep() == 1
        seen, worth = call.seen
        call.state = "reclaimed" if seen else "lost"
        if not seen:
            self.organization.fail(call)
            return
        credits_ = worth if call.price.per_million else call.credits
        units = real.request.units
        self.organization.charge(call, seen if call.price.counts else 0, credits_, units)
        call.seen = (seen if call.price.counts else 0, credits_)
        call.units = units

    # --- what people do -----------------------------------------------------------------

    async def quota(self, which: int, verb: str, amount: int) -> None:
        """Recharge, adjust, reset, block and unblock."""
        tenant_id, tenant = self.worlds[which].caller.tenant_id, self.tenants[which]
        values: dict[str, Any] = {}
        if verb == "recharge":
            values = {"amount": abs(amount)}
        elif verb == "adjust":
            values = {"amount": abs(amount), "direction": "IN" if amount >= 0 else "OUT", "reason": "x"}
        await self.backend.write("tenants", verb, tenant_id, **values)
        self.waiting.append(lambda: _apply(tenant, verb, amount))

    async def give(self, amount: int, promotional: bool, priority: int) -> None:
        """Credits added, or taken back."""
        if not amount:
            return
        category = {"category": "promotional"} if promotional and amount > 0 else {}
        values = {"credits_added": amount, "priority": priority, **category}
        made = await self.backend.made("credit-additions", organization_id=self.owner, **values)
        grant = Grant(made, amount, promotional, priority) if amount > 0 else None
        self.waiting.append(lambda: self.organization.grant(amount, grant))

    async def expire(self, at: int) -> None:
        """A grant's moment has come: exactly what is left of it goes."""
        await self.keep("")
        alive = [one for one in self.organization.grants.values() if one.until == NEVER]
        if not alive:
            return
        grant = alive[at % len(alive)]
        with redis.Redis.from_url(self.server.url) as client:
            seconds, micros = client.time()
        now = datetime.fromtimestamp(seconds + micros / 10**6, UTC)
        ends = "update credit_addition set expires_at = %s where id = %s returning id"
        self.backend.rows(ends, now, grant.id)
        grant.until = 0
        self.organization.expire(grant)
        await self.keep("")

    async def move(self, plan: int) -> None:
        """The first tenant gets another plan."""
        tenant, world = self.tenants[0], self.worlds[0]
        before = self.backend.rows("select plan_id from tenant where id = %s", world.caller.tenant_id)
        await self.backend.write("tenants", "change", world.caller.tenant_id, plan_id=self.plans[plan])
        if before[0]["plan_id"] != self.plans[plan]:
            terms, self.follows[0] = self.terms[plan], plan
            self.waiting.append(lambda: tenant.follow(terms))

    async def edit_plan(self, plan: int, total: int, policy: str) -> None:
        """A plan's policy is in force at once, its total with each tenant's next reset."""
        await self.backend.write(
            "token-plans", "change", self.plans[plan], total_amount=total, overage_policy=policy
        )
        self.terms[plan] = replace(self.terms[plan], total=total, policy=policy)
        self.waiting.append(self._define_tenants)

    async def reprice(self, key: str, to: int) -> None:
        """A service costs something else, from its next call on."""
        values: dict[str, Any] = {"credits": to}
        change: dict[str, Any] = {"credits": to}
        if key == "m-use":
            tiers = TIERS[to % 2]
            values, change = {"pricing": _pricing(tiers)}, {"tiers": _model_tiers(tiers)}
        elif key == "m-token":
            prices = TOKEN_PRICES[to % 2]
            values, change = {"pricing": _per_million(prices)}, {"per_million": prices}
        await self.backend.write("services", "change", self.services[key], **values)
        self.catalogue[key] = replace(self.catalogue[key], **change)
        self.waiting.append(self._define_prices)

    async def negotiate(self, key: str, credits_: int | None) -> None:
        """The organization pays a price of its own, or none of its own any more."""
        service_id = self.services[key]
        known = self.backend.rows(
            "select id from organization_service where organization_id = %s and service_id = %s",
            self.owner, service_id,
        )  # fmt: skip
        if credits_ is None:
            if not known:
                return
            await self.backend.write("organization-services", "delete", known[0]["id"])
            del self.negotiated[key]
            self.waiting.append(self._define_owner)
            return
        if known:
            row_id = known[0]["id"]
            await self.backend.write("organization-services", "change", row_id, negotiated_credits=credits_)
        else:
            await self.backend.made(
                "organization-services", organization_id=self.owner, service_id=service_id,
                negotiated_credits=credits_,
            )  # fmt: skip
        self.negotiated[key] = credits_
        self.waiting.append(self._define_owner)

    async def bound(self, limit: int, cap: int | None) -> None:
        """The organization's credit limit and spend cap (millionths)."""
        money = None if cap is None else Decimal(cap) / 10**6
        await self.backend.write("organizations", "change", self.owner, credit_limit=limit, spend_cap=money)
        self.bounds = (limit, cap)
        self.waiting.append(self._define_owner)

    async def open(self, services: str) -> None:
        """The organization may use all services, or only those that it negotiated a price of."""
        await self.backend.write("organizations", "change", self.owner, services=services)
        self.services_open = services
        self.waiting.append(self._define_owner)

    async def subscribe(self, to: int | None) -> None:
        """Another subscription plan now, or none any more."""
        if to is None:
            if self.offer is None:
                return
            await self.backend.write("organization-subscriptions", "cancel", self.subscription, when="now")
        elif self.offer is None:
            await self.backend.made(
                "organization-subscriptions", organization_id=self.owner, plan_id=self.offers[to],
                start_date=self.today, end_date=self.today + timedelta(days=90),
            )  # fmt: skip
        elif self.offer == to:
            return
        else:
            await self.backend.write(
                "organization-subscriptions", "change", self.subscription, plan_id=self.offers[to], when="now"
            )
        self.offer, self.follows[1] = to, None if to is None else 1 + to
        terms = Plan() if to is None else self.terms[1 + to]
        self.waiting += [self._define_owner, lambda: self.tenants[1].follow(terms)]

    # --- time, restarts, passes ---------------------------------------------------------

    async def next_cycle(self, which: int) -> None:
        """A tenant's reset is due: its next touch runs it."""
        world, tenant = self.worlds[which], self.tenants[which]
        if world.tenant.next_reset == 0:
            return
        world.put_tenant(next_reset=world.now_ms() - 1)
        assert await self.backend.counters.sweep(world.caller.tenant_id, self.owner)
        tenant.reset()

    async def deliver_again(self, at: int) -> None:
        """What was flushed before arrives once more."""
        if self.copies:
            world = self.worlds[0]
            for packed in self.copies[at % len(self.copies) :][:3]:
                world.client.xadd(keys.outbox(world.p), {"e": packed})

    async def restart_redis(self) -> None:
        """Redis comes back with everything it had, under another run id."""
        for world in self.worlds:
            world.client.close()
        await self.backend.close()
        self.server.stop()
        self.server.start()
        await self._return()
        self.define()

    async def lose_redis(self) -> None:
        """Redis comes back with nothing: holds are gone, accounts are rebuilt."""
        await self.keep("")
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()
        for call, _, _ in self.calls:
            if call.state == "open":
                self.organization.fail(call)
                call.state = "lost"
        await self.backend.verify()

    async def keep(self, how: str) -> None:
        """A whole pass of the keeper: alone, as one of two, or killed in the middle of each part."""
        others: list[Backend] = []
        if how == "two":
            others.append(Backend(self.server.url, self.database, **PATIENCE))
            await others[0].wire.open()
        self._copy()
        for part in ("push", "flush", "late", "flush", "push", "flush", "allocate", "push", "flush"):
            if how == "killed":
                await self._kill(part)
            await asyncio.gather(*(_part(backend, part) for backend in (self.backend, *others)))
        for other in others:
            await other.close()
        waiting, self.waiting = self.waiting, []
        for apply in waiting:
            apply()
        lane, self.lane = self.lane, []
        for late in lane:
            self._late(*late)
        waiting, self.waiting = self.waiting, []
        for apply in waiting:
            apply()

    async def _kill(self, part: str) -> None:
        """Begin a part, die in the middle of it, and come back as another process would."""
        work = asyncio.create_task(_part(self.backend, part))
        await asyncio.sleep(self.patience)
        work.cancel()
        with suppress(asyncio.CancelledError, CountersUnavailable):
            await work
        await self.backend.close()
        await self._return()

    async def _return(self) -> None:
        self.backend = Backend(self.server.url, self.database, **PATIENCE)
        await self.backend.wire.open()
        await self.backend.verify()
        for world in self.worlds:
            world.run_id = str(world.client.info("server")["run_id"]).encode()

    def _late(self, call: Call, tokens: int, credits_: int, units: int) -> None:
        organization, price = self.organization, call.price
        if call.state == "lost":
            organization.charge(call, tokens, credits_, units, held=False)
            return
        more = credits_ - call.seen[1] if price.meter == "consumption" and not price.once else 0
        if more < 0:
            self.refund(call, -more)
        organization.correct(
            call,
            tokens - call.seen[0] if price.counts else 0,
            max(0, more),
            units - call.units if price.meter == "pay_per_use" else 0,
        )

    def refund(self, call: Call, amount: int) -> None:
        rows = self.backend.rows(
            "select id from credit_addition where category = 'refund' and remark like %s", f"%{call.request}%"
        )
        grant = Grant(rows[0]["id"], amount, promotional=False, priority=100)
        self.waiting.append(lambda: self.organization.grant(amount, grant))

    def _copy(self) -> None:
        world = self.worlds[0]
        entries = world.entries(keys.outbox(world.p))
        self.copies = [fields[b"e"] for _, fields in entries] or self.copies

    def define(self) -> None:
        """Everything that is written is in force, but for moves from plan to plan."""
        self._define_prices()
        self._define_owner()
        self._define_tenants()

    def _define_prices(self) -> None:
        self.prices = {
            key: replace(price, credits=self.in_force.get(key, price.credits))
            for key, price in self.catalogue.items()
        }

    def _define_owner(self) -> None:
        self.organization.limit, self.organization.cap = self.bounds
        self.services_in_force = self.services_open
        self.included = None if self.offer is None else {"m-sub"} if self.offer == 0 else set()
        self.in_force = dict(self.negotiated)
        self.prices = {
            key: replace(price, credits=self.in_force.get(key, self.catalogue[key].credits))
            for key, price in self.prices.items()
        }

    def _define_tenants(self) -> None:
        for tenant, plan in zip(self.tenants, self.follows, strict=True):
            if plan is not None and tenant.plan.id == self.terms[plan].id:
                terms = self.terms[plan]
                tenant.forgives |= tenant.plan.policy != "carry" and terms.policy == "carry"
                tenant.plan = terms

    # --- what must be true --------------------------------------------------------------

    async def check(self, *, whole: bool) -> None:
        """Redis as the model has it; rows a prefix of the model's, all after a pass; views empty."""
        owner = self.organization
        held = self.worlds[0].organization
        assert (held.balance, held.credits_held, held.spent, held.spend_held) == (
            owner.balance, owner.held, owner.spent, owner.spend_held,
        )  # fmt: skip
        for tenant, world in zip(self.tenants, self.worlds, strict=True):
            state = world.tenant
            balance = None if state.unlimited else state.remaining
            assert (balance, state.used, state.held) == (tenant.balance, tenant.used, tenant.held)
            self._same(self._tokens(world.caller.tenant_id), tenant.rows, whole=whole)
        self._same(self._credits(), owner.credit_rows, whole=whole)
        self._same(self._units(), owner.unit_rows, whole=whole)
        if whole:
            given = {one.id: one.amount - one.left for one in owner.grants.values()}
            kept = self.backend.rows(
                "select id, spent from credit_addition where credits_added > 0 order by id"
            )
            assert {row["id"]: row["spent"] for row in kept} == given
        assert await broken(self.database) == []

    def _same(self, found: list[Any], expected: list[Any], *, whole: bool) -> None:
        assert found == expected[: len(found)]
        assert not whole or len(found) == len(expected)

    def _tokens(self, tenant_id: int) -> list[Any]:
        return [
            (row["kind"], row["signed"], row["balance"], row["request"])
            for row in self.backend.rows(
                "select transaction_type as kind, total_remaining as balance,"
                " case direction when 'IN' then amount else -amount end as signed,"
                " coalesce(request_id::text, '') as request"
                " from token_ledger where tenant_id = %s order by seq",
                tenant_id,
            )
        ]

    def _credits(self) -> list[Any]:
        return [
            (row["kind"], row["signed"], row["balance"], row["request"])
            for row in self.backend.rows(
                "select seq, 'use' as kind, -credits_used as signed, balance_after as balance,"
                " request_id::text as request from credit_transaction"
                " union all select seq, 'grant', amount, balance_after, '' from credit_posting order by seq"
            )
        ]

    def _units(self) -> list[Any]:
        return [
            tuple(row.values())
            for row in self.backend.rows(
                "select usage_amount, spend, spent_after, request_id::text from feature_usage order by seq"
            )
        ]


async def _part(backend: Backend, part: str) -> None:
    """One part of a pass, tried again as the keeper's loops try again."""
    work: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "push": backend.push,
        "flush": backend.flush,
        "late": backend.late_settlements.drain,
        "allocate": lambda: _allocate(backend),
    }
    for left in reversed(range(TRIES_MAX)):
        try:
            await work[part]()
            return
        except CountersUnavailable:
            if not left:
                raise


async def _allocate(backend: Backend) -> None:
    loop = expirer(Allocations(backend.engine), backend.counters, partition_of)
    await on_agenda(loop, backend.engine, lambda: datetime.now(UTC)).turn()


def _apply(tenant: Tenant, verb: str, amount: int) -> None:
    if verb == "recharge":
        tenant.move("recharge", abs(amount))
    elif verb == "adjust":
        tenant.move("adjust", amount)
    elif verb == "reset":
        tenant.reset()
    else:
        tenant.blocked = verb == "block"


def _model_tiers(tiers: list[tuple[int | None, str]]) -> tuple[tuple[int | None, Fraction], ...]:
    return tuple((end, Fraction(price)) for end, price in tiers)


def _terms(plan_id: int, values: dict[str, Any]) -> Plan:
    policy = values.get("overage_policy", "block")
    return Plan(plan_id, values["total_amount"], policy, values.get("rollover_max", 0))
