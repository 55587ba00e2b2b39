"""Addresses that want to be told, and what they were told."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select

from gateway.core import addresses
from gateway.core.accounts.administration import Row
from gateway.core.webhook import TEST_EVENT
from gateway.errors import Unprocessable
from persistence import crud
from persistence.subject import Change, Subject, json_of, live, lock
from persistence.tables.operations import webhook, webhook_delivery
from persistence.tables.people import organization


def check_url(change: Change) -> None:
    """`Unprocessable` where the URL may not be called."""
    url = change.command.values.get("url")
    refused = addresses.refusal(str(url), private=change.private_addresses) if url is not None else None
    if refused is not None:
        raise Unprocessable(errors=(("url", refused),))


def send_test(change: Change) -> Row:
    """`/test`: have something sent now."""
    row = lock(change)
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
        json_of(
            _delivery.event, _delivery.state, _delivery.attempts, _delivery.response_status,
            _delivery.error, _delivery.created_at, _delivery.delivered_at,
        )
    )
    .where(_delivery.webhook_id == webhook.c.id, _delivery.attempts > 0)
    .order_by(_delivery.id.desc())
    .limit(1)
    .scalar_subquery()
)  # fmt: skip

WEBHOOKS = Subject(
    webhook,
    source=live(webhook, webhook, _last.label("last_delivery")),
    verbs={**crud.VERBS, "test": send_test},
    refers={"organization_id": organization},
    check_values=check_url,
)

WEBHOOK_DELIVERIES = Subject(webhook_delivery)
