"""Hands final documents over to Stripe: an invoice is drafted, filled, compared to the cent and finalized.

Each step looks at what is there. What was made before is found by its mark, also where no answer came of it,
and where Stripe has forgotten the key of the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Literal

from gateway.core.billing.handover import (
    ATTEMPT_S_MAX,
    CANCELED,
    DONE,
    WAITING,
    Handover,
    Line,
    Outcome,
    folded,
)
from gateway.core.billing.handover import LINES_MAX as LINES_AT_ONCE
from gateway.handover.stripe_amounts import Unspeakable, from_stripe, to_stripe
from gateway.handover.stripe_api import (
    Object,
    Params,
    StripeApi,
    Unfinished,
    every,
    existing,
    made,
    marks,
    once,
)

Collection = Literal["charge_automatically", "send_invoice"]
# Stripe's clock and ours: what a hand-over made is not much older than itself.
SINCE = timedelta(days=1)
DESCRIPTION_CHARS_MAX = 500
POSITION = "tollkeeper_line"

# Tells which document there a hand-over is about, as soon as that is known.
Note = Callable[[str], Awaitable[None]]


class StripeInvoices:
    """The way of documents to Stripe."""

    def __init__(
        self,
        api: StripeApi,
        collection: Collection,
        now: Callable[[], datetime],
        *,
        lines_at_once: int = LINES_AT_ONCE,
    ) -> None:
        self._api = api
        self._collection = collection
        self._now = now
        self._lines_at_once = lines_at_once

    async def hand_over(self, handover: Handover, note: Note) -> Outcome:
        """Make one attempt; whatever the other side does is told, not raised."""
        try:
            async with asyncio.timeout(ATTEMPT_S_MAX):
                return await self._api.settled(self._handed(handover, note))
        except TimeoutError:
            return Outcome(WAITING, f"not done within {ATTEMPT_S_MAX:g} seconds")

    async def _handed(self, handover: Handover, note: Note) -> Outcome:
        try:
            if handover.kind == "invoice":
                return await self._invoice(handover, note)
            if handover.kind == "credit_note":
                return await self._credit_note(handover)
            if handover.about is None:
                return Outcome(CANCELED, "what it is about was never handed over")
            if handover.kind == "void" and handover.paper.kind == "credit_note":
                return await self._void_note(handover, handover.about)
            return await self._ended(handover, handover.about)
        except Unspeakable as error:
            raise Unfinished(str(error)) from error

    async def _invoice(self, handover: Handover, note: Note) -> Outcome:
        paper = handover.paper
        there = await self._known(handover)
        if paper.status == "void" and (there is None or there["status"] == "draft"):
            if there is not None:
                await self._api.v1.invoices.delete_async(there["id"])
            return Outcome(CANCELED, "made void before it was handed over")
        is_new = there is None
        if there is None:
            asked = self._draft(handover)
            there = (await self._api.v1.invoices.create_async(asked, once(handover, "create"))).to_dict()
        await note(there["id"])
        if there["status"] == "draft":
            there = await self._filled(handover, there, set() if is_new else await self._positions(there))
        _compare(handover, there)
        if there["status"] == "void":
            raise Unfinished(f"somebody made {there['id']} void at Stripe")
        if there["status"] == "draft":
            advance = {"auto_advance": True}
            final = self._api.v1.invoices.finalize_invoice_async
            there = (await final(there["id"], advance, once(handover, "finalize"))).to_dict()
        return Outcome(DONE, remote_id=there["id"], url=there.get("hosted_invoice_url"))

    async def _known(self, handover: Handover) -> Object | None:
        """What this hand-over made before, as it stands now."""
        if handover.remote_id is not None:
            there = await existing(self._api.v1.invoices.retrieve_async(handover.remote_id))
            if there is not None:
                return there
            # Somebody deleted the draft: it is looked for, and made again.
        since = int((handover.created_at - SINCE).timestamp())
        of = {"customer": handover.customer, "created": {"gte": since}}
        return await made(handover, lambda page: self._api.v1.invoices.list_async(of | page))

    def _draft(self, handover: Handover) -> Params:
        paper = handover.paper
        last = paper.period_end - timedelta(days=1)
        asked: Params = {
            "customer": handover.customer,
            "currency": paper.currency.lower(),
            "number": paper.number,
            "description": f"{paper.period_start} to {last}",
            # Not before it is whole: Stripe would finalize a draft within the hour.
            "auto_advance": False,
            "automatic_tax": {"enabled": False},
            "collection_method": self._collection,
            # Nothing is taken off, and nothing put in, that is not on our paper.
            "discounts": "",
            "pending_invoice_items_behavior": "exclude",
            "effective_at": int(paper.finalized_at.timestamp()),
            "metadata": marks(handover),
        }
        if self._collection == "send_invoice":
            asked |= self._due(handover)
        return asked

    def _due(self, handover: Handover) -> Params:
        """Until when it is to be paid; Stripe takes no day that is over."""
        day = handover.paper.due_date
        if day is None:
            return {"days_until_due": 0}
        end = datetime.combine(day, time(23, 59, 59), UTC)
        return {"due_date": int(end.timestamp())} if end > self._now() else {"days_until_due": 0}

    async def _positions(self, there: Object) -> set[str]:
        """The lines of ours that a draft has already."""
        lines = partial(self._api.v1.invoices.line_items.list_async, there["id"])
        return {(one.get("metadata") or {}).get(POSITION, "") async for one in every(lines)}

    async def _filled(self, handover: Handover, there: Object, has: set[str]) -> Object:
        """Put in the lines that a draft has not yet."""
        currency = handover.paper.currency
        lines = [line for line in folded(handover.paper.lines) if str(line.position) not in has]
        for at in range(0, len(lines), self._lines_at_once):
            some = [_line(line, currency) for line in lines[at : at + self._lines_at_once]]
            step = once(handover, f"lines-{some[0]['metadata'][POSITION]}")
            there = (
                await self._api.v1.invoices.add_lines_async(there["id"], {"lines": some}, step)
            ).to_dict()
        return there

    async def _credit_note(self, handover: Handover) -> Outcome:
        currency, amount = handover.paper.currency, -handover.paper.total
        if handover.about is None:
            return await self._to_balance(handover, -to_stripe(amount, currency))
        there = await made(
            handover, lambda page: self._api.v1.credit_notes.list_async({"invoice": handover.about} | page)
        )
        if there is None:
            if handover.paper.status == "void":
                return Outcome(CANCELED, "made void before it was handed over")
            invoice = (await self._api.v1.invoices.retrieve_async(handover.about)).to_dict()
            asked = _note(handover, to_stripe(amount, currency), int(invoice["amount_remaining"]))
            there = (await self._api.v1.credit_notes.create_async(asked, once(handover, "create"))).to_dict()
        credited = from_stripe(int(there.get("post_payment_amount") or 0), currency)
        return Outcome(DONE, remote_id=there["id"], url=there.get("pdf"), credited=credited)

    async def _to_balance(self, handover: Handover, amount: int) -> Outcome:
        """What gives back days of several invoices is no note of one: the customer's next invoice is less."""
        if handover.paper.status == "void" and handover.kind == "credit_note":
            return Outcome(CANCELED, "made void before it was handed over")
        moves = self._api.v1.customers.balance_transactions
        there = await made(handover, partial(moves.list_async, handover.customer))
        if there is None:
            asked = {
                "amount": amount, "currency": handover.paper.currency.lower(),
                "description": f"Credit note {handover.paper.number}", "metadata": marks(handover),
            }  # fmt: skip
            done = await moves.create_async(handover.customer, asked, once(handover, "create"))
            there = done.to_dict()
        return Outcome(DONE, remote_id=there["id"])

    async def _void_note(self, handover: Handover, about: str) -> Outcome:
        if about.startswith("cbtxn_"):
            return await self._to_balance(handover, to_stripe(-handover.paper.total, handover.paper.currency))
        there = (await self._api.v1.credit_notes.retrieve_async(about)).to_dict()
        if there["status"] != "void":
            await self._api.v1.credit_notes.void_credit_note_async(about, {}, once(handover, "void"))
        return Outcome(DONE, remote_id=about)

    async def _ended(self, handover: Handover, about: str) -> Outcome:
        """Bring an invoice to the end it has here: void, paid to somebody else, or given up."""
        there = (await self._api.v1.invoices.retrieve_async(about)).to_dict()
        invoices, key = self._api.v1.invoices, once(handover, handover.kind)
        stands = "deleted" if there.get("deleted") else there["status"]
        if handover.kind == "void" and stands == "draft":
            await invoices.delete_async(about)
        elif handover.kind == "void" and stands in {"open", "uncollectible"}:
            await invoices.void_invoice_async(about, {}, key)
        elif handover.kind == "paid" and stands in {"open", "uncollectible"}:
            await invoices.pay_async(about, {"paid_out_of_band": True}, key)
        elif handover.kind == "uncollectible" and stands == "open":
            await invoices.mark_uncollectible_async(about, {}, key)
        elif stands == "paid" and handover.kind == "void":
            raise Unfinished(f"{about} is paid at Stripe: give the money back there, or record it here")
        return Outcome(DONE, remote_id=about)


