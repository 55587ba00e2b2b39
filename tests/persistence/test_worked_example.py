"""One organization's April, to the cent: a subscription changed in mid-month, tokens, credits, units, tax.

The store and the ledger run under a clock of their own; movements are what the scripts would emit.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from gateway.background.timed.calendar import Calendar
from gateway.core.accounts.administration import Actor, Command, Committed
from gateway.core.accounts.ledger import EventKind
from gateway.core.billing.pricing import Tier
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict
from persistence import engine
from persistence.billing.allocations import Allocations
from persistence.ledger.writer import Writer
from persistence.store import Store
from tests.persistence.credits import give, post_expiries
from tests.persistence.scenario import Account, batch_of, broken, rows_of

OWN_SERVICES = ("image-gen", "tuning-setup", "rerank")
ACTOR = Actor("builtin:admin", "admin")


def at(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


@dataclass
class April:
    """The store under its own clock, and the account the counters would hold."""

    url: str
    store: Store
    calendar: Calendar
    allocations: Allocations
    now: datetime
    account: Account

    async def do(
        self, resource: str, verb: str, row_id: int | None = None, **values: object
    ) -> dict[str, Any]:
        done = await self.store.write(Command(resource, verb, ACTOR, "test", lambda _: {}, row_id, values))
        assert isinstance(done, Committed)
        return dict(done.row)

    async def on(self, moment: datetime) -> None:
        self.now, self.account.at_ms = moment, int(moment.timestamp() * 1000)
        await self.calendar.turn()
        self.follow()

    def follow(self) -> None:
        """Move the tenant as its plan intents say, as the pusher and `grant` would."""
        waiting = rows_of(
            self.url,
            "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'plan'"
            " RETURNING id::text, (payload->>'total_amount')::bigint, position",
        )
        for write_id, total, _ in sorted(waiting, key=lambda row: int(str(row[2]))):
            before, self.account.total = self.account.total, int(str(total))
            if self.account.seq == 0:
                self.account.reset(str(write_id))
            else:
                self.account.grant(EventKind.ADJUST, self.account.total - (before or 0), str(write_id))
        self.flush()

    def flush(self) -> None:
        writer = Writer(self.url)
        try:
            report = writer.write_now(batch_of(self.account))
            assert (report.quarantined, report.dead_letters) == ([], 0)
        finally:
            writer.close()

    async def allocate(self) -> None:
        for organization_id in await self.allocations.behind(10):
            while not await self.allocations.allocate(organization_id):
                pass


@pytest.fixture
async def april(migrated: str) -> AsyncIterator[April]:
    rows_of(migrated, "DELETE FROM service WHERE key = ANY(%s) RETURNING id", [list(OWN_SERVICES)])
    pool = engine.create(migrated)
    store = Store(pool, partition_of, lambda: made.now)
    calendar = Calendar(store, lambda: made.now)
    made = April(migrated, store, calendar, Allocations(pool), at(3, 25), Account(0, 0))
    yield made
    await pool.dispose()


TIERS = (Tier(10_000, Decimal("0.0010")), Tier(None, Decimal("0.0008")))


async def plan(april: April, name: str, cost: str, tokens: int) -> int:
    token_plan = await april.do(
        "token-plans", "create", name=name, total_amount=tokens, reset_interval="monthly",
        overage_policy="bill", overage_unit_price=Decimal("0.000003"),
    )  # fmt: skip
    made = await april.do(
        "subscription-plans", "create", name=name, monthly_cost=Decimal(cost), annual_cost=Decimal(cost) * 10,
        feature_access=["chat"], token_plan_id=token_plan["id"],
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
    organization = await april.do("organizations", "create", name="Acme", tax_rate=Decimal("0.20"))
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


async def live_through(april: April, ids: dict[str, int]) -> None:
    """April, day by day."""
    account = april.account
    await april.on(at(4, 1))
    expires = int(datetime(2026, 4, 30, tzinfo=UTC).timestamp() * 1000)
    give(april.url, account, 2_000, category="promotional", expires_ms=expires)
    give(april.url, account, 8_000, unit_cost="0.01")
    for _ in range(19):
        account.consume(100_000)
    april.flush()

    await april.on(at(4, 16))
    await april.do(
        "organization-subscriptions", "change", ids["subscription"], plan_id=ids["pro"], when="now"
    )
    april.follow()
    assert account.remaining == 8_100_000
    for tokens in (10_000_000, 445_678):
        account.consume(tokens)
    for _ in range(15):
        use(account, ids["image"], credits_=600)
    use(account, ids["setup"], credits_=500)
    for units in (9_999, 2, 31_249):
        use(account, ids["rerank"], units=units, spend=0)
    april.flush()

    await april.on(at(4, 30))
    await april.allocate()
    for expired in await april.allocations.expired(account.at_ms, 10):
        assert await april.allocations.expire(expired, account.partition, account.credit_seq)
    assert post_expiries(april.url, account) == 0
    await april.on(at(5, 1, 0))
    account.reset()
    april.flush()


async def test_the_worked_example(april: April) -> None:
    ids = await set_up(april)
    await live_through(april, ids)
    draft = await april.do(
        "invoices", "create", organization_id=ids["organization"], period_start=date(2026, 4, 1),
        period_end=date(2026, 5, 1),
    )  # fmt: skip
    assert draft["number"] is None
    done = await april.do("invoices", "finalize", draft["id"])
    assert [(line["kind"], line["quantity"], line["amount"]) for line in done["lines"]] == [
        ("subscription", 15, "14.50"),
        ("subscription", 15, "49.50"),
        ("overage", 2_345_678, "7.04"),
        ("credits_purchased", 8_000, "80.00"),
        ("credits_consumed", 9_500, "0.00"),
        ("usage", 10_000, "10.00"),
        ("usage", 31_250, "25.00"),
        ("tax", 1, "37.21"),
    ]
    assert [str(done[name]) for name in ("subtotal", "tax", "total_amount")] == ["186.04", "37.21", "223.25"]
    assert (done["status"], done["number"], done["customer"]) == ("finalized", "2026-000001", "Acme")

    account = april.account
    assert account.balance == 500
    ledger = "SELECT total_remaining, direction, amount FROM token_ledger ORDER BY seq DESC LIMIT 2"
    assert rows_of(april.url, ledger) == [(10_000_000, "IN", 12_345_678), (-2_345_678, "OUT", 445_678)]
    assert rows_of(april.url, "SELECT spent FROM credit_addition ORDER BY id") == [(2_000,), (7_500,)]
    assert await broken(april.url) == []


async def test_units_are_billed_at_what_they_cost_when_they_were_used(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    account = april.account
    use(account, ids["rerank"], units=12_000)
    dearer = {"tiers": [{"up_to": None, "unit_price": "0.002"}]}
    await april.do("services", "change", ids["rerank"], pricing=dearer)
    use(account, ids["rerank"], units=500)  # admitted before
    account.tiers = (Tier(None, Decimal("0.002")),)
    account.consume(None, units=100)
    april.flush()
    await april.on(at(5, 1, 0))
    lines = [(10_000, "10.00"), (2_500, "2.00"), (100, "0.20")]
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert usage(first) == lines
    assert sum(Decimal(amount) for _, amount in lines) == Decimal(account.spent) / 10**6
    await april.do("invoices", "void", first["id"])
    assert usage(await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))) == lines
    assert await broken(april.url) == []


async def test_units_given_back_after_their_invoice_are_given_back_by_the_next(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    account = april.account
    use(account, ids["rerank"], units=10_100)
    april.flush()
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 4, 11))
    assert usage(first) == [(10_000, "10.00"), (100, "0.08")]
    corrects = b'{"corrects":"%s"}' % str(uuid.uuid4()).encode()
    account.consume(None, units=-300, kind=EventKind.ADJUST, metadata=corrects)
    april.flush()
    second = await invoiced(april, ids, date(2026, 4, 11), date(2026, 5, 1))
    assert usage(second) == [(-200, "-0.20"), (-100, "-0.08")]
    assert await broken(april.url) == []


async def test_tokens_beyond_a_plan_cost_what_they_did_when_their_cycle_began(april: April) -> None:
    ids = await set_up(april)
    [(plan_id,)] = rows_of(april.url, "SELECT id FROM token_plan WHERE name = 'Starter'")
    await april.on(at(4, 1))
    april.account.consume(3_000_000)
    await april.do("token-plans", "change", int(str(plan_id)), overage_unit_price=Decimal("0.00001"))
    await april.do("token-plans", "change", int(str(plan_id)), overage_policy="block")
    changes = ((3, 1, "0.000003", "bill"), (4, 20, "0.00001", "bill"), (6, 20, "0.00001", "block"))
    with psycopg.connect(april.url) as connection:
        connection.execute("DELETE FROM token_plan_price WHERE plan_id = %s", (plan_id,))
        for month, day, price, policy in changes:
            connection.execute(
                "INSERT INTO token_plan_price (plan_id, since, unit_price, overage_policy)"
                " VALUES (%s, %s, %s, %s)",
                (plan_id, at(month, day), price, policy),
            )
    april.account.consume(1_000_000)
    for month in (5, 6):
        await april.on(at(month, 1, 0))
        april.account.reset()
        april.account.consume(2_500_000)
    april.flush()
    made = await invoiced(april, ids, date(2026, 4, 1), date(2026, 6, 30))
    overage = [(line["quantity"], line["amount"]) for line in made["lines"] if line["kind"] == "overage"]
    assert overage == [(2_000_000, "6.00"), (500_000, "5.00"), (500_000, "5.00")]


async def test_late_use_is_billed_once_by_the_next_invoice(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    use(april.account, ids["rerank"], units=9_000)
    april.flush()
    await april.on(at(4, 10))
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert usage(first) == [(9_000, "9.00")]
    use(april.account, ids["rerank"], units=2_000)
    april.account.consume(4_000_000)
    april.flush()
    await april.on(at(5, 3))
    april.account.reset()
    use(april.account, ids["rerank"], units=100)
    april.flush()
    await april.on(at(6, 1, 0))
    second = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    # April's units go on in April's tiers, May's begin anew.
    assert usage(second) == [(1_000, "1.00"), (1_000, "0.80"), (100, "0.10")]
    assert [line["quantity"] for line in second["lines"] if line["kind"] == "overage"] == [2_000_000]
    third = await invoiced(april, ids, date(2026, 6, 1), date(2026, 7, 1))
    assert {line["kind"] for line in third["lines"]} == {"subscription", "tax"}
    assert await broken(april.url) == []


async def test_what_a_void_invoice_billed_is_billed_again(april: April) -> None:
    ids = await set_up(april)
    await live_through(april, ids)
    period = date(2026, 4, 1), date(2026, 5, 1)
    first = await invoiced(april, ids, *period)
    with pytest.raises(Conflict):
        await april.do(
            "invoices", "create", organization_id=ids["organization"], period_start=date(2026, 4, 30),
            period_end=date(2026, 5, 2),
        )  # fmt: skip
    void = await april.do("invoices", "void", first["id"])
    assert (void["status"], void["number"], str(void["total_amount"])) == ("void", "2026-000001", "223.25")
    assert await broken(april.url) == []
    second = await invoiced(april, ids, *period)
    assert (second["number"], str(second["total_amount"])) == ("2026-000002", "223.25")
    assert await broken(april.url) == []


async def test_a_credit_note_gives_an_invoice_back(april: April) -> None:
    ids = await set_up(april)
    await live_through(april, ids)
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    note = await april.do("invoices", "credit-note", first["id"])
    assert (note["kind"], note["corrects_id"], str(note["total_amount"])) == (
        "credit_note", first["id"], "-223.25",
    )  # fmt: skip
    for refused in ("recompute",):
        with pytest.raises(Conflict):
            await april.do("invoices", refused, note["id"])
    for refused in ("credit-note", "void"):
        with pytest.raises(Conflict):
            await april.do("invoices", refused, first["id"])
    done = await april.do("invoices", "finalize", note["id"])
    assert done["number"] == "2026-000002"
    assert await broken(april.url) == []


async def test_days_billed_ahead_come_back_after_a_cancellation(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 10))
    await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    await april.on(at(4, 16))
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    assert [(line["quantity"], line["amount"]) for line in may["lines"]] == [(-15, "-14.50"), (1, "-2.90")]
    june = await invoiced(april, ids, date(2026, 6, 1), date(2026, 7, 1))
    assert june["lines"] == []


async def invoiced(april: April, ids: dict[str, int], start: date, end: date) -> dict[str, Any]:
    made = await april.do(
        "invoices", "create", organization_id=ids["organization"], period_start=start, period_end=end
    )
    return await april.do("invoices", "finalize", made["id"])


def usage(made: dict[str, Any]) -> list[tuple[int, str]]:
    return [(line["quantity"], line["amount"]) for line in made["lines"] if line["kind"] == "usage"]
