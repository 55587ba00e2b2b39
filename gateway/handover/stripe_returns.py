"""Money that went back to customers at Stripe, by refunds and disputes: what it is of each invoice by now.

A message of Stripe's says of which payment it is, and a payment may be of several invoices. So Stripe is
asked what each of them stands at: messages may come twice, late and in any order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import stripe

from gateway.core.billing.handover import Collected, Returned
from gateway.errors import CollectorUnavailable
from gateway.handover.stripe_amounts import from_stripe
from gateway.handover.stripe_api import Object, Params, StripeApi, Unfinished, every, shown
from gateway.handover.stripe_events import mark_of, settled_of

# The money stayed, or came back.
_NOT_GIVEN = frozenset({"failed", "canceled"})
_WON = frozenset({"won", "prevented", "warning_closed", "warning_needs_response", "warning_under_review"})


class StripeReturns:
    """Looks up what became of payments."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api

    async def look_up(self, told: Returned) -> Sequence[Collected]:
        """What each invoice of a payment stands at; `CollectorUnavailable` where Stripe does not say."""
        try:
            invoices = dict.fromkeys([each["invoice"] async for each in self._paid(_by(told.payment))])
            return [await self._stands(told, invoice) for invoice in invoices]
        except (stripe.StripeError, Unfinished, *self._api.broken_off) as error:
            why = shown(str(error) or type(error).__name__)
            raise CollectorUnavailable(f"Stripe does not say which invoice it is about: {why}") from error

    async def _stands(self, told: Returned, invoice_id: str) -> Collected:
        invoice = (await self._api.v1.invoices.retrieve_async(invoice_id)).to_dict()
        currency = str(invoice["currency"]).upper()
        back = 0
        async for each in self._paid({"invoice": invoice_id, "status": "paid"}):
            payment = each["payment"].get("payment_intent")
            if payment is not None:
                back += await self._share(payment, invoice_id)
        name = f"{told.name}:{invoice_id}"
        return Collected(
            name, told.kind, invoice_id, mark_of(invoice), currency, settled_of(invoice),
            given_back=from_stripe(back, currency),
        )  # fmt: skip

    async def _share(self, payment: str, invoice_id: str) -> int:
        """What of an invoice went back of a payment; of several invoices, of one after the other."""
        left = await self._given_back(payment)
        async for each in self._paid(_by(payment)):
            part = min(left, int(each["amount_paid"] or 0))
            if each["invoice"] == invoice_id:
                return part
            left -= part
        return 0

    async def _given_back(self, payment: str) -> int:
        of = {"payment_intent": payment}
        refunds = self._api.v1.refunds.list_async
        disputes = self._api.v1.disputes.list_async
        given = [
            int(each["amount"])
            async for each in every(lambda page: refunds(of | page))
            if each["status"] not in _NOT_GIVEN
        ]
        given += [
            int(each["amount"])
            async for each in every(lambda page: disputes(of | page))
            if each["status"] not in _WON
        ]
        return sum(given)

    def _paid(self, of: Params) -> AsyncIterator[Object]:
        listed = self._api.v1.invoice_payments.list_async
        return every(lambda page: listed(of | page))


def _by(payment: str) -> Params:
    return {"payment": {"type": "payment_intent", "payment_intent": payment}, "status": "paid"}
