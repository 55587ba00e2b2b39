"""Documents at Stripe: whole, once, to the cent, whatever is cut off; and the money that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import Conflict
from gateway.features.stripe.administration import collected
from gateway.features.stripe.handover import RETRIES, CollectionStatus
from gateway.features.stripe.keeper import Handovers
from gateway.features.stripe.service import StripeApi, StripeInvoices
from persistence import engine
from persistence.stripe.queue import HandoverQueue, handed_over
from tests.features.stripe.stripe_server import KEY, Refused, Stripe, cutting, stripe_server
from tests.persistence.april import April, april, at, invoiced
from tests.persistence.billing.test_payments import bought, pay, stands
from tests.persistence.credits import give
from tests.persistence.migrated import migrated, shared
from tests.persistence.scenario import broken, rows_of
from tests.persistence.test_schedule import several
from tests.persistence.test_schedule import turn as scheduled
from tests.search import steps

__all__ = ["april", "migrated", "shared"]

# Of an invoice: look for it, draft, fill, finalize.
REQUESTS = 4


@dataclass
class Desk:
    """A keeper's hand-overs beside a Stripe; `said` is what it logged."""

    april: April
    stripe: Stripe
    queue: HandoverQueue
    collector: StripeInvoices
    loop: Handovers
    said: list[dict[str, object]]

    async def turn(self) -> int:
        """Do all that is due, and what becomes due by it; pauses are over at once."""
        done = 0
        while due := await self.loop.claim():
            for each in due:
                await self.loop.attempt(each)
            done += len(due)
        return done

    def pauses_end(self) -> None:
        rows_of(self.april.url, "UPDATE handover SET next_attempt_at = now() RETURNING id")

    def states(self) -> list[tuple[Any, ...]]:
        return rows_of(self.april.url, "SELECT kind, state FROM handover ORDER BY id")

    async def told(self, invoice: dict[str, Any], name: str, kind: str = "invoice.paid") -> bool:
        """What Stripe tells of an invoice as it stands there."""
        there = invoice["total"] - invoice["amount_remaining"] - invoice["pre_payment_credit_notes_amount"]
        settled = Decimal(there) / 100 if invoice["amount_paid"] or invoice["status"] == "paid" else None
        mark = invoice["metadata"].get("tollkeeper_handover", "")
        said = CollectionStatus(name, kind, invoice["id"], mark, invoice["currency"].upper(), settled)
        return await collected(self.april.store, said)

    async def now(self, invoice: dict[str, Any]) -> tuple[str, str, str]:
        return stands(dict(await self.april.store.get("invoices", invoice["id"])))


@pytest.fixture
async def desk(april: April) -> AsyncIterator[Desk]:
    async with stripe_server() as stripe:
        api, pool = StripeApi(lambda: KEY, stripe.url), engine.create(april.url)
        said: list[dict[str, object]] = []
        collector = StripeInvoices(api, "charge_automatically", lambda: april.now)
        queue = HandoverQueue(pool, april.store)
        loop = Handovers(queue, collector, lambda what, **more: said.append({"what": what, **more}))
        yield Desk(april, stripe, queue, collector, loop, said)
        await api.aclose()
        await pool.dispose()


async def handed(desk: Desk) -> tuple[dict[str, Any], dict[str, Any]]:
    """An invoice of 120.00, with 20 % tax, here and there."""
    made = await bought(desk.april, stripe_customer="cus_1")
    await desk.turn()
    [there] = desk.stripe.invoices.values()
    return made, there


async def test_invoice_is_created_at_stripe_line_by_line_with_exact_cents(desk: Desk) -> None:
    made, there = await handed(desk)
    assert [(line["description"], line["amount"]) for line in there["of_lines"]] == [
        (line["description"], int(Decimal(line["amount"]) * 100)) for line in made["lines"]
    ]
    assert [line["amount"] for line in there["of_lines"]] == [100_00, 20_00]
    assert (there["total"], there["status"], there["number"]) == (120_00, "open", made["number"])
    assert (there["customer"], there["currency"], there["auto_advance"]) == ("cus_1", "usd", "true")
    sent = there["sent"]
    assert (sent["auto_advance"], sent["discounts"], sent["automatic_tax"]["enabled"]) == (
        "false",
        "",
        "false",
    )
    assert (sent["pending_invoice_items_behavior"], sent["collection_method"]) == (
        "exclude", "charge_automatically",
    )  # fmt: skip
    assert [asked.split(" ")[0] for asked in desk.stripe.asked] == ["GET", "POST", "POST", "POST"]
    [row] = rows_of(desk.april.url, "SELECT state, remote, url, error, attempts FROM handover")
    assert row == ("done", there["id"], f"https://invoice.example/{there['id']}", None, 1)
    assert await desk.turn() == 0


