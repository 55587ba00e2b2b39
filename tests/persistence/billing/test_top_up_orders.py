"""Credits that are bought by themselves: once each time a balance comes to its threshold, whoever looks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import Conflict, Unprocessable
from persistence.billing.top_ups import top_up_orders_due
from tests.persistence.april import April, april
from tests.persistence.billing.test_top_ups import own_invoice, pay, post
from tests.persistence.credits import give
from tests.persistence.scenario import Account, rows_of

__all__ = ["april"]

TERMS: dict[str, object] = {
    "threshold": 100, "credits": 1_000, "unit_cost": "0.01", "invoicing": "now", "monthly_max": 10,
}  # fmt: skip
ORDERS = (
    "SELECT seq, balance, credit_addition_id IS NOT NULL, closed_at IS NOT NULL FROM top_up_order ORDER BY id"
)


async def customer(april: April, **more: object) -> int:
    """Somebody who has 500 credits."""
    made = await april.do("organizations", "create", name="Acme")
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    give(april.url, april.account, 500, unit_cost="0.01")
    april.flush()
    await april.do("organizations", "change", made["id"], auto_top_up=TERMS | more)
    return int(made["id"])


def spend(april: April, credits_: int) -> None:
    april.account.consume(None, credits_=credits_)
    april.flush()


async def bought(april: April) -> list[dict[str, Any]]:
    ids = rows_of(april.url, "SELECT id FROM credit_addition WHERE crossed_seq IS NOT NULL ORDER BY id")
    return [dict(await april.store.get("credit-additions", int(str(id_)))) for (id_,) in ids]


async def test_auto_top_up_buys_credits_once_when_the_balance_reaches_the_threshold(april: April) -> None:
    keeper = april.loop("top-ups")
    await customer(april)
    spend(april, 399)
    assert rows_of(april.url, ORDERS) == []
    april.account.consume(None, credits_=1)
    sent = list(april.account.entries)
    april.flush()
    # What is delivered twice, more use below the threshold, and many keepers order nothing more.
    april.account.entries = sent
    april.flush()
    spend(april, 30)
    assert rows_of(april.url, ORDERS) == [(3, 100, False, False)]
    [due] = await april.store.run(lambda connection: top_up_orders_due(connection, 0, 9))
    assert await april.store.run(lambda connection: top_up_orders_due(connection, due, 9)) == []
    await asyncio.gather(*(april.loop("top-ups").turn() for _ in range(4)))
    spend(april, 1)
    await keeper.turn()
    [addition] = await bought(april)
    assert (addition["credits_added"], addition["crossed_seq"], addition["invoicing"]) == (1_000, 3, "now")
    assert (post(april), april.account.balance) == (1_000, 1_069)
    assert await keeper.turn() == 1
    invoice = await own_invoice(april, addition)
    assert (invoice["status"], str(invoice["total_amount"])) == ("finalized", "10.00")
    assert rows_of(april.url, ORDERS) == [(3, 100, True, True)]
    assert rows_of(april.url, "SELECT actor FROM audit_log WHERE action = 'create-ordered'") == [("keeper",)]
    spend(april, 969)
    await keeper.turn()
    assert [each["crossed_seq"] for each in await bought(april)] == [3, april.account.credit_seq]


async def test_auto_top_up_repeats_while_the_balance_is_low_up_to_the_monthly_maximum(april: April) -> None:
    await customer(april, credits=10, unit_cost="1", monthly_max=3)
    keeper = april.loop("top-ups")
    spend(april, 1_500)
    for _ in range(6):
        await keeper.turn()
        post(april)
    assert len(await bought(april)) == 3
    assert april.account.balance == -970


@pytest.mark.parametrize(
    ("freed", "more"),
    [
        # The maximum is of a month, and nothing moves while calls are refused.
        ("UPDATE top_up_order SET created_at = created_at - interval '32 days' RETURNING id", 1),
        # An order that came to nothing in the month before, at this very movement.
        (
            """UPDATE top_up_order AS t
               SET created_at = t.created_at - interval '32 days', seq = o.credit_last_seq
               FROM organization AS o WHERE o.id = t.organization_id RETURNING t.id""",
            1,
        ),
        ("SELECT 1", 0),
    ],
)
async def test_auto_top_up_buys_for_an_idle_account_once_the_monthly_maximum_no_longer_blocks(
    april: April, freed: str, more: int
) -> None:
    await customer(april, credits=10, unit_cost="1", monthly_max=1)
    keeper = april.loop("top-ups")
    spend(april, 500)
    await keeper.turn()
    assert post(april) == 10
    rows_of(april.url, freed)
    for _ in range(2):
        await keeper.turn()
    assert len(await bought(april)) == 1 + more


async def test_prepaid_auto_top_up_buys_no_more_until_the_last_purchase_is_paid(april: April) -> None:
    await customer(april, invoicing="prepaid")
    keeper = april.loop("top-ups")
    for _ in range(3):
        spend(april, 200)
        await keeper.turn()
    assert post(april) == 0
    [addition] = await bought(april)
    await pay(april, await own_invoice(april, addition), "10.00", "bank-1")
    assert post(april) == 1_000
    spend(april, 800)
    await keeper.turn()
    [_, second] = await bought(april)
    # A note cancels it, so the next movement may order again.
    note = await april.do("invoices", "credit-note", (await own_invoice(april, second))["id"])
    await april.do("invoices", "finalize", note["id"])
    await keeper.turn()
    spend(april, 1)
    await keeper.turn()
    assert (len(await bought(april)), post(april)) == (3, 0)


async def test_auto_top_up_cancelled_by_a_credit_note_buys_again_only_after_switching_off_and_on(
    april: April,
) -> None:
    owner, keeper = await customer(april, invoicing="prepaid"), april.loop("top-ups")
    spend(april, 450)
    await keeper.turn()
    [addition] = await bought(april)
    note = await april.do("invoices", "credit-note", (await own_invoice(april, addition))["id"])
    await april.do("invoices", "finalize", note["id"])
    await keeper.turn()
    prepaid = TERMS | {"invoicing": "prepaid"}
    for same in ({"name": "Acme Ltd"}, {"auto_top_up": prepaid}):
        await april.do("organizations", "change", owner, **same)
        await keeper.turn()
        assert len(await bought(april)) == 1
    for other in (None, prepaid):
        await april.do("organizations", "change", owner, auto_top_up=other)
        await keeper.turn()
    assert len(await bought(april)) == 2


async def test_auto_top_up_order_of_a_low_balance_is_closed_without_purchase_when_switched_off(
    april: April,
) -> None:
    made = await april.do("organizations", "create", name="Acme")
    keeper, owner = april.loop("top-ups"), int(made["id"])
    await april.do("organizations", "change", owner, auto_top_up=TERMS)
    await april.do("organizations", "change", owner, auto_top_up=TERMS | {"credits": 7, "unit_cost": "5"})
    assert rows_of(april.url, ORDERS) == [(0, 0, False, False)]
    await april.do("organizations", "change", owner, auto_top_up=None)
    await keeper.turn()
    assert (await bought(april), rows_of(april.url, ORDERS)) == ([], [(0, 0, False, True)])


async def test_auto_top_up_refused_by_redis_does_not_block_the_next_purchase(april: April) -> None:
    await customer(april)
    keeper = april.loop("top-ups")
    spend(april, 450)
    await keeper.turn()
    rows_of(april.url, "UPDATE control_write SET state = 'refused' WHERE verb = 'credits' RETURNING id")
    await keeper.turn()
    spend(april, 1)
    await keeper.turn()
    assert post(april) == 1_000


async def test_auto_top_up_sends_a_webhook_and_prevents_a_change_of_currency(april: April) -> None:
    owner = await customer(april)
    rows_of(
        april.url,
        "INSERT INTO webhook (url, events, secret) VALUES ('https://x', '[]', 'whsec_eA==') RETURNING id",
    )
    spend(april, 501)
    await april.loop("top-ups").turn()
    [(told,)] = rows_of(april.url, "SELECT payload FROM webhook_delivery WHERE event = 'credits.topped_up'")
    assert isinstance(told, dict)
    assert (told["organization_id"], told["credit_balance"], told["credits_added"]) == (owner, -1, 1_000)
    assert (told["of_month"], told["monthly_max"], told["unit_cost"]) == (1, 10, "0.01")
    assert post(april) == 1_000
    with pytest.raises(Conflict, match="bought automatically"):
        await april.do("organizations", "change", owner, currency="JPY")
    with pytest.raises(Unprocessable) as refused:
        await april.do("organizations", "change", owner, auto_top_up=TERMS | {"unit_cost": "0.000001"})
    assert dict(refused.value.errors) == {"auto_top_up.unit_cost": "comes to no USD that can be paid"}
