"""Calls: one row a request, with what it used and what it cost, read only."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from gateway.admin.resources.resource import Filter, Resource
from gateway.admin.resources.values import Id, Instant, Money, Out
from gateway.core.accounts.roles import access


class Call(Out):
    """One request."""

    id: int
    request_id: UUID
    created_at: Instant
    organization_id: Id
    tenant_id: Id
    api_key_id: Id | None = Field(description="Null of an event.")
    user_id: int | None
    session: str | None
    project_id: int | None
    content_id: int | None
    feature_version: str | None
    service_id: int | None
    route: str | None
    model: str | None = Field(description="Asked for.")
    response_model: str | None = Field(description="The one that answered.")
    usage: dict[str, Any] = Field(
        description="Tokens by kind, and `tools` by name. `input` leaves out what a cache had: input, "
        "cache_read, cache_write, cache_write_1h and output add up; the others are parts of these. "
        "`unknown` is there where the provider reported more than is documented: its report, as it came."
    )
    service_tier: str | None
    tokens: int
    credits: int
    units: int
    cost: Money | None = Field(description="By the price in force; null where none is known.")
    unpriced: list[str] = Field(description="Tools that were used and have no price: `cost` is without them.")
    currency: str | None
    price_id: int | None
    status: int
    reason: str | None = Field(description="Why it was refused or failed; null where it was not.")
    streamed: bool
    estimated: bool
    duration_ms: int
    first_token_ms: int | None
    upstream_request_id: str | None


RESOURCES = (
    Resource(
        name="calls",
        access=access(),
        description="Every request, with what it used by kind and what it cost.",
        out=Call,
        named_by="request_id",
        order="by created_at, then id, ascending",
        filters={
            "organization_id": Filter(),
            "tenant_id": Filter(),
            "api_key_id": Filter(),
            "user_id": Filter(),
            "service_id": Filter(),
            "project_id": Filter("count"),
            "content_id": Filter("count"),
            "request_id": Filter("uuid"),
            "model": Filter("text"),
            "response_model": Filter("text"),
            "session": Filter("text"),
            "reason": Filter("text"),
        },
    ),
)