async def test_each_invoice_finalized_by_the_schedule_is_sent_to_stripe_once(desk: Desk) -> None:
    april = desk.april
    owners = await several(april, 3)
    for number, owner in enumerate(owners[:2], 1):
        await april.do("organizations", "change", owner, stripe_customer=f"cus_{number}")
    await scheduled(april)
    assert (await desk.turn(), desk.states()) == (0, []), "a draft is nobody's yet"
    await april.on(at(5, 2, 1))
    await scheduled(april, keepers=2)
    assert desk.states() == [("invoice", "waiting")] * 2
    await desk.turn()
    await scheduled(april)
    assert (await desk.turn(), desk.states()) == (0, [("invoice", "done")] * 2)
    numbers = rows_of(
        april.url, "SELECT number FROM invoice WHERE organization_id = ANY(%s) ORDER BY id", [owners[:2]]
    )
    there = [(each["number"],) for each in desk.stripe.invoices.values()]
    assert sorted(there) == sorted(numbers)
    assert {(each["customer"], each["total"], each["status"]) for each in desk.stripe.invoices.values()} == {
        ("cus_1", 29_00, "open"), ("cus_2", 29_00, "open"),
    }  # fmt: skip


async def test_invoice_without_a_stripe_customer_is_sent_to_stripe_only_on_a_later_request(
    desk: Desk,
) -> None:
    made = await bought(desk.april)
    assert await desk.turn() == 0
    with pytest.raises(Conflict, match="no stripe_customer"):
        await desk.april.do("invoices", "hand-over", made["id"])
    await desk.april.do("organizations", "change", made["organization_id"], stripe_customer="cus_2")
    await desk.april.do("invoices", "hand-over", made["id"])
    assert await desk.turn() == 1
    assert [each["customer"] for each in desk.stripe.invoices.values()] == ["cus_2"]
    with pytest.raises(Conflict, match="which is done"):
        await desk.april.do("invoices", "hand-over", made["id"])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ending", ["told", "died", "forgotten"])
async def test_transfer_to_stripe_interrupted_at_any_request_leaves_a_single_complete_stripe_invoice(
    desk: Desk, when: str, ending: str
) -> None:
    """Each request's answer is lost in turn; whoever asked learns of it, or dies; keys are kept, or not."""
    await bought(desk.april, stripe_customer="cus_1")
    for number in steps(range(1, REQUESTS + 1)):
        desk.pauses_end()
        rows_of(
            desk.april.url,
            "UPDATE handover SET state = 'waiting', remote = NULL, done_at = NULL RETURNING id",
        )
        desk.stripe.invoices.clear()
        desk.stripe.answered.clear()
        with cutting(desk.stripe, number, when):
            [due] = await desk.loop.claim()
            if ending == "died":
                await desk.collector.hand_over(due, lambda made, due=due: desk.queue.note(due, made))
                desk.loop._under_way -= 1
            else:
                await desk.loop.attempt(due)
        if ending == "forgotten":
            desk.stripe.answered.clear()
        desk.pauses_end()
        assert await desk.turn() == 1
        [there] = desk.stripe.invoices.values()
        assert (there["status"], there["total"], len(there["of_lines"])) == ("open", 120_00, 2)
        assert desk.states() == [("invoice", "done")]


async def test_two_keepers_sending_the_same_invoice_to_stripe_create_a_single_stripe_invoice(
    desk: Desk,
) -> None:
    await bought(desk.april, stripe_customer="cus_1")
    claimed = await asyncio.gather(*(desk.queue.claim(4) for _ in range(4)))
    [due] = [each for some in claimed for each in some]
    # One that was taken for dead, and its successor: the same request is the same invoice.
    desk.pauses_end()
    [again] = await desk.queue.claim(4)
    outcomes = await asyncio.gather(
        *(
            desk.collector.hand_over(each, lambda made, each=each: desk.queue.note(each, made))
            for each in (due, again)
        )
    )
    for each, outcome in zip((due, again), outcomes, strict=True):
        await desk.queue.ended(each, outcome)
    desk.pauses_end()
    await desk.turn()
    [there] = desk.stripe.invoices.values()
    assert (there["status"], there["total"], desk.states()) == ("open", 120_00, [("invoice", "done")])


