"""What is due is billed: to the cent, however cycles end, periods are cut and documents are taken back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace as replace_fields

from gateway.admin.http import bodies
from gateway.admin.resources.catalogue import PriceCreate
from gateway.core.accounts.administration import Row
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.billing.money import IN_MONEY
from gateway.core.billing.price_book import KINDS
from gateway.errors import Conflict, LedgerUnavailable, Unprocessable
from gateway.run.timed_loops import billing_loops
from persistence.billing import charges
from persistence.billing.reratings import PIECE_CALLS_MAX
from persistence.store import Store
from tests.connections import connected
from tests.persistence.april import April, april, at, invoiced, plan, set_up, use
from tests.persistence.credits import give
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]

TAX_FREE = Decimal(0)


async def customer(
    april: April, plan_id: int, start: date, end: date | None, **more: object
) -> dict[str, int]:
    """An organization without tax, with one tenant, subscribed to a plan."""
    made = await april.do("organizations", "create", name=april.fresh("Acme"), tax_rate=TAX_FREE)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    sent: dict[str, object] = {"billing_interval": "monthly"}
    subscription = await april.do(
        "organization-subscriptions", "create", organization_id=made["id"], plan_id=plan_id, start_date=start,
        end_date=end, **sent | more,
    )  # fmt: skip
    return {"organization": made["id"], "tenant": tenant["id"], "subscription": subscription["id"]}


def total(made: dict[str, Any]) -> Decimal:
    return Decimal(str(made["total_amount"]))


async def billed(april: April, ids: dict[str, int], *months: int) -> Decimal:
    """The sum of invoices of these months of the year, each finalized when it is over."""
    came_to = Decimal(0)
    for month in months:
        await april.on(at(month + 1, 1, 6))
        came_to += total(await invoiced(april, ids, date(2026, month, 1), date(2026, month + 1, 1)))
    return came_to


async def act(april: April, ids: dict[str, int], verb: str, **values: object) -> None:
    await april.do("organization-subscriptions", verb, ids["subscription"], **values)
    april.follow()


async def test_overage_tokens_are_billed_when_the_subscription_ends_inside_a_cycle(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 5, 1), date(2026, 5, 5))
    await april.on(at(5, 1))
    april.account.consume(3_000_000)
    await april.on(at(5, 5))
    await april.on(at(6, 2))
    assert total(await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))) == Decimal("6.74")


async def test_cancellation_does_not_refund_again_the_part_refunded_by_a_credit_note(april: April) -> None:
    starter = await plan(april, "Starter", "30.00", 1)
    ids = await customer(april, starter, date(2026, 6, 1), date(2027, 6, 1))
    await april.on(at(6, 1, 6))
    june = await invoiced(april, ids, date(2026, 6, 1), date(2026, 7, 1))
    part = await april.do(
        "invoices", "credit-note", june["id"], lines=[{"position": 1, "amount": Decimal(15)}]
    )
    await april.do("invoices", "finalize", part["id"])
    await april.on(at(6, 11))
    await act(april, ids, "cancel", when="now")
    # Each of the twenty days lost had cost a half already.
    assert await billed(april, ids, 7) == -10
    assert await broken(april.url) == []
    await april.do("invoices", "void", part["id"])
    assert await broken(april.url) == []
    assert await billed(april, ids, 8) == -10


async def test_partial_period_invoices_add_up_exactly_to_the_annual_or_monthly_fee(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 1)
    ids = await customer(april, starter, date(2026, 1, 1), date(2027, 1, 1), billing_interval="annual")
    await april.on(datetime(2027, 1, 2, tzinfo=UTC))
    came_to = Decimal(0)
    for month in range(1, 13):
        until = date(2026, month + 1, 1) if month < 12 else date(2027, 1, 1)
        came_to += total(await invoiced(april, ids, date(2026, month, 1), until))
    assert came_to == 290
    month = await plan(april, "Ten", "10.00", 1)
    ids = await customer(april, month, date(2026, 4, 1), date(2026, 5, 1))
    thirds = [date(2026, 4, 1), date(2026, 4, 11), date(2026, 4, 21), date(2026, 5, 1)]
    parts = [total(await invoiced(april, ids, *thirds[at : at + 2])) for at in range(3)]
    assert (sum(parts), sorted(parts)) == (10, [Decimal("3.33"), Decimal("3.33"), Decimal("3.34")])


async def test_invoice_for_a_year_ahead_bills_the_fee_while_monthly_invoices_bill_the_usage(
    april: April,
) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    year = await invoiced(april, ids, date(2026, 4, 1), date(2027, 4, 1))
    assert [line["amount"] for line in year["lines"] if line["kind"] == "subscription"] == ["29.00"] * 12
    use(april.account, ids["rerank"], units=9_000)
    april.flush()
    await april.on(at(5, 1, 6))
    month = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert lines(month) == [("usage", 9_000, "9.00"), ("tax", 1, "1.80")]


async def test_top_up_on_a_single_day_invoice_is_not_billed_again_on_the_monthly_invoice(
    april: April,
) -> None:
    starter = await plan(april, "Starter", "29.00", 1)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 10))
    give(april.url, april.account, 1_000, unit_cost="0.01")
    april.flush()
    alone = await invoiced(april, ids, date(2026, 4, 10), date(2026, 4, 11))
    assert ("credits_purchased", 1_000, "10.00") in lines(alone)
    assert total(alone) + await billed(april, ids, 4) == 39


async def test_first_invoice_bills_all_earlier_cycles_and_credit_purchases(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 1)
    ids = await customer(april, starter, date(2026, 1, 31), date(2027, 1, 31))
    await april.on(at(2, 5))
    give(april.url, april.account, 1_000, unit_cost="0.01")
    april.flush()
    # Two cycles, 31 days of the third that ends on 30 April, and the credits.
    await april.on(at(5, 2))
    made = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert total(made) == 29 * 3 + Decimal("0.94") + 10  # one day of 31


async def test_credit_purchase_dated_before_an_invoiced_period_is_billed_on_the_next_invoice(
    april: April,
) -> None:
    starter = await plan(april, "Starter", "29.00", 1)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    assert await billed(april, ids, 4) == 29
    added = await april.do(
        "credit-additions", "create", organization_id=ids["organization"], credits_added=1_000,
        unit_cost=Decimal("0.01"), timestamp=at(3, 1),
    )  # fmt: skip
    [(write_id,)] = rows_of(
        april.url, "SELECT control_write_id::text FROM credit_addition WHERE id = %s", [added["id"]]
    )
    april.account.credit(1_000, str(write_id))
    april.flush()
    await april.on(at(6, 1, 6))
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    assert total(may) == 39
    assert [line["description"] for line in may["lines"] if line["kind"] == "credits_purchased"] == [
        "Credits, 1 March 2026"
    ]


async def test_daily_overage_below_a_cent_adds_up_to_cents_on_the_invoice(april: April) -> None:
    daily = await plan(
        april, "Daily", "0.00", 1_000, reset_interval="daily", overage_unit_price=Decimal("0.00004")
    )
    ids = await customer(april, daily, date(2026, 4, 1), date(2026, 5, 1))
    amounts = []
    await april.on(at(4, 1))
    for day in range(30):
        april.account.consume(1_100)
        await april.on(at(4, 1, 0) + timedelta(days=day + 1))
        april.account.reset()
        april.flush()
        if day % 10 == 9:
            start = date(2026, 4, 1) + timedelta(days=day - 9)
            amounts.append(total(await invoiced(april, ids, start, start + timedelta(days=10))))
    assert amounts == [Decimal("0.04")] * 3


async def test_organization_with_unbilled_usage_may_not_be_deleted_or_change_currency(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    await act(april, ids, "cancel", when="now")
    use(april.account, ids["rerank"], units=1_000)
    april.flush()
    organization = ids["organization"]
    await april.do("tenants", "delete", april.account.tenant_id)
    assert await april.store.unbilled(organization) == [
        {
            "kind": "usage", "currency": "USD", "amount": "1", "charges": 1,
            "period_start": at(4, 1, 0), "period_end": at(4, 2, 0),
        }
    ]  # fmt: skip
    with pytest.raises(Conflict, match="USD 1 of usage"):
        await april.do("organizations", "delete", organization)
    with pytest.raises(Conflict, match="stays USD"):
        await april.do("organizations", "change", organization, currency="JPY")
    await april.on(at(5, 1, 6))
    await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert await april.store.unbilled(organization) == []
    await april.do("organizations", "delete", organization)


async def test_cycle_reset_and_overage_charge_are_stored_together_or_not_at_all(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(3_000_000)
    april.flush()
    april.account.reset()
    kept = list(april.account.entries)
    charged = "SELECT count(*) FROM charge WHERE kind = 'overage'"
    with connected(april.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE charge ADD CONSTRAINT no_room CHECK (false) NOT VALID")
        try:
            with pytest.raises(LedgerUnavailable):
                april.flush()
            assert rows_of(april.url, "SELECT max(seq) FROM token_ledger") == [(2,)]
        finally:
            connection.execute("ALTER TABLE charge DROP CONSTRAINT no_room")
    april.account.entries = kept
    april.flush()
    assert rows_of(april.url, "SELECT max(seq) FROM token_ledger") == [(3,)]
    assert rows_of(april.url, charged) == [(1,)]


async def test_overage_charge_of_a_huge_amount_is_exact(april: April) -> None:
    dear = await plan(april, "Dear", "0.00", 1, overage_unit_price=Decimal(900000000000000000))
    ids = await customer(april, dear, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(9_000_000_000_000_000)
    april.account.reset()
    april.flush()
    [owed] = await april.store.unbilled(ids["organization"])
    assert owed["amount"] == str(8_999_999_999_999_999 * 900_000_000_000_000_000)


def lines(made: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(line["kind"], line["quantity"], line["amount"]) for line in made["lines"]]


# --- one off ----------------------------------------------------------------------------
# One-off invoices: of one source alone, without a period, and in no other invoice's way.


async def one_off(april: April, ids: dict[str, int], **what: object) -> dict[str, Any]:
    return await april.do("invoices", "create", organization_id=ids["organization"], **what)


def kinds(made: Row) -> list[str]:
    lines = made["lines"]
    assert isinstance(lines, list)
    return [line["kind"] for line in lines]


async def test_separate_invoice_of_a_top_up_keeps_that_top_up_off_the_monthly_invoice(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 10))
    first = give(april.url, april.account, 1_000, unit_cost="0.01")
    give(april.url, april.account, 500, unit_cost="0.02")
    use(april.account, ids["rerank"], units=100)
    april.flush()
    made = await one_off(april, ids, source="credit_addition", source_id=first)
    assert (made["period_start"], made["period_end"]) == (date(2026, 4, 10), date(2026, 4, 11))
    done = await april.do("invoices", "finalize", made["id"])
    assert kinds(done) == ["credits_purchased", "tax"]
    assert (done["source"], done["source_id"], done["total_amount"]) == (
        "credit_addition", first, Decimal("12.00"),
    )  # fmt: skip
    behind = b"".join([piece async for piece in april.store.usage(done["id"])]).decode()
    assert [row["kind"] for row in csv.DictReader(io.StringIO(behind))] == ["credits_purchased", "tax"]
    with pytest.raises(Conflict):
        await one_off(april, ids, source="credit_addition", source_id=first)
    await april.on(at(5, 2))
    month = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert kinds(month) == ["subscription", "credits_purchased", "usage", "tax"]
    assert month["total_amount"] == Decimal("46.92")


async def test_separate_subscription_invoice_bills_a_year_ahead_while_usage_stays_monthly(
    april: April,
) -> None:
    ids = await set_up(april)
    await april.on(at(4, 2))
    year = await one_off(april, ids, source="subscription_segment", period_end=date(2027, 4, 1))
    done = await april.do("invoices", "finalize", year["id"])
    assert (done["subtotal"], done["period_start"], done["period_end"]) == (
        Decimal("348.00"), date(2026, 4, 1), date(2027, 4, 1),
    )  # fmt: skip
    use(april.account, ids["rerank"], units=1_000)
    april.flush()
    await april.on(at(5, 2))
    month = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert (kinds(month), month["subtotal"]) == (["usage", "tax"], Decimal("1.00"))


async def test_top_up_can_be_invoiced_again_after_the_first_invoice_is_voided(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 10))
    give(april.url, april.account, 1_000, unit_cost="0.01")
    april.flush()
    made = await one_off(april, ids, source="credit_addition")
    await april.do("invoices", "finalize", made["id"])
    await april.do("invoices", "void", made["id"])
    again = await one_off(april, ids, source="credit_addition")
    assert again["subtotal"] == Decimal("10.00")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["period_start", "period_end"]),
        ({"period_start": date(2026, 4, 1)}, ["period_end"]),
        (
            {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1), "source_id": 1},
            ["source_id"],
        ),
        ({"source": "credit_addition", "period_start": date(2026, 4, 1)}, ["period_start"]),
        ({"source": "subscription_segment", "period_end": date(2036, 4, 1)}, ["period_end"]),
    ],
)
async def test_invoice_creation_error_names_the_missing_or_wrong_period_or_source_field(
    april: April, fields: dict[str, object], named: list[str]
) -> None:
    ids = await set_up(april)
    with pytest.raises(Unprocessable) as refused:
        await one_off(april, ids, **fields)
    assert [name for name, _ in refused.value.errors] == named


# --- reratings --------------------------------------------------------------------------
# A price that is about more calls than one transaction rates again: all are, each once.


CALLS = PIECE_CALLS_MAX * 3 // 2 + 3_007
TOKENS, MARKUP = 1_000, 2
# Calls at cost of one model, and those of another one that the price is not about.
FILL = """
WITH of AS (SELECT (md5(n::text)::uuid) AS request, n,
                   CASE WHEN n %% 3 = 0 THEN 'other' ELSE 'dated' END AS model
              FROM generate_series(1, %s) AS n),
     used AS (INSERT INTO feature_usage (organization_id, "timestamp", epoch, seq, usage_amount, spend,
                                         spent_after, in_money, request_id, feature_id, tenant_id)
              SELECT %s, %s, 1, n, %s, 0, 0, true, request, %s, %s FROM of RETURNING 1)
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, service_id, model, {kinds},
                  tokens, credits, units, cost, currency, price_id, status, streamed, estimated, refused,
                  duration_ms)