def _compare(handover: Handover, there: Object) -> None:
    """`Unfinished` where Stripe would collect something else than the document says."""
    paper = handover.paper
    total = from_stripe(int(there["total"]), paper.currency)
    if there["currency"].upper() != paper.currency or total != paper.total:
        found = f"{there['currency'].upper()} {total.normalize():f}"
        wanted = f"{paper.currency} {paper.total.normalize():f}"
        raise Unfinished(f"{there['id']} comes to {found} instead of {wanted}")


def _line(line: Line, currency: str) -> Params:
    asked = {
        "amount": to_stripe(line.amount, currency),
        "description": line.description[:DESCRIPTION_CHARS_MAX],
        "discountable": False,
        "metadata": {POSITION: str(line.position)},
    }
    if line.start is None or line.end is None:
        return asked
    # Both are within it: it ends with the last second of its last day.
    end = datetime.combine(line.end, time(), UTC) - timedelta(seconds=1)
    start = datetime.combine(line.start, time(), UTC)
    return asked | {"period": {"start": int(start.timestamp()), "end": int(end.timestamp())}}


def _note(handover: Handover, amount: int, remaining: int) -> Params:
    """A credit note; what was paid already goes to the customer's balance."""
    asked: Params = {
        "invoice": handover.about,
        "amount": amount,
        "memo": f"Credit note {handover.paper.number}",
        "metadata": marks(handover),
    }
    paid = amount - max(0, min(amount, remaining))
    return asked | ({"credit_amount": paid} if paid else {})