async def test_stripe_invoice_with_a_different_total_stays_a_draft_and_the_transfer_fails(desk: Desk) -> None:
    await bought(desk.april, stripe_customer="cus_1")
    desk.stripe.beside = -1
    await desk.turn()
    [there] = desk.stripe.invoices.values()
    [(state, error, remote)] = rows_of(desk.april.url, "SELECT state, error, remote FROM handover")
    assert (there["status"], state, remote) == ("draft", "failed", there["id"])
    assert error == f"{there['id']} comes to USD 119.99 instead of USD 120"


@pytest.mark.parametrize(
    ("status", "kind", "state", "version"),
    [
        (401, "invalid_request_error", "waiting", 1),
        (403, "invalid_request_error", "waiting", 2),
        (429, "invalid_request_error", "waiting", 1),
        (500, "api_error", "waiting", 2),
        (400, "idempotency_error", "waiting", 2),
        (400, "invalid_request_error", "failed", 1),
    ],
)
async def test_transfer_refused_by_stripe_is_retried_or_fails_depending_on_the_status(
    desk: Desk, status: int, kind: str, state: str, version: int
) -> None:
    made = await bought(desk.april, stripe_customer="cus_1")
    said = f"no luck with {KEY} and whsec_abc"
    desk.stripe.refuse = lambda asked: Refused(status, said, kind) if asked.startswith("POST") else None
    await desk.turn()
    [row] = rows_of(desk.april.url, "SELECT state, version, attempts, error FROM handover")
    assert row[:3] == (state, version, 1)
    assert str(status) in row[3] or kind == "idempotency_error"
    assert KEY not in row[3]
    assert "whsec_abc" not in row[3]
    assert (desk.said[0]["state"], desk.said[0]["error"]) == (state, row[3])
    desk.stripe.refuse = lambda _: None
    if state == "failed":
        counted = await handed_over(desk.queue._engine)
        assert counted["handovers"] == [("waiting", 0), ("failed", 1)]
        [(handover_id,)] = rows_of(desk.april.url, "SELECT id FROM handover")
        await desk.april.do("handovers", "retry", handover_id)
    desk.pauses_end()
    assert await desk.turn() == 1
    assert [each["number"] for each in desk.stripe.invoices.values()] == [made["number"]]


async def test_transfer_to_stripe_fails_after_the_maximum_of_attempts(desk: Desk) -> None:
    await bought(desk.april, stripe_customer="cus_1")
    desk.stripe.refuse = lambda _: Refused(503, "away", "api_error")
    for _ in range(RETRIES.attempts_max):
        desk.pauses_end()
        assert await desk.turn() == 1
        [(handover_id, state)] = rows_of(desk.april.url, "SELECT id, state FROM handover")
        if state != "failed":
            with pytest.raises(Conflict, match="not begun"):
                await desk.april.do("handovers", "cancel", handover_id)
    desk.pauses_end()
    assert (await desk.turn(), desk.states()) == (0, [("invoice", "failed")])
    with pytest.raises(Conflict, match="Another attempt"):
        await desk.april.do("handovers", "ended", handover_id, attempt=3, state="done", credited=Decimal(0))


async def test_transfer_to_an_unknown_stripe_customer_fails_and_may_be_canceled_or_retried(
    desk: Desk,
) -> None:
    made = await bought(desk.april, stripe_customer="cus_gone")
    await desk.turn()
    [(handover_id, state, error)] = rows_of(desk.april.url, "SELECT id, state, error FROM handover")
    assert state == "failed"
    assert "No such customer: 'cus_gone' (req_" in error
    await pay(desk.april, made, "120.00")
    assert desk.states() == [("invoice", "failed"), ("paid", "waiting")]
    assert await desk.turn() == 0
    await desk.april.do("handovers", "cancel", handover_id)
    assert desk.states() == [("invoice", "canceled"), ("paid", "canceled")]
    with pytest.raises(Conflict, match="canceled"):
        await desk.april.do("handovers", "cancel", handover_id)
    await desk.april.do("organizations", "change", made["organization_id"], stripe_customer="cus_1")
    await desk.april.do("handovers", "retry", handover_id)
    await desk.april.do("handovers", "cancel", handover_id)  # not begun
    assert (await desk.turn(), desk.states()[0]) == (0, ("invoice", "canceled"))
    await desk.april.do("handovers", "retry", handover_id)
    assert await desk.turn() == 1
    assert [each["customer"] for each in desk.stripe.invoices.values()] == ["cus_1"]


