"""Use events: use outside of the gateway, sent as CloudEvents, stored once by source and id. And webhooks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import ConfigDict, Field, create_model, model_validator

from gateway.admin.resources.catalogue import TOOLS_MAX, LowerName
from gateway.admin.resources.form_fields import Secret
from gateway.admin.resources.resource import (
    Action,
    BatchEndpoint,
    ConfigDeclaration,
    Resource,
    answer_of,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    ExternalId,
    Flag,
    Id,
    In,
    Instant,
    Out,
    ServiceKey,
    Text,
    must,
    optional,
)
from gateway.core.accounts.administration import BILLING, access
from gateway.core.alerts.events.registry import all_events, selectable_events
from gateway.core.alerts.messages import SECRET_PREFIX
from gateway.core.billing.events import AGE_DAYS_MAX, AMOUNT_MAX, EVENTS_MAX
from gateway.core.billing.price_book import KINDS
from gateway.core.families.controlled import is_model_name
from gateway.core.model import INTEGER_MAX
from gateway.core.network import URL_CHARS_MAX

ONE, MANY, PLAIN = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
# An attribute of an event, an extension too (CloudEvents 1.0, 3.1).
_NAME = "[a-z0-9]{1,20}"
# The prefix of header fields that are attributes of an event in binary mode.
ATTRIBUTE = "ce-"


Count = Annotated[int, Field(strict=True, ge=0, le=AMOUNT_MAX)]
Some = Annotated[int, Field(strict=True, ge=1, le=AMOUNT_MAX)]
ProjectId = Annotated[int, Field(strict=True, ge=0, le=INTEGER_MAX)]


def _is_of_one(name: str) -> bool:
    return name[-1] != "*" and is_model_name(name)


UsageIn: type[In] = create_model(  # type: ignore[call-overload]  # built fields
    "EventUsage",
    __base__=In,
    __doc__="Tokens by kind, as `usage` of a call has them: `input` without cached ones.",
    **dict.fromkeys(KINDS, (Count | None, None)),
    tools=(
        Annotated[dict[LowerName, Count], Field(max_length=TOOLS_MAX)] | None,
        optional("Uses of the provider's tools by name."),
    ),
)


class EventData(In):
    """The use that an event reports: units, tokens by kind, or both."""

    service: ServiceKey
    units: Some | None = optional("By default one, where `usage` is told.")
    usage: UsageIn | None = None  # type: ignore[valid-type]  # built above
    model: Annotated[Text, must(_is_of_one, "be a model's name as a call has it, without *")] | None = None
    service_tier: LowerName | None = None
    user: ExternalId | None = None
    project_id: ProjectId | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        usage: In | None = self.usage
        if self.units is None and (usage is None or not any(usage.model_dump().values())):
            raise ValueError("must say units or usage")
        return self


class CloudEvent(In):
    """A CloudEvents 1.0 event in JSON. Extension attributes are accepted and ignored."""

    model_config = ConfigDict(
        extra="allow", defer_build=True, json_schema_extra={"propertyNames": {"pattern": f"^{_NAME}$"}}
    )

    specversion: Literal["1.0"]
    id: Text
    source: Text = Field(description="Who tells it: with the id it names the event, for ever.")
    type: Text
    subject: Text = Field(
        description="`tenant:ID`; `organization:ID` of one that has one tenant; a tenant's id; either's name."
    )
    time: Instant | None = optional(f"When it was used, at most {AGE_DAYS_MAX} days ago; by default now.")
    datacontenttype: Literal["application/json"] | None = None
    dataschema: Text | None = None
    data: EventData

    @model_validator(mode="after")
    def _extensions(self) -> Self:
        for name in self.model_extra or ():
            if re.fullmatch(_NAME, name) is None:
                raise ValueError(f"{name[:50]} is no attribute of a CloudEvent with JSON in data")
        return self


class RejectedEvent(Out):
    """A rejected event: its position in the batch, and its error."""

    index: int
    source: str | None
    id: str | None
    field: str
    reason: str


class EventBatchResult(Out):
    """The result of a batch of events."""

    accepted: int
    duplicates: int = Field(description="Taken before, by source and id: nothing moved again.")
    rejected: list[RejectedEvent]


class UseEvent(Out):
    """An event that was accepted and stored."""

    id: Id
    source: str
    event_id: str
    type: str
    organization_id: Id
    tenant_id: Id
    service_id: Id
    request_id: UUID = Field(description="Of its call, in `calls` and the ledgers.")
    used_at: Instant
    late_tokens: int = Field(
        description="Tokens of a cycle that was over when it came: they move no quota, and are owed where "
        "they are beyond its plan."
    )
    actor: str = Field(description="Who sent it.")
    created_at: Instant


BATCH = BatchEndpoint(
    "send",
    f"Take in use that did not pass the gateway: one event or a list of up to {EVENTS_MAX}",
    CloudEvent,
    EventBatchResult,
    (ONE, MANY, PLAIN),
)
TO = access(BILLING, ours=("create",))
# The answer to a batch.
TAKEN = Resource(name="events", access=TO, description="What became of events.", out=EventBatchResult)
RESOURCES = (
    Resource(
        name="events",
        access=TO,
        description="Use that did not pass the gateway, told as CloudEvents.",
        out=UseEvent,
        named_by="event_id",
        filters=filters("organization_id tenant_id service_id source:text event_id:text request_id:uuid"),
        batch=BATCH,
    ),
)


# Webhooks: receivers and deliveries.

EVENTS = selectable_events()
Event: Any = Literal[EVENTS]
STATES = ("pending", "delivered", "failed")


Url = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=URL_CHARS_MAX),
    # Further refusals depend on the settings.
    Field(json_schema_extra={"pattern": "^(https?://|mailto:)", "examples": ["https://hooks.example.com/t"]}),
]


class WebhookCreate(In):
    """A new webhook: an address that gets messages."""

    organization_id: Id | None = optional("Only of this organization; null: of all.")
    url: Url = Field(description="`https:`, or `mailto:` and addresses with commas between.")
    events: Annotated[list[Event], Field(max_length=len(EVENTS))] = Field(
        default=[], description="Which events to send; nothing named is every event."
    )
    enabled: Flag = True


class LastDelivery(Out):
    """The last message that was delivered or failed."""

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
    """A message to the address of a webhook, and its delivery."""

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


WEBHOOK_RESOURCES = (
    Resource(
        name="webhooks",
        access=access(theirs=("create", "change", "delete", "test")),
        description="Addresses that get a message when something happens, signed as Standard Webhooks.",
        out=Webhook,
        named_by="url",
        create=WebhookCreate,
        patch=patch_of(WebhookCreate),
        deletable=True,
        filters=filters("organization_id"),
        actions=(Action("test", "Send a message now, to try it"),),
        secret=Secret("secret", SECRET_PREFIX, kept=True),
        declared=ConfigDeclaration(by=("organization_id", "url"), known_by_id=True),
    ),
    Resource(
        name="webhook-deliveries",
        access=access(),
        description="Messages to webhooks, kept 30 days.",
        out=WebhookDelivery,
        filters=filters("webhook_id event state", event=tuple(all_events()), state=STATES),
    ),
)
