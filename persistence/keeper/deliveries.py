"""Messages to webhooks that wait: handed to whoever delivers, and what came of it.

An attempt is counted before it is made: a sender that dies meanwhile is as good as no answer. Mail of an
organization is bounded an hour, and goes to addresses that agreed or that staff wrote.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.alerts.mail import SCHEME, digest_of, is_mail, recipients_of
from gateway.core.alerts.webhook import (
    CONSENT_EVENT,
    HOURLY_OF_ORGANIZATION_MAX,
    HOURLY_OF_WEBHOOK_MAX,
    LINK_DAYS,
    RETRIES,
    TEST_EVENT,
    Delivery,
    Outcome,
)

LEASE_S = 60

# Of each webhook some, and of webhooks any: none that is slow, or has much to hear, is always first.
# Materialized: else PostgreSQL may look for what is due anew for each row it joins, and find more each time.
_TAKE = text("""
WITH busy AS (
    SELECT organization_id FROM webhook WHERE hour = date_trunc('hour', now())
     GROUP BY organization_id HAVING sum(hourly) > :of_organization
), due AS MATERIALIZED (
    SELECT due.id
      FROM (SELECT id FROM webhook WHERE id <> ALL(cast(:busy AS bigint[])) AND (organization_id IS NULL
               OR url NOT ILIKE 'mailto:%' OR NOT (hour = date_trunc('hour', now()) AND hourly > :of_webhook
                   OR organization_id IN (SELECT organization_id FROM busy)) IS TRUE)
             ORDER BY random()) AS w
     CROSS JOIN LATERAL (SELECT id FROM webhook_delivery
            WHERE webhook_id = w.id AND state = 'pending' AND next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT :each FOR UPDATE SKIP LOCKED) AS due
     LIMIT :n)
UPDATE webhook_delivery AS d
   SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
  FROM due, webhook AS w
 WHERE d.id = due.id AND w.id = d.webhook_id
RETURNING d.id, d.event, d.payload, d.created_at, d.attempts, d.webhook_id, w.url, w.secret,
          w.ours, w.organization_id, w.enabled AND w.deleted_at IS NULL AS wanted""")
_DONE = text("""
UPDATE webhook_delivery
   SET state = :state, response_status = :status, error = :error,
       delivered_at = CASE WHEN :state = 'delivered' THEN now() END,
       next_attempt_at = now() + make_interval(secs => :retry)
 WHERE id = :id""")


_COUNT = text("""
UPDATE webhook SET hour = date_trunc('hour', now()),
       hourly = CASE WHEN hour = date_trunc('hour', now()) THEN hourly ELSE 0 END + :more
 WHERE id = :id""")
_AGREED = text("""
SELECT organization_id, address FROM mail_consent
 WHERE given_at IS NOT NULL AND organization_id = ANY(cast(:whose AS bigint[]))""")
_LINK = text("""
UPDATE mail_consent AS c SET digest = :digest, expires_at = now() + make_interval(days => :days)
  FROM organization AS o
 WHERE o.id = c.organization_id AND c.organization_id = :whose AND c.address = :address AND given_at IS NULL
RETURNING o.name""")
NOBODY_AGREED = "none of its addresses has agreed to get mail"


class Deliveries:
    """What waits in PostgreSQL; `link` is the address that a link's token is put behind."""

    def __init__(self, engine: AsyncEngine, link: Callable[[str], str] = "/mail/{}".format) -> None:
        self._engine, self._link = engine, link

    async def claim_due(self, count: int, each: int, busy: Collection[int] = ()) -> Sequence[Delivery]:
        """Deliveries that are due, each for one sender; an attempt of each is counted.

        Those of `busy` webhooks are left where they are, of others there are at most `each`.
        """
        sought = {
            "n": count, "each": each, "busy": list(busy), "lease": LEASE_S,
            "of_webhook": HOURLY_OF_WEBHOOK_MAX, "of_organization": HOURLY_OF_ORGANIZATION_MAX,
        }  # fmt: skip
        taken: list[Delivery] = []
        async with self._engine.begin() as connection:
            rows = (await connection.execute(_TAKE, sought)).all()
            agreed = await self._agreed(connection, rows)
            for row in rows:
                delivery = await self._taken(connection, row, agreed) if row.wanted else "the webhook is gone"
                if isinstance(delivery, str):
                    await connection.execute(_DONE, _result(row.id, Outcome(None, delivery), None))
                else:
                    taken.append(delivery)
            sent = Counter(row.webhook_id for row in rows if _counts(row))
            for webhook_id, more in sorted(sent.items()):
                await connection.execute(_COUNT, {"id": webhook_id, "more": more})
        return taken

    async def _agreed(self, connection: AsyncConnection, rows: Sequence[Row[Any]]) -> set[tuple[int, str]]:
        """The addresses that agreed, where that is asked of any."""
        whose = {row.organization_id for row in rows if _asks(row)}
        if not whose:
            return set()
        return {(each, address) for each, address in await connection.execute(_AGREED, {"whose": [*whose]})}

    async def _taken(
        self, connection: AsyncConnection, row: Row[Any], agreed: set[tuple[int, str]]
    ) -> Delivery | str:
        """A message as it goes out; why it does not where nobody is to get it."""
        url, data = row.url, row.payload
        if row.event == CONSENT_EVENT:
            token = secrets.token_urlsafe(32)
            sought = {"digest": digest_of(token), "days": LINK_DAYS, "whose": row.organization_id}
            asked = await connection.scalar(_LINK, {**sought, "address": data["address"]})
            if asked is None:
                return "nobody is asked any more"
            url, data = SCHEME + data["address"], {**data, "organization": asked, "link": self._link(token)}
        elif _asks(row):
            to = [one for one in recipients_of(url) if (row.organization_id, one.lower()) in agreed]
            if not to:
                return NOBODY_AGREED
            url = SCHEME + ",".join(to)
        return Delivery(
            row.id, url, row.secret, row.event, data, row.created_at, row.attempts, row.webhook_id
        )

    async def done(self, delivery: Delivery, outcome: Outcome) -> None:
        """Keep what came of an attempt."""
        retry_s = None if outcome.delivered else RETRIES.after_s(delivery.attempts)
        async with self._engine.begin() as connection:
            await connection.execute(_DONE, _result(delivery.id, outcome, retry_s))


def _asks(row: Row[Any]) -> bool:
    """Whether a message goes to those of its addresses alone that have agreed."""
    return is_mail(row.url) and not row.ours and row.organization_id is not None


def _counts(row: Row[Any]) -> bool:
    """Whether a message counts in its hour now; one that somebody asked for did when that was."""
    asked_for = row.event in {TEST_EVENT, CONSENT_EVENT}
    return is_mail(row.url) and row.organization_id is not None and not (asked_for and row.attempts == 1)


def _result(delivery_id: int, outcome: Outcome, retry_s: float | None) -> dict[str, Any]:
    undelivered = "failed" if retry_s is None else "pending"
    return {
        "id": delivery_id,
        "state": "delivered" if outcome.delivered else undelivered,
        "status": outcome.status,
        "error": outcome.error,
        "retry": retry_s or 0.0,
    }