async def test_payment_at_stripe_is_recorded_once_despite_repeated_stripe_events(desk: Desk) -> None:
    made, there = await handed(desk)
    early = dict(desk.stripe.pay(there["id"], 50_00))
    late = desk.stripe.pay(there["id"])
    assert await asyncio.gather(*(desk.told(late, "evt_2") for _ in range(4))) == [True] * 4
    assert await desk.now(made) == ("paid", "120.00", "0.00")
    assert await desk.told(early, "evt_1", "invoice.updated")
    assert await desk.told(late, "evt_3", "invoice.payment_succeeded")
    assert [
        tuple(map(str, row)) for row in rows_of(desk.april.url, "SELECT amount, reference FROM payment")
    ] == [("120.0000000000", "stripe:evt_2")]
    assert rows_of(desk.april.url, "SELECT name, amount::int, remains FROM handover_event ORDER BY id") == [
        ("evt_2", 120, None), ("evt_1", 0, None), ("evt_3", 0, None),
    ]  # fmt: skip
    assert desk.states() == [("invoice", "done")]
    assert await broken(desk.april.url) == []


async def test_partial_payments_at_stripe_are_recorded_as_received(desk: Desk) -> None:
    made, there = await handed(desk)
    await desk.told(desk.stripe.pay(there["id"], 50_00), "evt_1", "invoice.updated")
    assert await desk.now(made) == ("open", "50.00", "70.00")
    await desk.told(desk.stripe.pay(there["id"]), "evt_2")
    assert await desk.now(made) == ("paid", "120.00", "0.00")


async def test_stripe_event_about_an_invoice_never_sent_to_stripe_is_ignored(desk: Desk) -> None:
    _, there = await handed(desk)
    other = {**there, "id": "in_other", "metadata": {}, "status": "paid"}
    assert not await desk.told(other, "evt_1")
    assert not await desk.told({**other, "metadata": {"tollkeeper_handover": "no key"}}, "evt_2")
    assert rows_of(desk.april.url, "SELECT id FROM handover_event") == []


async def test_payment_recorded_by_hand_marks_the_stripe_invoice_as_paid(desk: Desk) -> None:
    made, there = await handed(desk)
    await pay(desk.april, made, "20.00")
    assert await desk.turn() == 0
    await pay(desk.april, made, "100.00", "bank-2")
    assert await desk.turn() == 1
    assert (there["status"], desk.states()[-1]) == ("paid", ("paid", "done"))
    await desk.told(dict(there), "evt_1")
    assert await desk.now(made) == ("paid", "120.00", "0.00")
    assert rows_of(desk.april.url, "SELECT remains FROM handover_event") == [(None,)]


async def test_stripe_payment_above_the_amount_due_is_recorded_up_to_the_amount_due_with_a_note(
    desk: Desk,
) -> None:
    made, there = await handed(desk)
    await pay(desk.april, made, "20.00")
    await desk.told(desk.stripe.pay(there["id"]), "evt_1")
    assert await desk.now(made) == ("paid", "120.00", "0.00")
    assert rows_of(desk.april.url, "SELECT amount::int, remains FROM handover_event") == [
        (100, "USD 20 more came in than was left to pay.")
    ]


async def test_invoice_marked_uncollectible_is_uncollectible_at_stripe_and_may_still_be_paid(
    desk: Desk,
) -> None:
    made, there = await handed(desk)
    await desk.april.do("invoices", "uncollectible", made["id"])
    assert await desk.turn() == 1
    assert there["status"] == "uncollectible"
    told = CollectionStatus(
        "evt_1", "invoice.marked_uncollectible", there["id"], "", "USD", None, given_up=True
    )
    assert await collected(desk.april.store, told)
    await desk.told(desk.stripe.pay(there["id"]), "evt_2")
    assert await desk.now(made) == ("paid", "120.00", "0.00")
    assert rows_of(desk.april.url, "SELECT remains FROM handover_event") == [(None,), (None,)]


async def test_voided_invoice_is_voided_at_stripe(desk: Desk) -> None:
    made, there = await handed(desk)
    await desk.april.do("invoices", "void", made["id"])
    assert await desk.turn() == 1
    assert (there["status"], desk.states()) == ("void", [("invoice", "done"), ("void", "done")])
    told = CollectionStatus("evt_1", "invoice.voided", there["id"], "", "USD", None, void=True)
    assert await collected(desk.april.store, told)
    await desk.told({**there, "status": "paid", "amount_remaining": 0}, "evt_2")
    assert rows_of(desk.april.url, "SELECT remains FROM handover_event ORDER BY id") == [
        (None,), ("USD 120 more came in than was left to pay.",),
    ]  # fmt: skip


