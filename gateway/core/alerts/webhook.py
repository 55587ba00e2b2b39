"""Webhooks: which events are told, how a message is signed, when it is tried again.

Signed as the Standard Webhooks specification has it, so that its libraries verify what arrives:
HMAC-SHA-256 over `id.timestamp.body` under the key inside `whsec_<base64>`.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.core.retries import Retries

EVENTS = (
    "quota.50",
    "quota.80",
    "quota.100",
    "credits.low",
    "credits.topped_up",
    "tenant.blocked",
    "tenant.unblocked",
    "invoice.finalized",
    "invoice.paid",
    "invoice.overdue",
    "invoice.uncollectible",
    "invoice.reminder",
    "invoice.blocked",
    "invoice.unblocked",
    "subscription.ending",
    "budget.threshold",
    "budget.exceeded",
    "budget.forecast",
    "usage.sudden",
)
TEST_EVENT = "webhook.test"
# An address is asked whether mail may come.
CONSENT_EVENT = "webhook.consent"
# So long it may agree by the link that it is sent.
LINK_DAYS = 7
# An hour: mails, and messages that try a webhook; of one webhook of an organization, and of all of them.
HOURLY_OF_WEBHOOK_MAX, HOURLY_OF_ORGANIZATION_MAX = 60, 200
SECRET_PREFIX = "whsec_"  # noqa: S105  # how such a secret begins

# Some sixteen hours in all.
RETRIES = Retries(attempts_max=10, first_s=10.0, factor=3.0, longest_s=6 * 3600.0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one address; `attempts` counts this one."""

    id: int
    url: str
    secret: str
    event: str
    data: Mapping[str, object]
    happened: datetime
    attempts: int
    webhook_id: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt: the status of the answer, of HTTP or SMTP, or why there was none."""

    status: int | None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a message: its status, or why there is none, the beginning of its body, and for how
    long the other side wants to be left alone, as it says it.
    """

    status: int | None
    error: str | None = None
    body: bytes = b""
    retry_after: str = ""


def headers_of(delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
    """The fields of an attempt made now."""
    identity, timestamp = f"msg_{delivery.id}", str(int(now.timestamp()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "tollkeeper",
        "webhook-id": identity,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature(delivery.secret, identity, timestamp, body)}",
    }


def signature(secret: str, identity: str, timestamp: str, body: bytes) -> str:
    """Sign a body: base64 of the HMAC."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{identity}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
