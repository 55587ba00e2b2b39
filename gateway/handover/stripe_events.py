"""What Stripe tells of invoices: its signature is verified by its own library before a byte is believed."""

from __future__ import annotations

import json
from typing import Any

import stripe

from gateway.core.billing.handover import Collected
from gateway.errors import AdminRefusal, Unauthorized
from gateway.handover.stripe_amounts import from_stripe
from gateway.handover.stripe_api import MARK

TOLERANCE_S = 300
NAME_CHARS_MAX = 255


class StripeEvents:
    """Reads what comes to the endpoint that Stripe was given."""

    def __init__(self, secret: str, *, tolerance_s: int = TOLERANCE_S) -> None:
        self._secret = secret
        self._tolerance_s = tolerance_s

    def read(self, body: bytes, signature: str) -> Collected | None:
        """What is told; None where it is about no invoice.

        `Unauthorized` where it is not Stripe's, or older than the tolerance.
        """
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._secret, self._tolerance_s)
        except (stripe.SignatureVerificationError, UnicodeDecodeError) as error:
            raise Unauthorized("The signature is not Stripe's, or it is too old.") from error
        try:
            event = json.loads(body)
            return _collected(event) if event["data"]["object"]["object"] == "invoice" else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdminRefusal("The body is no event of Stripe's.") from error


def _collected(event: Any) -> Collected | None:
    invoice, name, kind = event["data"]["object"], str(event["id"]), str(event["type"])
    if not invoice.get("id") or not kind.startswith("invoice.") or len(name) > NAME_CHARS_MAX:
        return None
    currency = str(invoice["currency"]).upper()
    settled = None
    if invoice["status"] == "paid" or int(invoice["amount_paid"]) > 0:
        # What is neither to be paid any more nor was taken back: by card, from a balance, or elsewhere.
        less = int(invoice["amount_remaining"]) + int(invoice["pre_payment_credit_notes_amount"])
        settled = from_stripe(int(invoice["total"]) - less, currency)
    mark = (invoice.get("metadata") or {}).get(MARK, "")
    return Collected(
        name, kind, str(invoice["id"]), str(mark), currency, settled,
        given_up=kind == "invoice.marked_uncollectible", void=kind == "invoice.voided",
    )  # fmt: skip
