"""Random histories of an invoice here and at Stripe: whatever is cut off, late or twice, the money agrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Conflict, Unprocessable
from gateway.features.stripe.keeper import Handovers
from gateway.features.stripe.service import StripeApi, StripeInvoices
from persistence.stripe.queue import HandoverQueue
from tests.features.stripe.stripe_server import KEY, cutting, stripe_server
from tests.features.stripe.test_handovers import Desk
from tests.persistence.april import at, opened
from tests.persistence.billing.drawn import some
from tests.persistence.billing.test_payments import bought
from tests.persistence.migrated import empty, migrated, shared

__all__ = ["migrated", "shared"]

CENTS = st.integers(1, 150_00)
STEPS = st.one_of(
    st.tuples(st.just("note"), CENTS),
    st.tuples(st.just("pay"), CENTS),
    st.tuples(st.just("tell"), st.integers(0, 50)),
    st.tuples(st.just("turn"), st.just(0)),
    st.tuples(st.just("before"), st.integers(1, 4)),
    st.tuples(st.just("after"), st.integers(1, 4)),
    st.tuples(st.just("forget"), st.just(0)),
)


class History:
    """Plays steps on both sides; `snapshots` are the events that Stripe has made of the invoice so far."""

    def __init__(self, desk: Desk, invoice: dict[str, Any]) -> None:
        self.desk, self.invoice = desk, invoice
        self.snapshots: list[dict[str, Any]] = []

    @property
    def there(self) -> dict[str, Any] | None:
        found = [each for each in self.desk.stripe.invoices.values() if each["status"] != "draft"]
        return found[0] if found else None

    async def step(self, what: str, size: int) -> None:
        stripe = self.desk.stripe
        if what == "note":
            await self._note(size)
        elif what == "pay" and self.there is not None and self.there["amount_remaining"]:
            self.snapshots.append(stripe.pay(self.there["id"], min(size, self.there["amount_remaining"])))
        elif what == "tell" and self.snapshots:
            which = size % len(self.snapshots)
            assert await self.desk.told(self.snapshots[which], f"evt_{which}")
        elif what == "forget":
            stripe.answered.clear()
        elif what in {"turn", "before", "after"}:
            self.desk.pauses_end()
            with cutting(stripe, size, what) if size else nullcontext():
                await self.desk.turn()

    async def _note(self, size: int) -> None:
        lines = [{"position": 1, "amount": Decimal(size).scaleb(-2)}]
        try:
            note = await self.desk.april.do("invoices", "credit-note", self.invoice["id"], lines=lines)
        except (Unprocessable, Conflict):
            return  # more than the line is left to give
        await self.desk.april.do("invoices", "finalize", note["id"])

    async def end(self) -> None:
        """All that waits is done, and all that was told arrives, the last first."""
        self.desk.pauses_end()
        await self.desk.turn()
        for which in reversed(range(len(self.snapshots))):
            assert await self.desk.told(self.snapshots[which], f"evt_{which}")
        self._agree(await self.desk.april.store.get("invoices", self.invoice["id"]))
        assert self.desk.april.broken() == []

    def _agree(self, here: Any) -> None:
        """Once, whole; and cash at Stripe, less what is on the balance, is what is paid here."""
        [there] = self.desk.stripe.invoices.values()
        assert {state for _, state in self.desk.states()} == {"done"}
        assert (there["total"], len(there["of_lines"])) == (120_00, 2)
        read = "SELECT -total_amount * 100 FROM invoice WHERE kind = 'credit_note' ORDER BY id"
        noted = self.desk.april.rows(read)
        notes = self.desk.stripe.notes.values()
        assert [note["amount"] for note in notes] == [int(str(amount).split(".")[0]) for (amount,) in noted]
        kept = there["amount_paid"] - sum(note["post_payment_amount"] for note in notes)
        assert self.desk.stripe.balance.get("cus_1", 0) == -sum(note["post_payment_amount"] for note in notes)
        assert Decimal(str(here["amount_paid"])).scaleb(2) == kept
        assert Decimal(str(here["amount_due"])).scaleb(2) == there["amount_remaining"]
        assert (here["payment_status"] == "paid") == (there["amount_remaining"] == 0)


@some(6)
@given(st.lists(STEPS, min_size=5, max_size=16))
def test_random_invoice_changes_end_with_the_same_amounts_at_stripe(
    shared: str, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(shared, steps))


async def _play(url: str, steps: list[tuple[str, int]]) -> None:
    async with _desk(url) as desk:
        history = History(desk, await bought(desk.april, stripe_customer="cus_1"))
        for what, size in steps:
            await history.step(what, size)
        await history.end()


@asynccontextmanager
async def _desk(url: str) -> AsyncIterator[Desk]:
    empty(url)
    async with opened(url, at(3, 25)) as made, stripe_server() as stripe:
        api, queue = StripeApi(lambda: KEY, stripe.url), HandoverQueue(made.pool, made.store)
        collector = StripeInvoices(api, "charge_automatically", lambda: datetime.now(UTC))
        loop = Handovers(queue, collector, lambda *_, **__: None)
        yield Desk(made, stripe, queue, collector, loop, [])
        await api.aclose()