@pytest.mark.parametrize("began", [False, True])
async def test_invoice_voided_before_the_transfer_to_stripe_is_done_leaves_no_stripe_invoice(
    desk: Desk, began: bool
) -> None:
    made = await bought(desk.april, stripe_customer="cus_1")
    if began:
        with cutting(desk.stripe, 3, "before"):
            await desk.turn()
        assert [each["status"] for each in desk.stripe.invoices.values()] == ["draft"]
    await desk.april.do("invoices", "void", made["id"])
    desk.pauses_end()
    await desk.turn()
    assert desk.stripe.invoices == {}
    assert desk.states() == [("invoice", "canceled"), ("void", "canceled")]


async def test_stripe_draft_deleted_at_stripe_during_the_transfer_is_created_again(desk: Desk) -> None:
    await bought(desk.april, stripe_customer="cus_1")
    with cutting(desk.stripe, 3, "before"):
        await desk.turn()
    desk.stripe.invoices.clear()
    desk.stripe.answered.clear()
    desk.pauses_end()
    await desk.turn()
    [there] = desk.stripe.invoices.values()
    assert (there["status"], there["total"], desk.states()) == ("open", 120_00, [("invoice", "done")])


async def test_invoice_voided_only_at_stripe_stays_open_and_the_stripe_event_stores_a_note(
    desk: Desk,
) -> None:
    made, there = await handed(desk)
    told = CollectionStatus("evt_1", "invoice.voided", there["id"], "", "USD", None, void=True)
    assert await collected(desk.april.store, told)
    assert rows_of(desk.april.url, "SELECT remains FROM handover_event") == [
        ("It was made void there; here it is finalized.",)
    ]
    assert (await desk.now(made))[0] == "open"


async def noted(desk: Desk, made: dict[str, Any], amount: str | None = None) -> dict[str, Any]:
    lines = {} if amount is None else {"lines": [{"position": 1, "amount": Decimal(amount)}]}
    note = await desk.april.do("invoices", "credit-note", made["id"], **lines)
    return await desk.april.do("invoices", "finalize", note["id"])


async def test_credit_note_lowers_the_amount_due_at_stripe_until_the_note_is_voided(desk: Desk) -> None:
    made, there = await handed(desk)
    note = await noted(desk, made, "50")
    assert await desk.turn() == 1
    assert (there["amount_remaining"], there["status"]) == (60_00, "open")
    await desk.april.do("invoices", "void", note["id"])
    assert await desk.turn() == 1
    assert (there["amount_remaining"], len(desk.stripe.notes)) == (120_00, 1)
    await desk.told(desk.stripe.pay(there["id"]), "evt_1")
    assert await desk.now(made) == ("paid", "120.00", "0.00")


async def test_credit_note_for_the_full_amount_settles_the_stripe_invoice(desk: Desk) -> None:
    made, there = await handed(desk)
    await noted(desk, made)
    await desk.turn()
    await desk.told(dict(there), "evt_1")
    assert (there["status"], await desk.now(made)) == ("paid", ("paid", "0.00", "0.00"))


@pytest.mark.parametrize("when", ["", "before", "after"])
async def test_credit_note_on_a_paid_invoice_is_added_to_the_stripe_customer_balance(
    desk: Desk, when: str
) -> None:
    made, there = await handed(desk)
    await desk.told(desk.stripe.pay(there["id"]), "evt_1")
    await noted(desk, made, "50")
    for number in (1, 2, 3) if when else ():
        with cutting(desk.stripe, number, when):
            desk.pauses_end()
            await desk.turn()
    desk.pauses_end()
    await desk.turn()
    assert (len(desk.stripe.notes), desk.stripe.balance["cus_1"]) == (1, -60_00)
    assert await desk.now(made) == ("paid", "60.00", "0.00")
    # What is on the balance pays a part of the next invoice: here it is paid whole, by both together.
    desk.april.account.at_ms = int(at(5, 10).timestamp() * 1000)
    give(desk.april.url, desk.april.account, 10_000, unit_cost="0.01")
    desk.april.flush()
    await desk.april.on(at(6, 2))
    ids = {"organization": made["organization_id"]}
    second = await invoiced(desk.april, ids, date(2026, 5, 1), date(2026, 6, 1))
    await desk.turn()
    other = desk.stripe.invoices[max(desk.stripe.invoices, key=lambda name: int(name[3:]))]
    assert (other["amount_remaining"], desk.stripe.balance["cus_1"]) == (60_00, 0)
    await desk.told(desk.stripe.pay(other["id"]), "evt_2")
    assert await desk.now(second) == ("paid", "120.00", "0.00")
    [(recorded,)] = rows_of(desk.april.url, "SELECT sum(amount)::int FROM payment")
    assert recorded == (there["amount_paid"] + other["amount_paid"]) / 100 == 180
    assert await broken(desk.april.url) == []


