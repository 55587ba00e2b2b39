"""Amendments of calls, and calls that were re-rated."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from gateway.admin.resources.resource import (
    Resource,
    filters,
)
from gateway.admin.resources.values import (
    Exactly,
    Id,
    In,
    Instant,
    Money,
    Out,
    Text,
    optional,
)
from gateway.core.accounts.administration import BILLING, access
from gateway.core.billing.events import AMOUNT_MAX

MOVED = ("tokens", "credits", "units", "amount")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise ValueError("must be the id of a request, a UUID") from error


RequestId = Annotated[str, Field(strict=True, json_schema_extra={"format": "uuid"}), AfterValidator(_uuid)]
Direction = Literal["IN", "OUT"]
Moved = Annotated[int, Field(strict=True, ge=1, le=AMOUNT_MAX)]


class AmendmentCreate(In):
    """An amendment: a refund of a part of a call's charge, or a further charge."""

    request_id: RequestId
    reason: Text
    organization_id: Id | None = optional("Whose call it must be.")
    direction: Direction = Field(
        default="IN", description="IN takes back part of its charge; OUT charges it more."
    )
    tokens: Moved | None = optional("Tokens of the call.")
    credits: Moved | None = optional("Given back as an addition, charged as a use of credits.")
    units: Moved | None = optional("Of a service with a price a unit.")
    amount: Money | None = optional("Money, of a call that was charged at cost.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(getattr(self, name) for name in MOVED):
            raise ValueError(f"must move something: {', '.join(MOVED)}")
        return self


class Amendment(Out):
    """A refund of a part of a call's charge, or a further charge, with its reason and actor."""

    id: Id
    request_id: UUID
    organization_id: Id
    tenant_id: Id
    service_id: Id | None
    direction: Direction
    tokens: int
    credits: int
    units: int
    amount: Exactly | None = Field(description="Of a call that was charged at cost.")
    late_tokens: int = Field(
        description="Tokens of a quota whose cycle is over: it does not move, and owes less, or more."
    )
    reason: str
    actor: str = Field(description="Who did it.")
    created_at: Instant


class Rerating(Out):
    """A call that was rated again: its cost before and after, and the new price."""

    id: Id
    price_id: Id
    request_id: UUID
    organization_id: Id
    tenant_id: Id
    service_id: Id
    cost_before: Exactly
    cost_after: Exactly
    charged: Exactly = Field(description="By how much its charge moves.")
    credits: int = Field(description="By how much the credits move that it was charged.")
    currency: str
    reason: str
    actor: str = Field(description="Who set the price.")
    created_at: Instant


AMENDMENT_RESOURCES = (
    Resource(
        name="amendments",
        access=access(BILLING, ours=("create",)),
        description="What calls were charged, taken back or added to. A call is amended once.",
        out=Amendment,
        create=AmendmentCreate,
        named_by="id",
        filters=filters(
            "organization_id tenant_id service_id request_id:uuid direction", direction=("IN", "OUT")
        ),
    ),
    Resource(
        name="reratings",
        access=access(),
        description="Calls that were rated again by a price that was in force when they were made.",
        out=Rerating,
        named_by="id",
        refers={"price_id": "prices"},
        filters=filters("organization_id tenant_id service_id price_id request_id:uuid"),
    ),
)
