"""Money that goes back to a customer at Stripe is due again here, once, or a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import CollectorUnavailable
from gateway.features.stripe.administration import collected
from gateway.features.stripe.handover import CollectionStatus, PaymentReturn
from gateway.features.stripe.service import StripeApi, StripeReturns
from tests.features.stripe.stripe_server import KEY, Refused
from tests.features.stripe.test_handovers import Desk, april, desk, handed, noted
from tests.persistence.billing.test_payments import pay
from tests.persistence.migrated import migrated, shared
from tests.persistence.scenario import broken, rows_of

__all__ = ["april", "desk", "migrated", "shared"]


async def paid(desk: Desk) -> tuple[dict[str, Any], str]:
    """An invoice of 120.00 that was paid at Stripe, and its payment."""
    made, there = await handed(desk)
    await desk.told(desk.stripe.pay(there["id"]), "evt_paid")
    assert await desk.now(made) == ("paid", "120.00", "0.00")
    return made, desk.stripe.payment_of(there["id"])


async def look_up(desk: Desk, told: PaymentReturn) -> Sequence[CollectionStatus]:
    """What Stripe says of it, as a keeper asks."""
    api = StripeApi(lambda: KEY, desk.stripe.url)
    try:
        return await StripeReturns(api).look_up(told)
    finally:
        await api.aclose()


async def returned(desk: Desk, payment: str, name: str, kind: str = "charge.refunded") -> list[bool]:
    """What Stripe tells of money that went back, taken in."""
    found = await look_up(desk, PaymentReturn(name, kind, payment))
    return [await collected(desk.april.store, each) for each in found]


def said_of_returns(desk: Desk) -> list[tuple[Any, ...]]:
    told = "SELECT amount, remains FROM handover_event WHERE kind <> 'invoice.paid' ORDER BY id"
    return rows_of(desk.april.url, told)


def back(desk: Desk) -> list[tuple[Any, ...]]:
    return rows_of(desk.april.url, "SELECT amount FROM payment WHERE amount < 0 ORDER BY id")


async def test_refund_at_stripe_reopens_the_invoice_once_despite_repeated_stripe_events(desk: Desk) -> None:
    made, payment = await paid(desk)
    desk.stripe.give_back(payment, 120_00)
    for name, kind in (
        ("evt_1", "charge.refunded"),
        ("evt_2", "refund.created"),
        ("evt_1", "charge.refunded"),
    ):
        assert await returned(desk, payment, name, kind) == [True]
    assert await desk.now(made) == ("open", "0.00", "120.00")
    assert (back(desk), said_of_returns(desk)) == ([(-120,)], [(-120, None), (0, None)])
    # What Stripe says of the invoice itself stays what it was.
    there = desk.stripe.invoices[next(iter(desk.stripe.invoices))]
    await desk.told(dict(there), "evt_3", "invoice.updated")
    assert await desk.now(made) == ("open", "0.00", "120.00")
    assert await broken(desk.april.url) == []


async def test_partial_refunds_at_stripe_add_up_in_any_order(desk: Desk) -> None:
    made, payment = await paid(desk)
    for amount in (20_00, 30_00, 10_00):
        desk.stripe.give_back(payment, amount)
    await returned(desk, payment, "evt_3")
    assert await desk.now(made) == ("open", "60.00", "60.00")
    await returned(desk, payment, "evt_1")
    desk.stripe.give_back(payment, 5_00)
    await returned(desk, payment, "evt_4")
    assert await desk.now(made) == ("open", "55.00", "65.00")
    assert [amount for amount, _ in said_of_returns(desk)] == [-60, 0, -5]


async def test_refunds_at_stripe_of_two_payments_of_the_same_invoice_are_both_recorded(desk: Desk) -> None:
    made, there = await handed(desk)
    payments = []
    for number, amount in enumerate((70_00, 50_00)):
        await desk.told(desk.stripe.pay(there["id"], amount), f"evt_{number}")
        payments.append(desk.stripe.payment_of(there["id"]))
    for number, payment in enumerate(payments):
        desk.stripe.give_back(payment, 50_00)
        await returned(desk, payment, f"evt_back_{number}")
    assert await desk.now(made) == ("open", "20.00", "100.00")


async def test_refund_of_a_stripe_payment_for_two_invoices_counts_only_the_share_of_each_invoice(
    desk: Desk,
) -> None:
    made, payment = await paid(desk)
    there = next(iter(desk.stripe.invoices))
    other = desk.stripe.invoices[there] | {"id": "in_other", "metadata": {}}
    desk.stripe.invoices["in_other"] = other
    desk.stripe.allocate("in_other", 80_00, payment)
    desk.stripe.give_back(payment, 100_00)
    # The other one is nobody's here.
    assert sorted(await returned(desk, payment, "evt_1")) == [False, True]
    assert await desk.now(made) == ("open", "100.00", "20.00")


async def test_stripe_refund_event_that_arrives_before_the_payment_event_still_reopens_the_invoice(
    desk: Desk,
) -> None:
    made, there = await handed(desk)
    told = desk.stripe.pay(there["id"])
    payment = desk.stripe.payment_of(there["id"])
    desk.stripe.give_back(payment, 120_00)
    await returned(desk, payment, "evt_2")
    await desk.told(told, "evt_1")
    assert await desk.now(made) == ("open", "0.00", "120.00")


@pytest.mark.parametrize(
    ("status", "wanted"),
    [("needs_response", "open"), ("lost", "open"), ("won", "paid"), ("prevented", "paid")],
)
async def test_disputed_stripe_payment_reopens_the_invoice_unless_the_dispute_is_won(
    desk: Desk, status: str, wanted: str
) -> None:
    made, payment = await paid(desk)
    desk.stripe.give_back(payment, 120_00, by="dispute", status=status)
    await returned(desk, payment, "evt_1", "charge.dispute.funds_withdrawn")
    assert (await desk.now(made))[0] == wanted


async def test_failed_stripe_refund_records_no_payment_and_stores_a_note_to_record_the_payment(
    desk: Desk,
) -> None:
    made, payment = await paid(desk)
    refund = desk.stripe.give_back(payment, 40_00, status="pending")
    await returned(desk, payment, "evt_1")
    refund["status"] = "failed"
    await returned(desk, payment, "evt_2", "refund.failed")
    assert await desk.now(made) == ("open", "80.00", "40.00")
    assert said_of_returns(desk)[-1] == (
        0,
        "USD 40 that had gone back came in again: record it as a payment.",
    )


async def test_stripe_refund_of_money_already_credited_by_a_credit_note_leaves_the_paid_amount(
    desk: Desk,
) -> None:
    made, payment = await paid(desk)
    await noted(desk, made, "50")
    await desk.turn()
    assert await desk.now(made) == ("paid", "60.00", "0.00")
    desk.stripe.give_back(payment, 60_00)
    await returned(desk, payment, "evt_1")
    assert await desk.now(made) == ("paid", "60.00", "0.00")
    [(amount, remains)] = said_of_returns(desk)
    assert (amount, str(remains).startswith("USD 60 of what went back had left")) == (0, True)


async def test_stripe_refund_above_the_payments_received_at_stripe_stores_a_note_about_the_excess(
    desk: Desk,
) -> None:
    made, there = await handed(desk)
    await desk.told(desk.stripe.pay(there["id"], 70_00), "evt_paid")
    await pay(desk.april, made, "50.00")
    payment = desk.stripe.payment_of(there["id"])
    desk.stripe.payments[next(iter(desk.stripe.payments))]["amount_paid"] = 120_00
    desk.stripe.give_back(payment, 120_00)
    await returned(desk, payment, "evt_1")
    assert await desk.now(made) == ("open", "50.00", "70.00")
    assert said_of_returns(desk) == [
        (Decimal(-70), "USD 50 more went back to the customer than is left of its payments.")
    ]


async def test_refund_lookup_refused_by_stripe_records_no_refund_and_does_not_reveal_the_api_key(
    desk: Desk,
) -> None:
    _, payment = await paid(desk)
    desk.stripe.give_back(payment, 1_00)
    for refused in (Refused(500, "busy"), Refused(403, "no permission: sk_live_abc")):
        desk.stripe.refuse = lambda asked, refused=refused: refused if "refunds" in asked else None
        with pytest.raises(CollectorUnavailable) as told:
            await look_up(desk, PaymentReturn("evt_1", "charge.refunded", payment))
        assert "sk_live_abc" not in told.value.message
    assert said_of_returns(desk) == []


async def test_refund_event_for_an_unknown_stripe_payment_costs_a_single_request_to_stripe(
    desk: Desk,
) -> None:
    await paid(desk)
    asked = len(desk.stripe.asked)
    assert await returned(desk, "pi_of_others", "evt_1") == []
    assert len(desk.stripe.asked) == asked + 1
