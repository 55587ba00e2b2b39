"""One organization's April, to the cent: a subscription changed in mid-month, tokens, credits, units, tax.

The store and the ledger run under a clock of their own; movements are what the scripts would emit.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from gateway.core.billing.money import PriceTier
from tests.connections import connected
from tests.persistence.april import April, april, at, invoiced, set_up, use
from tests.persistence.credits import give, post_expiries
from tests.persistence.scenario import rows_of

__all__ = ["april"]


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


async def test_units_are_billed_at_what_they_cost_when_they_were_used(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    account = april.account
    use(account, ids["rerank"], units=12_000)
    dearer = {"tiers": [{"up_to": None, "unit_price": "0.002"}]}
    await april.do("services", "change", ids["rerank"], pricing=dearer)
    use(account, ids["rerank"], units=500)  # admitted before
    account.tiers = (PriceTier(None, Decimal("0.002")),)
    account.consume(None, units=100)
    april.flush()
    await april.on(at(5, 1, 0))
    lines = [(10_000, "10.00"), (2_500, "2.00"), (100, "0.20")]
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert usage(first) == lines
    assert sum(Decimal(amount) for _, amount in lines) == Decimal(account.spent) / 10**6
    await april.do("invoices", "void", first["id"])
    assert usage(await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))) == lines


async def test_tokens_beyond_a_plan_cost_what_they_did_when_their_cycle_began(april: April) -> None:
    ids = await set_up(april)
    [(plan_id,)] = rows_of(april.url, "SELECT id FROM token_plan WHERE name = 'Starter'")
    await april.on(at(4, 1))
    april.account.consume(3_000_000)
    await april.do("token-plans", "change", int(str(plan_id)), overage_unit_price=Decimal("0.00001"))
    await april.do("token-plans", "change", int(str(plan_id)), overage_policy="block")
    changes = ((3, 1, "0.000003", "bill"), (4, 20, "0.00001", "bill"), (6, 20, "0.00001", "block"))
    with connected(april.url) as connection:
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


def usage(made: dict[str, Any]) -> list[tuple[int, str]]:
    return [(line["quantity"], line["amount"]) for line in made["lines"] if line["kind"] == "usage"]
