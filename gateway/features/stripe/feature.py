"""Stripe: it collects the payments of final documents, and reports them."""

from __future__ import annotations

from gateway.features.record import Feature, lazy, load
from gateway.features.stripe.settings import StripeSettings

FEATURE = Feature(
    name="stripe",
    tables=("handover", "handover_event", "checkout"),
    settings=StripeSettings,
    metrics=(
        ("handovers", "gauge", "Documents that Stripe is to have and has not.", ("state",)),
        ("handovers_oldest_seconds", "gauge", "Age of the oldest document that waits for Stripe.", ()),
        (
            "handover_events_remaining", "gauge",
            "Messages of Stripe of a day that leave something to a person.", (),
        ),
    ),
    resources=lazy("gateway.features.stripe.resources:RESOURCES"),
    actions=lambda: {"invoices": (load("gateway.features.stripe.resources:HAND_OVER"),)},
    subjects=lambda: {
        "handovers": load("persistence.stripe.collection:SUBJECT"),
        "handover-events": load("persistence.stripe.collection:EVENTS"),
        "checkouts": load("persistence.stripe.checkouts:CHECKOUTS"),
    },
    verbs=lambda: {"invoices": {"hand-over": load("persistence.stripe.collection:ask_collection")}},
    screens=(
        {
            "heading": "Billing", "name": "handovers", "title": "Stripe sync", "one": "hand-over",
            "columns": (
                "id", "organization_id", "invoice_id", "kind", "state", "attempts", "remote", "error",
                "created_at",
            ),
            "empty":
                "Nothing to sync yet. Final documents of organizations with a Stripe customer are synced.",
            "next_step": ("See the invoices", "/invoices"), "is_staffs": True,
        },
        {
            "heading": "Billing", "name": "handover-events", "title": "Stripe events", "one": "event",
            "columns": (
                "created_at", "organization_id", "invoice_id", "handover_id", "kind", "amount", "currency",
                "remains",
            ),
            "empty": "Stripe has sent no event yet.",
            "next_step": ("See the invoices", "/invoices"), "is_staffs": True,
        },
    ),
    is_on=lambda settings: bool(settings.select(StripeSettings).stripe_api_key),
    invoice_history=lambda: (load("gateway.features.stripe.administration:handed_over"),),
    invoice_listeners=lambda: (load("persistence.stripe.outbox:HandoverListener")(),),
    work=lazy("gateway.features.stripe.keeper:work"),
    routes=lazy("gateway.features.stripe.administration:routes"),
)  # fmt: skip