SELECT request, %s, %s, %s, 0, %s, model, {zeros}, %s, 0, 1, %s, 'USD',
       CASE model WHEN 'dated' THEN %s ELSE %s END, 200, false, false, false, 1
  FROM of, (SELECT count(*) FROM used) AS u
RETURNING 1"""


async def price(april: April, model: str, rate: str, day: int) -> int:
    asked = {"model": model, "currency": "USD", "input": rate, "effective_from": at(4, day).isoformat()}
    return int((await april.do("prices", "create", **bodies.check_body(PriceCreate, asked)))["id"])


async def used(april: April) -> dict[str, Any]:
    """An organization with a service at cost, and many calls of it on 10 April at 1.00 a million tokens."""
    april.is_sound = False  # these rows have no movements behind them
    await april.on(at(4, 1))
    first, other = await price(april, "dated", "1", 1), await price(april, "other", "1", 1)
    [(model,)] = rows_of(april.url, "SELECT id FROM business_model WHERE name = 'Pay-Per-Use'")
    service = await april.do(
        "services", "create", name="At cost", key="at-cost", credits=0, service_type="Pay-As-You-Go",
        business_model_id=model, pricing={"at_cost": {"markup": str(MARKUP)}},
    )  # fmt: skip
    tenant = await april.do("tenants", "create", name="Main")
    owner, when, cost = tenant["organization_id"], at(4, 10), TOKENS * 1_000
    kinds = ["input"] + [kind for kind in KINDS if kind != "input"]
    statement = FILL.format(kinds=", ".join(kinds), zeros=", ".join([str(TOKENS), *["0"] * (len(kinds) - 1)]))
    values = [
        CALLS, owner, when, MARKUP * cost, service["id"], tenant["id"],
        when, owner, tenant["id"], service["id"], TOKENS, cost, first, other,
    ]  # fmt: skip
    assert len(rows_of(april.url, statement, values)) == CALLS
    return {"owner": owner, "first": first, "other": other}


async def test_backdated_price_reprices_every_past_call_of_the_model_in_several_batches(april: April) -> None:
    made = await used(april)
    await april.on(at(4, 20))
    dearer = await price(april, "dated", "1.5", 5)
    await april.rate_piece(dearer)
    count = "SELECT count(*) FROM rerating WHERE price_id = %s"
    [(at_once,)] = rows_of(april.url, count, [dearer])
    about = CALLS - CALLS // 3
    assert 0 < at_once < about
    # Another one comes before the first is done: what that one had left is rated by the one in force.
    cheaper = await price(april, "dated", "0.5", 6)
    rating = april.loop("rating")
    while await rating.turn():
        pass
    left = "SELECT count(*) FROM rerating_left"
    assert rows_of(april.url, left) == [(0,)]
    assert rows_of(april.url, count, [cheaper]) == [(about,)]
    told = "SELECT price_id, count(*), min(cost), max(cost), sum(rerated) FROM call GROUP BY 1 ORDER BY 1"
    assert rows_of(april.url, told) == [
        (made["other"], CALLS // 3, TOKENS * 1_000, TOKENS * 1_000, 0),
        (cheaper, about, TOKENS * 500, TOKENS * 500, Decimal(-about * TOKENS * 500)),
    ]
    # The counters hear of each call's difference: at last half of what it was charged.
    moved = "SELECT sum((payload->>'units')::bigint)::bigint FROM control_write WHERE verb = 'amend'"
    assert rows_of(april.url, moved) == [(about * MARKUP * TOKENS * 500,)]


async def test_repricing_covers_every_model_of_a_call_and_skips_a_call_without_counts_per_model(
    april: April,
) -> None:
    """One tells the tokens of its advisor, and one was charged before calls told them."""
    await april.on(at(4, 1))
    main, advisor = await price(april, "main", "1", 1), await price(april, "advisor", "10", 1)
    [(model,)] = rows_of(april.url, "SELECT id FROM business_model WHERE name = 'Pay-Per-Use'")
    service = await april.do(
        "services", "create", name="At cost", key="at-cost", credits=0, service_type="Pay-As-You-Go",
        business_model_id=model, pricing={"at_cost": {"markup": str(MARKUP)}},
    )  # fmt: skip
    tenant = await april.do("tenants", "create", name="Main")
    april.account = Account(tenant["organization_id"], tenant["id"], None, service_id=int(service["id"]))
    april.account.tiers = IN_MONEY
    await april.on(at(4, 10))
    cost = 60 * 1_000 + 40 * 10_000
    facts = CallFacts(
        model="main", status=200, counts=(100, *[0] * 9), total=100, units=1, cost=cost, currency="USD",
        price_id=main, beside=(("advisor", advisor, (40, *[0] * 9)),),
    )  # fmt: skip
    ids = [str(uuid4()) for _ in range(2)]
    for request_id, one in zip(ids, (facts, replace_fields(facts, beside=())), strict=True):
        april.account.consume(None, units=MARKUP * cost, request_id=request_id, metadata=write_facts(one))
    april.flush()
    await april.on(at(4, 20))
    found = "SELECT request_id::text, cost, price_id, rerated FROM call ORDER BY cost"
    same = await price(april, "main", "1", 2)
    await april.rate()
    assert sorted(rows_of(april.url, found)) == sorted([(ids[0], cost, same, 0), (ids[1], cost, main, 0)])
    half = await price(april, "advisor", "5", 3)
    await april.rate()
    again = 60 * 1_000 + 40 * 5_000
    assert (ids[0], again, same, again - cost) in rows_of(april.url, found)
    told = "SELECT price_id, request_id::text, cost_after, charged, reason LIKE %s FROM rerating ORDER BY id"
    assert sorted(rows_of(april.url, told, ["%left out%"])) == sorted([
        (same, ids[0], cost, 0, False), (same, ids[1], cost, 0, True),
        (half, ids[0], again, MARKUP * (again - cost), False),
    ])  # fmt: skip


async def test_price_starting_on_a_future_day_reprices_no_past_call(april: April) -> None:
    await april.on(at(4, 1))
    await price(april, "later", "1", 20)
    assert rows_of(april.url, "SELECT count(*) FROM rerating_left") == [(0,)]


# --- charging ---------------------------------------------------------------------------
# What is known of many organizations is charged together, but for those that somebody else holds.


# 30.00 a month are 1.00 a day of April.
OF_TEN_DAYS = "SELECT count(*), sum(amount) FROM charge WHERE organization_id = %s"


async def three(april: April) -> list[int]:
    monthly = await plan(april, "Monthly", "30.00", 1, overage_policy="block", overage_unit_price=None)
    made = []
    for name in ("Acme", "Bolt", "Cog"):
        owner = await april.do("organizations", "create", name=name)
        made.append(int(owner["id"]))
        await april.do(
            "organization-subscriptions", "create", organization_id=owner["id"], plan_id=monthly,
            start_date=date(2026, 4, 1), end_date=None, billing_interval="monthly",
        )  # fmt: skip
    april.now = at(4, 11)
    return made


async def free(april: April, owners: Sequence[int]) -> Sequence[int]:
    partition, today = april.store.partition(owners[0]), april.now.date()
    return await april.store.run(lambda connection: charges.charge_free(connection, owners, partition, today))


async def test_charging_skips_an_organization_locked_by_another_process_and_charges_the_rest(
    april: April,
) -> None:
    first, held, last = await three(april)
    with connected(april.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(7803, hashint8(%s))", [held])
        assert await free(april, [first, held, last]) == [held]
        assert april.rows(OF_TEN_DAYS, [held]) == [(0, None)]
    for owner in (first, last):
        assert april.rows(OF_TEN_DAYS, [owner]) == [(10, Decimal(10))]
    assert await free(april, [first, held, last]) == []
    for owner in (first, held, last):
        assert april.rows(OF_TEN_DAYS, [owner]) == [(10, Decimal(10))]


async def test_charging_loop_charges_each_organization_once_and_a_repeat_charges_none(april: April) -> None:
    owners = await three(april)
    store = Store(april.pool, lambda _: 0, lambda: april.now)
    loop = billing_loops(store, lambda: april.now, page=2)["charging"]
    assert await loop.turn() == 3
    assert await loop.turn() == 0
    assert [april.rows(OF_TEN_DAYS, [owner]) for owner in owners] == [[(10, Decimal(10))]] * 3
