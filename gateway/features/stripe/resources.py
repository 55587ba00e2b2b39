"""The resources for hand-overs to Stripe and for Stripe's reports about them."""

from __future__ import annotations

from pydantic import Field

from gateway.admin.resources.resource import Action, Resource, filters
from gateway.admin.resources.values import Id, Instant, Out, Paid
from gateway.core.accounts.administration import BILLING, access
from gateway.features.stripe.handover import CANCELED, FAILED, KINDS, STATES


class Handover(Out):
    """One document, or one change of a document, that is handed over to Stripe."""

    id: Id
    organization_id: Id
    invoice_id: Id = Field(description="The document.")
    about_id: Id = Field(description="The invoice it is about; those of one are done one after the other.")
    kind: str = Field(
        description="invoice, credit_note, void, paid (somewhere else than at Stripe) or uncollectible."
    )
    customer: str = Field(description="Whose it is at Stripe.")
    state: str = Field(
        description="waiting, done, failed (a person has to look) or canceled (it is not needed any more)."
    )
    attempts: int
    next_attempt_at: Instant
    error: str | None = Field(description="What the last attempt failed by.")
    remote: str | None = Field(description="What Stripe calls what was made of it.")
    url: str | None = Field(description="Where its customer finds it.")
    created_at: Instant
    done_at: Instant | None


class HandoverEvent(Out):
    """A report of Stripe about a document that was handed over."""

    id: Id
    organization_id: Id
    invoice_id: Id
    handover_id: Id
    name: str = Field(description="Stripe's event id, by which an event is taken once.")
    kind: str
    amount: Paid = Field(description="The part recorded as a payment for it; below zero, what left payments.")
    currency: str
    remains: str | None = Field(description="What of it could not be done here, for a person.")
    created_at: Instant


RESOURCES = (
    Resource(
        name="handovers",
        access=access(BILLING, ours=("retry", "cancel")),
        description="Hand-overs to Stripe: final documents, and their outcomes.",
        out=Handover,
        named_by="id",
        refers={"about_id": "invoices"},
        filters=filters(
            "organization_id invoice_id about_id kind state remote:text", kind=KINDS, state=STATES
        ),
        actions=(
            Action(
                "retry", "Start a failed or canceled one over; what is there already is found",
                offered=lambda row: row["state"] in {FAILED, CANCELED},
            ),
            Action(
                "cancel", "Leave a failed one, or one not begun, and what waits behind its invoice",
                offered=lambda row: row["state"] == FAILED or row["attempts"] == 0,
                confirmed="Stripe does not get it, nor what waits behind it.",
            ),
        ),
    ),
    Resource(
        name="handover-events",
        access=access(),
        description="What Stripe told of invoices that were handed over.",
        out=HandoverEvent,
        refers={"handover_id": "handovers"},
        filters=filters("organization_id invoice_id handover_id kind:text name:text"),
    ),
)  # fmt: skip
HAND_OVER = Action(
    "hand-over", "Have Stripe collect one that was final before Stripe was set up",
    offered=lambda row: row["status"] == "finalized", done="Stripe gets it.",
)  # fmt: skip
