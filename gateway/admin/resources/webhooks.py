"""Webhooks: who is told what, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.admin.resources.models import answer_of, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Resource, Secret
from gateway.admin.resources.values import Flag, Id, In, Instant, Out
from gateway.core.accounts.roles import access
from gateway.core.addresses import URL_CHARS_MAX
from gateway.core.alerts.webhook import CONSENT_EVENT, EVENTS, SECRET_PREFIX, TEST_EVENT

Event: Any = Literal[EVENTS]
STATES = ("pending", "delivered", "failed")


Url = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=URL_CHARS_MAX),
    # What is refused besides depends on the settings.
    Field(json_schema_extra={"pattern": "^(https?://|mailto:)", "examples": ["https://hooks.example.com/t"]}),
]


class WebhookCreate(In):
    """An address to be told."""

    organization_id: Id | None = Field(default=None, description="Only of this one; null is of all.")
    url: Url = Field(description="`https:`, or `mailto:` and addresses with commas between.")
    events: Annotated[list[Event], Field(max_length=len(EVENTS))] = Field(
        default=[], description="Which events to send; nothing named is every event."
    )
    enabled: Flag = True


class LastDelivery(Out):
    """The last message something came of."""

    event: str
    state: str
    attempts: int
    response_status: int | None
    error: str | None
    created_at: Instant
    delivered_at: Instant | None


Webhook = answer_of(
    WebhookCreate,
    "An address that is told; `secret` itself is in the create answer only. `unconfirmed` get no mail yet.",
    last_delivery=LastDelivery | None,
    unconfirmed=list[str],
)


class WebhookDelivery(Out):
    """One message to one address."""

    id: Id
    webhook_id: Id
    event: str
    payload: dict[str, Any]
    state: str
    attempts: int
    response_status: int | None
    error: str | None
    next_attempt_at: Instant
    created_at: Instant
    delivered_at: Instant | None


RESOURCES = (
    Resource(
        name="webhooks",
        access=access(theirs=("create", "change", "delete", "test")),
        description="Addresses that get a message when something happens, signed as Standard Webhooks.",
        out=Webhook,
        named_by="url",
        create=WebhookCreate,
        patch=patch_of(WebhookCreate),
        deletable=True,
        filters={"organization_id": Filter()},
        actions=(Action("test", "Send a message now, to try it"),),
        secret=Secret("secret", SECRET_PREFIX, kept=True),
        declared=Declared(by=("organization_id", "url"), known_by_id=True),
    ),
    Resource(
        name="webhook-deliveries",
        access=access(),
        description="Messages to webhooks, kept 30 days.",
        out=WebhookDelivery,
        filters={
            "webhook_id": Filter(),
            "event": Filter("text", (*EVENTS, TEST_EVENT, CONSENT_EVENT)),
            "state": Filter("text", STATES),
        },
    ),
)
