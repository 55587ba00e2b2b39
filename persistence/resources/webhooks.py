"""Addresses that want to be told, and what they were told."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import func, insert, select

from gateway.core import addresses
from gateway.core.accounts.administration import Row
from gateway.core.webhook import TEST_EVENT
from gateway.errors import Unprocessable
from persistence import crud
from persistence.subject import Change, Subject, Verb, equals, lock
from persistence.tables.operations import webhook, webhook_delivery
from persistence.tables.people import organization


def with_an_allowed_url(verb: Verb) -> Verb:
    """Check that the URL may be called before the verb runs."""

    def checked(change: Change) -> Row:
        url = change.command.values.get("url")
        if url is not None:
            refused = addresses.refusal(str(url), private=change.private_addresses)
            if refused is not None:
                raise Unprocessable(errors=(("url", refused),))
        return verb(change)

    return checked


def send_test(change: Change) -> Row:
    """`/test`: have something sent now."""
    row = lock(change, WEBHOOKS, webhook)
    change.connection.execute(
        insert(webhook_delivery).values(
            webhook_id=change.row_id, event=TEST_EVENT, payload={"webhook_id": change.row_id},
            occasion=f"test:{uuid4()}",
        )
    )  # fmt: skip
    return row


_delivery = webhook_delivery.c
_last = (
    select(
        func.jsonb_build_object(
            "event", _delivery.event,
            "state", _delivery.state,
            "attempts", _delivery.attempts,
            "response_status", _delivery.response_status,
            "error", _delivery.error,
            "created_at", _delivery.created_at,
            "delivered_at", _delivery.delivered_at,
        )
    )
    .where(_delivery.webhook_id == webhook.c.id, _delivery.attempts > 0)
    .order_by(_delivery.id.desc())
    .limit(1)
    .scalar_subquery()
)  # fmt: skip
_verbs = crud.verbs(lambda: WEBHOOKS, webhook, refers={"organization_id": organization})

WEBHOOKS: Subject = Subject(
    source=select(webhook, _last.label("last_delivery")).where(webhook.c.deleted_at.is_(None)),
    id=webhook.c.id,
    time=webhook.c.created_at,
    order=(("id", webhook.c.id),),
    filters={"organization_id": equals(webhook.c.organization_id)},
    verbs={
        "create": with_an_allowed_url(_verbs["create"]),
        "change": with_an_allowed_url(_verbs["change"]),
        "delete": _verbs["delete"],
        "test": send_test,
    },
)

WEBHOOK_DELIVERIES: Subject = Subject(
    source=select(webhook_delivery),
    id=_delivery.id,
    time=_delivery.created_at,
    order=(("id", _delivery.id),),
    filters={
        "webhook_id": equals(_delivery.webhook_id),
        "event": equals(_delivery.event),
        "state": equals(_delivery.state),
    },
)
