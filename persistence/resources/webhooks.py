"""Addresses that want to be told, and what they were told."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select

from gateway.core import addresses
from gateway.core.accounts.administration import Row
from gateway.core.alerts import mail
from gateway.core.alerts.webhook import TEST_EVENT
from gateway.errors import Conflict, Unprocessable
from persistence import crud
from persistence.subject import Change, Subject, json_of, live, lock
from persistence.tables.operations import webhook, webhook_delivery
from persistence.tables.people import organization

# With so many messages waiting, nobody adds one by hand.
TESTS_MAX = 100

_delivery = webhook_delivery.c


def check_url(change: Change) -> None:
    """`Unprocessable` where the URL may not be called, or no mail goes there."""
    url = change.command.values.get("url")
    refused = _refusal(str(url), change) if url is not None else None
    if refused is not None:
        raise Unprocessable(errors=(("url", refused),))


def _refusal(url: str, change: Change) -> str | None:
    if not mail.is_mail(url):
        return addresses.refusal(url, private=change.private_addresses)
    if not change.mail_allowed:
        return "must begin with https://, since no mail server is set up: TOLLKEEPER_SMTP_URL is not set"
    return mail.refusal(url, private=change.private_addresses)


def send_test(change: Change) -> Row:
    """`/test`: have something sent now; `Conflict` where too much waits already."""
    row = lock(change)
    waiting = select(_delivery.id).where(_delivery.webhook_id == change.row_id, _delivery.state == "pending")
    if len(change.connection.execute(waiting.limit(TESTS_MAX)).all()) >= TESTS_MAX:
        raise Conflict(f"{TESTS_MAX} messages or more wait for it already.")
    change.connection.execute(
        insert(webhook_delivery).values(
            webhook_id=change.row_id, event=TEST_EVENT, payload={"webhook_id": change.row_id},
            occasion=f"test:{uuid4()}",
        )
    )  # fmt: skip
    return row


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
