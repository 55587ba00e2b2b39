"""Invoices that are not paid: reminders, a block at their end, and with the payment its end."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Conflict
from persistence.dunning import DunningSchedule
from tests.persistence.april import April, april, at
from tests.persistence.credits import give
from tests.persistence.scenario import Account, rows_of

__all__ = ["april"]

SCHEDULE = DunningSchedule.read("3,7", 10)
STEPS = """
SELECT action, days, tenant_id IS NOT NULL, control_write_id IS NOT NULL, actor
  FROM dunning_step ORDER BY id"""
REMINDED_3, REMINDED_7 = ("reminder", 3, False, False, "keeper"), ("reminder", 7, False, False, "keeper")
BLOCKED, LEFT = ("block", 10, True, True, "keeper"), ("block", 10, True, False, "keeper")
LET_GO, STAYS = ("unblock", 10, True, True, "keeper"), ("unblock", 10, True, False, "keeper")


async def owing(april: April, **more: object) -> dict[str, Any]:
    """April's invoice of 10.00, due on 2 May."""
    made = await april.do("organizations", "create", name="Acme", due_days=0, **more)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    await april.on(at(4, 10))
    return await invoice_of(april, date(2026, 4, 1), date(2026, 5, 1), at(5, 2))


async def invoice_of(april: April, start: date, end: date, moment: Any) -> dict[str, Any]:
    give(april.url, april.account, 1_000, unit_cost="0.01")
    april.flush()
    await april.on(moment)
    draft = await april.do(
        "invoices",
        "create",
        organization_id=april.account.organization_id,
        period_start=start,
        period_end=end,
    )
    return await april.do("invoices", "finalize", draft["id"])


async def look(april: April, month: int, day: int, schedule: DunningSchedule = SCHEDULE) -> None:
    await april.on(at(month, day))
    await april.dun(schedule)


async def pay(april: April, invoice: dict[str, Any], reference: str = "bank-1") -> None:
    await april.do("invoices", "payments", invoice["id"], amount=Decimal("10.00"), reference=reference)


def verbs(april: April) -> list[object]:
    """What the counters are told of tenants, in order."""
    found = rows_of(
        april.url, "SELECT verb FROM control_write WHERE verb IN ('block', 'unblock') ORDER BY position"
    )
    return [verb for (verb,) in found]


async def test_unpaid_invoice_sends_reminders_and_then_blocks_all_tenants_until_paid(april: April) -> None:
    invoice = await owing(april)
    rows_of(
        april.url,
        "INSERT INTO webhook (url, events, secret) VALUES ('https://x', '[]', 'whsec_eA==') RETURNING id",
    )
    for day in range(2, 16):
        await april.on(at(5, day))
        await asyncio.gather(*(april.dun(SCHEDULE) for _ in range(3)))
        steps = (day >= 5) + (day >= 9) + (day >= 12)
        assert rows_of(april.url, STEPS) == [REMINDED_3, REMINDED_7, BLOCKED][:steps], day
    assert verbs(april) == ["block"]
    [(cause,)] = rows_of(april.url, "SELECT payload->>'cause' FROM control_write WHERE verb = 'block'")
    assert cause == "dunning"
    later = await april.do("tenants", "create", name="Later", organization_id=invoice["organization_id"])
    await look(april, 5, 15)
    [(account,)] = rows_of(
        april.url, "SELECT account FROM control_write WHERE verb = 'block' ORDER BY position DESC LIMIT 1"
    )
    assert account == f"tenant:{later['id']}"
    await pay(april, invoice)
    await look(april, 5, 16)
    assert rows_of(april.url, STEPS) == [REMINDED_3, REMINDED_7, BLOCKED, BLOCKED, LET_GO, LET_GO]
    told = rows_of(
        april.url,
        "SELECT event, payload->>'amount_due' FROM webhook_delivery WHERE event ~ 'remind|bloc' ORDER BY id",
    )
    assert told == [
        ("invoice.reminder", "10"), ("invoice.reminder", "10"), ("invoice.blocked", "10"),
        ("invoice.blocked", "10"), ("invoice.unblocked", "0"),
    ]  # fmt: skip
    await look(april, 6, 30)
    assert len(verbs(april)) == 4


