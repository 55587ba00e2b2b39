"""Webhooks and mail addresses that receive messages, and the delivered messages.

Addresses that staff entered get mail. Addresses that an organization's people entered get mail once they
consented by a link in a confirmation mail.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, func, insert, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from gateway.core import network
from gateway.core.accounts.administration import Row
from gateway.core.alerts import messages
from gateway.core.alerts.events.webhooks import CONSENT_EVENT, TEST_EVENT
from gateway.core.alerts.messages import HOURLY_OF_ORGANIZATION_MAX, HOURLY_OF_WEBHOOK_MAX
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, json_of, live, lock
from persistence.tables import mail_consent, organization, webhook, webhook_delivery

# With this many messages waiting, no test message may be added.
TESTS_MAX = 100

_delivery, _consent, _here = webhook_delivery.c, mail_consent.c, webhook.c
_HOUR_AGO, _DAY_AGO = func.now() - timedelta(hours=1), func.now() - timedelta(days=1)
_THIS_HOUR = func.date_trunc("hour", func.now())
# Advisory lock class 7814: requests for consent, one at a time, so that all maxima hold.
_ASKING = text("SELECT pg_advisory_xact_lock(7814)")


def check_url(change: EntityWrite) -> None:
    """Raise `Unprocessable` if the URL may not be called, or no mail can be sent to it."""
    url = change.command.values.get("url")
    refused = _refuse_url(str(url), change) if url is not None else None
    if refused is not None:
        raise Unprocessable(errors=(("url", refused),))


def _refuse_url(url: str, change: EntityWrite) -> str | None:
    """Return why a webhook may not have this URL; None if it may."""
    if not messages.is_mail(url):
        return network.address_refusal(url, private=change.rules.private_addresses)
    if not change.rules.mail_allowed:
        return "must begin with https://, since no mail server is set up: TOLLKEEPER_SMTP_URL is not set"
    if not (change.rules.mail_asks or change.by_staff):
        return (
            "must begin with https://: mail needs a link to agree by, and TOLLKEEPER_CONSOLE_URL is not set"
        )
    return messages.recipient_refusal(url, private=change.rules.private_addresses)


def create(change: EntityWrite) -> Row:
    """Store a webhook; mail addresses are asked for consent unless staff entered them."""
    return _addressed(change, entity.create(change))


def change_row(change: EntityWrite) -> Row:
    before = lock(change)
    row = entity.change_row(change)
    return row if row["url"] == before["url"] else _addressed(change, row)


def send_test(change: EntityWrite) -> Row:
    """Send a test message (`/test`), and ask unconfirmed addresses again; `Conflict` if too many wait."""
    row = lock(change)
    waiting = select(_delivery.id).where(_delivery.webhook_id == change.row_id, _delivery.state == "pending")
    if len(change.connection.execute(waiting.limit(TESTS_MAX)).all()) >= TESTS_MAX:
        raise Conflict(f"{TESTS_MAX} messages or more wait for it already.")
    unconfirmed = _unconfirmed(row)
    asked = _ask(change, row)
    if not unconfirmed or len(unconfirmed) < len(messages.recipients_of(str(row["url"]))):
        _send(change, row, TEST_EVENT, {"webhook_id": change.row_id}, f"test:{uuid4()}")
    elif not asked:
        raise Conflict("Its addresses were asked by mail and have not agreed. They are asked again in a day.")
    return row


def _addressed(change: EntityWrite, row: Row) -> Row:
    change.connection.execute(update(webhook).where(_here.id == row["id"]).values(ours=change.by_staff))
    row = change.fetch(int(str(row["id"])))
    _ask(change, row)
    return row


def _unconfirmed(row: Row) -> list[str]:
    found = row["unconfirmed"]
    assert isinstance(found, list)
    return found


def _ask(change: EntityWrite, row: Row) -> bool:
    """Request consent from addresses without it, unless requested within a day; return whether any were.

    Raise `Conflict` beyond the maximum for a mailbox or for the organization.
    """
    if not _unconfirmed(row):
        return False
    connection, owner = change.connection, row["organization_id"]
    connection.execute(_ASKING)
    lately = select(_consent.address).where(_consent.organization_id == owner, _consent.asked_at > _DAY_AGO)
    known = {*connection.scalars(lately)}
    asked = [each for each in dict.fromkeys(_unconfirmed(row)) if each not in known]
    this_hour = _count(connection, _consent.organization_id == owner, _consent.asked_at > _HOUR_AGO)
    if this_hour + len(asked) > messages.ASKED_OF_ORGANIZATION_MAX:
        raise Conflict(
            f"{messages.ASKED_OF_ORGANIZATION_MAX} addresses at most are asked an hour: try again later."
        )
    for address in asked:
        mailbox = messages.mailbox_of(address)
        if (
            _count(connection, _consent.mailbox == mailbox, _consent.asked_at > _DAY_AGO)
            >= messages.ASKED_OF_MAILBOX_MAX
        ):
            raise Conflict(f"{address} was asked by mail already: try again in a day.")
        values = {"organization_id": owner, "address": address, "mailbox": mailbox}
        again = {"asked_at": func.now(), "digest": None, "expires_at": None}
        connection.execute(
            upsert(mail_consent)
            .values(values)
            .on_conflict_do_update(index_elements=[*mail_consent.primary_key], set_=again)
        )
        said = {"organization_id": owner, "address": address}
        _send(change, row, CONSENT_EVENT, said, f"consent:{uuid4()}")
    return bool(asked)


def _send(change: EntityWrite, row: Row, event: str, payload: Row, occasion: str) -> None:
    """Queue a message that a person requested; raise `Conflict` if too many were queued this hour."""
    connection, owner = change.connection, row["organization_id"]
    here = _here.id == row["id"]
    if owner is not None:
        counted = select(_here.id, _here.hourly).where(
            _here.organization_id == owner, _here.hour == _THIS_HOUR
        )
        by_webhook: dict[object, int] = {row.id: row.hourly for row in connection.execute(counted)}
        if by_webhook.get(row["id"], 0) >= HOURLY_OF_WEBHOOK_MAX or (
            sum(by_webhook.values()) >= HOURLY_OF_ORGANIZATION_MAX
        ):
            raise Conflict("So many messages were sent in this hour already: try again in the next one.")
        more = by_webhook.get(row["id"], 0) + 1
        connection.execute(update(webhook).where(here).values(hourly=more, hour=_THIS_HOUR))
    sent = {"webhook_id": row["id"], "event": event, "payload": payload, "occasion": occasion}
    connection.execute(insert(webhook_delivery).values(sent))


def _count(connection: Connection, *where: Any) -> int:
    return int(connection.scalar(select(func.count()).select_from(mail_consent).where(*where)) or 0)


def consent_by(connection: Connection, digest: str) -> Row | None:
    """Return organization, address and time of consent for a valid link's digest; None if it is invalid."""
    result = connection.execute(
        select(organization.c.name.label("organization"), _consent.address, _consent.given_at)
        .join(organization, organization.c.id == _consent.organization_id)
        .where(_consent.digest == digest, _IS_GOOD, organization.c.deleted_at.is_(None))
    ).mappings()
    row = result.first()
    return dict(row) if row is not None else None