async def test_standalone_credit_note_is_added_to_the_stripe_customer_balance_and_may_be_voided(
    desk: Desk,
) -> None:
    made, _ = await handed(desk)
    [base] = rows_of(desk.april.url, "SELECT invoice_id FROM handover")
    desk.april.is_sound = False  # a document of its own below zero, whatever it gives back
    rows_of(
        desk.april.url,
        "INSERT INTO invoice (organization_id, kind, status, number, customer, currency, period_start,"
        " period_end, total_amount, finalized_at) SELECT organization_id, 'credit_note', 'finalized',"
        " '2026-900001', customer, currency, period_start, period_end, -43.50, now() FROM invoice"
        " WHERE id = %s RETURNING id", base,
    )  # fmt: skip
    [(note_id,)] = rows_of(desk.april.url, "SELECT id FROM invoice WHERE number = '2026-900001'")
    of = {"id": note_id}
    assert await desk.now(of) == (None, "0.00", "-43.50")
    await desk.april.do("invoices", "apply", int(str(note_id)), invoice_id=made["id"], amount=Decimal("3.50"))
    with pytest.raises(Conflict, match="Some of its credit is used here"):
        await desk.april.do("invoices", "hand-over", note_id)
    await desk.april.do("invoices", "refund", note_id, amount=Decimal(40), reference="out")
    [(refund,)] = rows_of(desk.april.url, "SELECT id FROM payment")
    await desk.april.do("invoices", "void", made["id"])
    await desk.april.do("payments", "reverse", int(str(refund)), reference="back")
    await desk.april.do("invoices", "hand-over", note_id)
    # Stripe's balance has it from now on: it is used there alone, also on what becomes final here.
    with pytest.raises(Conflict, match="Stripe has this note's credit"):
        await desk.april.do("invoices", "refund", note_id, amount=Decimal(1), reference="out-2")
    other = await bought(desk.april, stripe_customer=None)
    assert await desk.now(other) == ("open", "0.00", "120.00")
    with cutting(desk.stripe, 2, "after"):
        await desk.turn()
    desk.pauses_end()
    await desk.turn()
    assert (len(desk.stripe.moves), desk.stripe.balance["cus_1"]) == (1, -43_50)
    assert await desk.now(of) == (None, "-43.50", "0.00")
    await desk.april.do("invoices", "void", note_id)
    await desk.turn()
    assert (len(desk.stripe.moves), desk.stripe.balance["cus_1"]) == (2, 0)
    assert rows_of(desk.april.url, "SELECT sum(amount)::int FROM payment") == [(0,)]
    assert rows_of(desk.april.url, "SELECT * FROM invariant_payments") == []


async def test_credit_note_waits_for_the_transfer_of_the_invoice_but_not_for_other_invoices(
    desk: Desk,
) -> None:
    first = await bought(desk.april, stripe_customer="cus_gone")
    second = await bought(desk.april, stripe_customer="cus_1")
    await noted(desk, first, "10")
    await desk.turn()
    assert desk.states() == [("invoice", "failed"), ("invoice", "done"), ("credit_note", "waiting")]
    assert [each["number"] for each in desk.stripe.invoices.values()] == [second["number"]]


async def test_stripe_invoice_collected_by_sending_an_invoice_has_a_due_date(desk: Desk) -> None:
    made = await bought(desk.april, stripe_customer="cus_1", due_days=365)
    desk.collector._collection = "send_invoice"
    desk.april.now = datetime.now(UTC)
    await desk.turn()
    [there] = desk.stripe.invoices.values()
    end = datetime.combine(made["due_date"], datetime.min.time(), UTC)
    if end > desk.april.now:
        assert int(there["sent"]["due_date"]) == int(end.timestamp()) + 86_399
    else:
        assert there["sent"]["days_until_due"] == "0"