async def test_reversed_payment_blocks_the_tenant_again(april: April) -> None:
    invoice = await owing(april)
    for day in (5, 9, 12):
        await look(april, 5, day)
    await pay(april, invoice)
    await look(april, 5, 13)
    [(payment,)] = rows_of(april.url, "SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="back")
    await look(april, 5, 14)
    await pay(april, invoice, "bank-2")
    await look(april, 5, 15)
    assert verbs(april) == ["block", "unblock", "block", "unblock"]


async def test_dunning_does_not_undo_a_block_or_unblock_made_by_an_operator(april: April) -> None:
    invoice = await owing(april)
    tenant = april.account.tenant_id
    await april.do("tenants", "block", tenant)
    other = await april.do("tenants", "create", name="Other", organization_id=invoice["organization_id"])
    third = await april.do("tenants", "create", name="Third", organization_id=invoice["organization_id"])
    for day in (5, 9, 12):
        await look(april, 5, day)
    assert rows_of(april.url, STEPS)[2:] == [LEFT, BLOCKED, BLOCKED]
    # Blocked by a person as well since, and let go by one.
    await april.do("tenants", "block", other["id"])
    await april.do("tenants", "unblock", third["id"])
    await look(april, 5, 13)
    await pay(april, invoice)
    await look(april, 5, 14)
    assert rows_of(april.url, STEPS)[5:] == [STAYS] * 3
    assert verbs(april) == ["block", "block", "block", "block", "unblock"]


async def test_two_unpaid_invoices_block_the_tenant_until_the_last_payment(april: April) -> None:
    first = await owing(april)
    second = await invoice_of(april, date(2026, 5, 1), date(2026, 6, 1), at(6, 2))
    for day in (3, 4, 9, 12, 13):
        await look(april, 6, day)
    await pay(april, first)
    await look(april, 6, 14)
    assert verbs(april) == ["block"]
    await pay(april, second)
    await look(april, 6, 15)
    assert verbs(april) == ["block", "unblock"]
    [(open_,)] = rows_of(
        april.url, "SELECT count(*) FILTER (WHERE action = 'block') - count(corrects_id) FROM dunning_step"
    )
    assert open_ == 0


async def test_tenant_stays_blocked_by_a_second_unpaid_invoice_even_if_marked_uncollectible(
    april: April,
) -> None:
    first = await owing(april)
    second = await invoice_of(april, date(2026, 5, 1), date(2026, 6, 1), at(6, 2))
    for day in (9, 12, 13):
        await look(april, 6, day)
    await pay(april, first)
    await look(april, 6, 14)
    await april.do("invoices", "uncollectible", second["id"])
    await look(april, 6, 15)
    assert verbs(april) == ["block"]
    blocks = april.rows("SELECT invoice_id, action, reason FROM dunning_step WHERE tenant_id IS NOT NULL")
    assert blocks == [
        (first["id"], "block", f"Invoice {first['id']} is not paid."),
        (first["id"], "unblock", f"Invoice {second['id']} blocks instead."),
        (second["id"], "block", f"Invoice {second['id']} is not paid."),
    ]
    await pay(april, second, "bank-2")
    await look(april, 6, 16)
    assert verbs(april) == ["block", "unblock"]


async def test_dunning_enabled_long_after_the_due_date_sends_a_single_reminder_before_the_block(
    april: April,
) -> None:
    await owing(april)
    await look(april, 8, 1, DunningSchedule())
    assert rows_of(april.url, STEPS) == []
    await look(april, 8, 1)
    assert rows_of(april.url, STEPS) == [REMINDED_7]
    await look(april, 8, 2)
    assert rows_of(april.url, STEPS) == [REMINDED_7, BLOCKED]


async def test_organization_exempted_from_dunning_gets_no_reminder_and_is_unblocked(april: April) -> None:
    invoice = await owing(april, dunning=False)
    await look(april, 6, 1)
    assert rows_of(april.url, STEPS) == []
    await april.do("organizations", "change", invoice["organization_id"], dunning=True)
    for day in (1, 2):
        await look(april, 6, day)
    await april.do("organizations", "change", invoice["organization_id"], dunning=False)
    # Whatever the schedule is by then.
    await look(april, 6, 2, DunningSchedule())
    assert rows_of(april.url, STEPS) == [REMINDED_7, BLOCKED, LET_GO]


async def test_uncollectible_invoice_keeps_the_tenant_blocked_until_a_credit_note_covers_the_invoice(
    april: April,
) -> None:
    invoice = await owing(april)
    for day in (5, 9, 12):
        await look(april, 5, day)
    await april.do("invoices", "uncollectible", invoice["id"])
    await look(april, 5, 13)
    assert verbs(april) == ["block"]
    note = await april.do("invoices", "credit-note", invoice["id"])
    await april.do("invoices", "finalize", note["id"])
    await look(april, 5, 14)
    assert verbs(april) == ["block", "unblock"]


async def test_database_refuses_update_and_delete_of_recorded_dunning_steps(april: April) -> None:
    await owing(april)
    await look(april, 5, 5)
    for change in ("UPDATE dunning_step SET days = 1", "DELETE FROM dunning_step"):
        with pytest.raises(Exception, match=r"append-only|refused"):
            rows_of(april.url, change)
    with pytest.raises(Conflict):
        await april.do(
            "dunning-steps", "advance", organization_id=april.account.organization_id, schedule=SCHEDULE
        )


@given(
    reminders=st.sets(st.integers(0, 30), max_size=4), block=st.integers(0, 30), starts=st.integers(0, 40),
    skipped=st.sets(st.integers(0, 70)),
)  # fmt: skip
def test_every_dunning_schedule_reminds_in_order_and_blocks_last(
    reminders: set[int], block: int, starts: int, skipped: set[int]
) -> None:
    """Whatever days nobody looked on: each reminder once, rising, and no block on the day of the last."""
    schedule = DunningSchedule.read(",".join(map(str, reminders)), block)
    told: list[int] = []
    told_on, blocked_on = -1, None
    for day in range(starts, 80):
        if day in skipped:
            continue
        if (wanted := schedule.reminder(day, told)) is not None:
            assert wanted in reminders
            assert wanted <= day
            told.append(wanted)
            told_on = day
        elif blocked_on is None and schedule.blocks(day, told, day - told_on):
            blocked_on = day
    assert told == sorted(set(told))
    assert max(told, default=-1) == max(reminders, default=-1)
    if block:
        assert blocked_on is not None
        assert blocked_on >= block
        before = [each for each in told if each <= block]
        assert not before or blocked_on > min(
            day for day in range(80) if day >= max(before) and day not in skipped
        )
    else:
        assert blocked_on is None
