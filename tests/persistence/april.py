"""A store and a ledger under a clock of their own: movements are what the scripts would emit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain, count
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.loops import Loop
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Realm
from gateway.core.accounts.outbox import EventFlag, EventKind
from gateway.core.billing.money import PriceTier
from gateway.counters.redis.keys import partition_of
from gateway.features.dunning.feature import dunning_loop
from gateway.run.timed_loops import billing_loops, charge
from persistence.billing import reratings
from persistence.billing.credit_balances import Allocations
from persistence.dunning import DunningSchedule
from persistence.entity import keeper_command
from persistence.ledger.writer import LedgerWriter
from persistence.store import Store
from tests.databases import give_back, take_engine
from tests.everywhere import known_everywhere
from tests.letterhead import LETTERHEAD
from tests.persistence.keeper.agenda import on_agenda
from tests.persistence.scenario import INVARIANTS, Account, batch_of, broken, document, rows_of

ACTOR = Actor("builtin:admin", "admin")
TIERS = (PriceTier(10_000, Decimal("0.0010")), PriceTier(None, Decimal("0.0008")))


def at(month: int, day: int, hour: int = 12, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


@dataclass
class April:
    """The store under its own clock, and the account the counters would hold."""

    url: str
    store: Store
    allocations: Allocations
    now: datetime
    account: Account
    writer: LedgerWriter
    pool: AsyncEngine
    # Whether all invariants hold when a test ends; one that breaks them says so.
    is_sound: bool = True

    def fresh(self, name: str) -> str:
        """A name that no row has: this one, or with a number behind it."""
        had = "SELECT name FROM organization UNION SELECT name FROM subscription_plan"
        taken = {each for (each,) in self.rows(had)}
        names = chain((name,), (f"{name} {n}" for n in count(2)))
        return next(each for each in names if each not in taken)

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """What a query answers."""
        return rows_of(self.url, sql, values)

    def broken(self) -> list[tuple[object, ...]]:
        """Every invariant these rows violate."""
        return rows_of(self.url, INVARIANTS, prepare=True)

    async def do(
        self, resource: str, verb: str, row_id: int | None = None, **values: object
    ) -> dict[str, Any]:
        """Write as the Admin API does once the accounts of all organizations are closed."""
        owners = "SELECT id, NULL FROM organization UNION ALL SELECT organization_id, id FROM tenant"
        closed = frozenset(Realm(*owner) for owner in self.rows(owners))
        done = await self.store.write(
            Command(resource, verb, ACTOR, "test", lambda _: {}, row_id, values, closed=closed)
        )
        assert isinstance(done, CommittedWrite)
        return dict(done.row)

    async def on(self, moment: datetime) -> None:
        self.now, self.account.at_ms = moment, int(moment.timestamp() * 1000)
        await self.loop("calendar").turn()
        self.follow()

    def loop(self, name: str, page: int = 200) -> Loop:
        """A loop of the keeper, under this clock."""
        return on_agenda(billing_loops(self.store, lambda: self.now, page)[name], self.pool, lambda: self.now)

    async def dun(self, schedule: DunningSchedule = DunningSchedule()) -> None:  # noqa: B008  # frozen
        """Have both loops come round, dunning before payments as well as after them: neither waits."""
        dunning = dunning_loop(self.store, lambda: self.now, schedule)
        await dunning.turn()
        await self.loop("payments").turn()
        await dunning.turn()

    async def charge(self, organization_id: int) -> None:
        """Charge what is known of one."""
        await charge(self.store, self.now.date, [organization_id])

    async def rate(self) -> None:
        """Rate the calls that prices have left, as the keeper does."""
        while left := self.rows("SELECT price_id FROM rerating_left WHERE rated_at IS NULL"):
            for (price_id,) in left:
                await self.rate_piece(int(str(price_id)))

    async def rate_piece(self, price_id: int) -> None:
        def rate(connection: Connection) -> None:
            reratings.rate(self.store.change(connection, keeper_command("prices", "rate", price_id)))

        await self.store.run(rate)

    def follow(self) -> None:
        """Move the tenant as its plan intents say, as the pusher and `grant` would."""
        waiting = self.rows(
            "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'plan'"
            " RETURNING id::text, (payload->>'total_amount')::bigint, payload->>'overage_policy', position",
        )
        for write_id, total, policy, _ in sorted(waiting, key=lambda row: int(str(row[3]))):
            self._move(None if total is None else int(str(total)), str(policy), str(write_id))
        self.flush()

    def _move(self, total: int | None, policy: str, write_id: str) -> None:
        """To a plan with another total; what was granted beyond the plan before stays."""
        account = self.account
        account.forgives |= account.total is not None and account.remaining < 0 and account.policy != "carry"
        had, account.total, account.policy = account.total, total, policy
        if account.seq == 0:
            account.reset(write_id)
            return
        before = 0 if had is None else account.remaining
        beyond = account.remaining if had is None else account.remaining - had + account.used
        account.remaining = beyond if total is None else total + beyond - account.used
        moved = (0 if total is None else account.remaining) - before
        account.seq += 1
        inward = EventFlag.IN if moved >= 0 else EventFlag(0)
        said = document(forgives=True) if account.forgives else b""
        account.emit(
            EventKind.ADJUST, EventFlag.TOKENS | inward, amount=abs(moved), source=write_id, metadata=said
        )

    def flush(self) -> None:
        if self.account.entries:
            report = self.writer.write_now(batch_of(self.account))
            assert (report.quarantined, report.dead_letters) == ([], 0)

    async def allocate(self) -> None:
        for organization_id in await self.allocations.behind(10):
            while not await self.allocations.allocate(organization_id):
                pass


AnyApril = TypeVar("AnyApril", bound=April)


@pytest.fixture
async def april(migrated: str, one_loop: None) -> AsyncIterator[April]:
    """A store and a ledger, whose rows contradict nothing when the test ends."""
    async with opened(migrated, at(3, 25)) as made:
        yield made
        assert not made.is_sound or await broken(migrated) == []


@asynccontextmanager
async def opened(
    url: str,
    begins: datetime,
    kind: type[AnyApril] = April,
    *,
    keeper_url: str | None = None,
) -> AsyncIterator[AnyApril]:
    """All of it over a database, beginning at a time; written as a keeper's user, if one is named."""
    written = keeper_url or url
    pool = take_engine(written)
    store = Store(
        pool, partition_of, lambda: made.now, letterhead=LETTERHEAD, wait_reason=known_everywhere
    )  # fmt: skip
    writer = LedgerWriter(written)
    made = kind(url, store, Allocations(pool), begins, Account(0, 0), writer, pool)
    try:
        yield made
    finally:
        writer.close()
        await give_back(written, pool)


