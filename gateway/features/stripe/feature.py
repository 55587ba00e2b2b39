"""Stripe: it collects the money of final documents, and says what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    from gateway.admin.console.records import InvoiceHistory
    from gateway.admin.console.screens import Screen
    from gateway.admin.resources.resource import Action, Resource
    from gateway.run.keeper_doors import AdminParts, KeeperParts, Routes, Work
    from persistence.billing.listeners import InvoiceListener
    from persistence.entity import Entity, Verb


def _resources() -> Sequence[Resource]:
    from gateway.features.stripe.resources import RESOURCES  # noqa: PLC0415  # of people's processes alone

    return RESOURCES


def _actions() -> Mapping[str, Sequence[Action]]:
    from gateway.features.stripe.resources import HAND_OVER  # noqa: PLC0415  # as above

    return {"invoices": (HAND_OVER,)}


def _subjects() -> Mapping[str, Entity]:
    from persistence.stripe.checkouts import CHECKOUTS  # noqa: PLC0415  # as above
    from persistence.stripe.collection import EVENTS, SUBJECT  # noqa: PLC0415  # as above

    return {"handovers": SUBJECT, "handover-events": EVENTS, "checkouts": CHECKOUTS}


def _verbs() -> Mapping[str, Mapping[str, Verb]]:
    from persistence.stripe.collection import ask_collection  # noqa: PLC0415  # as above

    return {"invoices": {"hand-over": ask_collection}}


def _screens() -> Sequence[Screen]:
    from gateway.admin.console.screens import Screen  # noqa: PLC0415  # as above

    return (
        Screen(
            "Billing", "handovers", "Stripe sync", "hand-over",
            ("id", "organization_id", "invoice_id", "kind", "state", "attempts", "remote", "error",
             "created_at"),
            empty="Nothing to sync yet. Final documents of organizations with a Stripe customer are synced.",
            next_step=("See the invoices", "/invoices"),
            is_staffs=True,
        ),
        Screen(
            "Billing", "handover-events", "Stripe events", "event",
            ("created_at", "organization_id", "invoice_id", "handover_id", "kind", "amount", "currency",
             "remains"),
            empty="Stripe has sent no event yet.",
            is_more=True,
            next_step=("See the invoices", "/invoices"),
            is_staffs=True,
        ),
    )  # fmt: skip


def _invoice_history() -> Sequence[InvoiceHistory]:
    from gateway.features.stripe.administration import handed_over  # noqa: PLC0415  # as above

    return (handed_over,)


def _invoice_listeners() -> Sequence[InvoiceListener]:
    from persistence.stripe.outbox import HandoverListener  # noqa: PLC0415  # of processes that write invoices

    return (HandoverListener(),)


def _work(parts: KeeperParts) -> Work:
    from gateway.features.stripe.keeper import work  # noqa: PLC0415  # of keepers alone

    return work(parts)


def _routes(parts: AdminParts) -> Routes:
    from gateway.features.stripe.administration import routes  # noqa: PLC0415  # of people's processes alone

    return routes(parts)


FEATURE = Feature(
    name="stripe",
    tables=("handover", "handover_event", "checkout"),
    settings=(
        "stripe_api_key", "stripe_webhook_secret", "stripe_collection", "stripe_api_url",
        "stripe_events_keep_days", "stripe_checkout_max",
    ),
    metrics=(
        ("handovers", "gauge", "Documents that Stripe is to have and has not.", ("state",)),
        ("handovers_oldest_seconds", "gauge", "Age of the oldest document that waits for Stripe.", ()),
        (
            "handover_events_remaining", "gauge",
            "Messages of Stripe of a day that leave something to a person.", (),
        ),
    ),
    resources=_resources,
    actions=_actions,
    subjects=_subjects,
    verbs=_verbs,
    screens=_screens,
    is_on=lambda settings: bool(settings.stripe_api_key),
    invoice_history=_invoice_history,
    invoice_listeners=_invoice_listeners,
    work=_work,
    routes=_routes,
)  # fmt: skip
