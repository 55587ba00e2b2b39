"""What Stripe tells of invoices and money: its own library verifies the signature before it is believed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import stripe

from gateway.core.billing.handover import Collected, Returned
from gateway.errors import AdminRefusal, Unauthorized
from gateway.handover.stripe_amounts import from_stripe
from gateway.handover.stripe_api import MARK

TOLERANCE_S = 300
# An invoice's name may be put behind it.
NAME_CHARS_MAX = 255
# What money goes back by.
_RETURNS = frozenset({"charge", "refund", "dispute"})
_RETURNED = ("charge.refund", "refund.", "charge.dispute.")


class StripeEvents:
    """Reads what comes to the endpoint that Stripe was given, signed with the secret of now."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        tolerance_s: int = TOLERANCE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secret, self._clock = secret, clock
        self._tolerance_s = tolerance_s

    def read(self, body: bytes, signature: str) -> Collected | Returned | None:
        """What is told; None where it is about no invoice and no money that went back.

        `Unauthorized` where it is not Stripe's, or older than the tolerance or as much ahead.
        """
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._secret(), self._tolerance_s)
            if _signed_at(signature) > self._clock() + self._tolerance_s:
                raise Unauthorized("The signature is of the future.")
        except (stripe.SignatureVerificationError, UnicodeDecodeError) as error:
            raise Unauthorized("The signature is not Stripe's, or it is too old.") from error
        try:
            event = json.loads(body)
            about = event["data"]["object"]["object"]
            if about in _RETURNS:
                return _returned(event)
            return _collected(event) if about == "invoice" else None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise AdminRefusal("The body is no event of Stripe's.") from error


def _signed_at(signature: str) -> int:
    """The moment of a verified signature, in seconds: its library looks no further than its age."""
    return int(next(part[2:] for part in signature.split(",") if part.startswith("t=")))


def _collected(event: Any) -> Collected | None:
    invoice, name, kind = event["data"]["object"], str(event["id"]), str(event["type"])
    if not invoice.get("id") or not kind.startswith("invoice.") or len(name) > NAME_CHARS_MAX:
        return None
    return Collected(
        name, kind, str(invoice["id"]), mark_of(invoice), str(invoice["currency"]).upper(),
        settled_of(invoice), given_up=kind == "invoice.marked_uncollectible", void=kind == "invoice.voided",
    )  # fmt: skip


def _returned(event: Any) -> Returned | None:
    """Of which payment money went back; None where it is of none that invoices have."""
    payment, name, kind = event["data"]["object"].get("payment_intent"), str(event["id"]), str(event["type"])
    if not payment or not kind.startswith(_RETURNED) or len(name) > NAME_CHARS_MAX:
        return None
    return Returned(name, kind, str(payment))


def mark_of(invoice: Mapping[str, Any]) -> str:
    """Which hand-over made an invoice; empty where none did."""
    return str((invoice.get("metadata") or {}).get(MARK, ""))


def settled_of(invoice: Mapping[str, Any]) -> Decimal | None:
    """What was paid of an invoice; None where nothing was."""
    if invoice["status"] != "paid" and int(invoice["amount_paid"]) <= 0:
        return None
    # What is neither to be paid any more nor was taken back: by card, from a balance, or elsewhere.
    less = int(invoice["amount_remaining"]) + int(invoice["pre_payment_credit_notes_amount"])
    return from_stripe(int(invoice["total"]) - less, str(invoice["currency"]).upper())