def consent(connection: Connection, digest: str, *, given: bool) -> bool:
    """Store (`given`) or withdraw consent to mail for the address of a link; False if the link is invalid."""
    said = func.coalesce(_consent.given_at, func.now()) if given else None
    agreed = update(mail_consent).where(_consent.digest == digest, _IS_GOOD).values(given_at=said)
    return connection.execute(agreed.returning(_consent.address)).first() is not None


# Consent can be withdrawn by the same link, however old it is.
_IS_GOOD = _consent.given_at.is_not(None) | (_consent.expires_at > func.now())

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

# Addresses of the URL that have not consented yet.
_unconfirmed_here: ColumnElement[Any] = literal_column("""
CASE WHEN webhook.ours OR webhook.organization_id IS NULL OR webhook.url NOT ILIKE 'mailto:%' THEN '[]'::jsonb
ELSE (SELECT coalesce(jsonb_agg(a ORDER BY n), '[]'::jsonb)
        FROM unnest(string_to_array(lower(substr(webhook.url, 8)), ',')) WITH ORDINALITY AS each (a, n)
       WHERE NOT EXISTS (SELECT FROM mail_consent AS c WHERE c.organization_id = webhook.organization_id
                            AND c.address = a AND c.given_at IS NOT NULL)) END""")

WEBHOOKS = Entity(
    webhook,
    source=live(webhook, webhook, _last.label("last_delivery"), _unconfirmed_here.label("unconfirmed")),
    verbs={**entity.VERBS, "create": create, "change": change_row, "test": send_test},
    refers={"organization_id": organization},
    check_values=check_url,
)

WEBHOOK_DELIVERIES = Entity(webhook_delivery)