async def plan(april: April, name: str, cost: str, tokens: int, **more: object) -> int:
    called = april.fresh(name)
    terms: dict[str, object] = {
        "name": called, "total_amount": tokens, "reset_interval": "monthly", "overage_policy": "bill",
        "overage_unit_price": Decimal("0.000003"),
    }  # fmt: skip
    token_plan = await april.do("token-plans", "create", **terms | more)
    made = await april.do(
        "subscription-plans", "create", name=called, monthly_cost=Decimal(cost),
        annual_cost=Decimal(cost) * 10, feature_access=["chat"], token_plan_id=token_plan["id"],
    )  # fmt: skip
    return int(made["id"])


async def service(april: April, key: str, model: str, **more: object) -> int:
    [(model_id,)] = rows_of(april.url, "SELECT id FROM business_model WHERE name = %s", [model])
    values: dict[str, object] = {"credits": 0, "service_type": "Pay-As-You-Go"}
    made = await april.do(
        "services", "create", name=key, key=key, business_model_id=model_id, **values | more
    )  # fmt: skip
    return int(made["id"])


def use(account: Account, service_id: int, **used: Any) -> None:
    account.service_id, account.tiers = service_id, TIERS
    account.consume(None, **used)


async def set_up(april: April) -> dict[str, int]:
    """The organization as it is when April begins."""
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    pro = await plan(april, "Pro", "99.00", 10_000_000)
    tiers = [{"up_to": tier.up_to, "unit_price": str(tier.unit_price)} for tier in TIERS]
    ids = {
        "pro": pro,
        "image": await service(april, "image-gen", "Consumption", credits=8),
        "setup": await service(april, "tuning-setup", "Consumption", credits=500, service_type="One-Time"),
        "rerank": await service(april, "rerank", "Pay-Per-Use", pricing={"tiers": tiers}),
    }
    owner = {"name": april.fresh("Acme"), "tax_rate": Decimal("0.20")}
    organization = await april.do("organizations", "create", **owner)
    ids["organization"] = organization["id"]
    await april.do(
        "organization-services", "create", organization_id=ids["organization"], service_id=ids["image"],
        negotiated_credits=6,
    )  # fmt: skip
    tenant = await april.do("tenants", "create", name="Main", organization_id=ids["organization"])
    april.account = Account(ids["organization"], tenant["id"], None)
    subscription = await april.do(
        "organization-subscriptions", "create", organization_id=ids["organization"], plan_id=starter,
        start_date=date(2026, 4, 1), end_date=date(2027, 4, 1), billing_interval="monthly",
    )  # fmt: skip
    return ids | {"subscription": subscription["id"]}


async def invoiced(april: April, ids: dict[str, int], start: date, end: date) -> dict[str, Any]:
    made = await april.do(
        "invoices", "create", organization_id=ids["organization"], period_start=start, period_end=end
    )
    if not made["lines"]:  # nothing to bill: it cannot become final
        return await april.do("invoices", "delete", made["id"])
    return await april.do("invoices", "finalize", made["id"])
