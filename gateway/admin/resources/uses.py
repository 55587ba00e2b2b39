"""Credit transactions and feature usage: what was used, read only."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from gateway.admin.resources.resource import Filter, Resource
from gateway.admin.resources.values import Exactly, Id, Instant, Metadata, Out
from gateway.core.accounts.roles import access

FILTERS = {
    "organization_id": Filter(),
    "feature_id": Filter(),
    "tenant_id": Filter(),
    "user_id": Filter(),
    "content_id": Filter("count"),
    "project_id": Filter("count"),
    "request_id": Filter("uuid"),
}


class Use(Out):
    """One use, whatever pays for it."""

    id: int
    organization_id: Id
    feature_id: int | None = Field(description="A service.")
    user_id: int | None
    timestamp: Instant
    content_id: int | None
    project_id: int | None
    feature_version: str | None
    metadata: Metadata | None
    request_id: UUID | None
    seq: int


class CreditTransaction(Use):
    """One use paid with an organization's credits."""

    credits_used: int
    credits_exact: Exactly = Field(
        description="What it cost; whole ones are charged, and the difference carried to the next use."
    )
    balance_after: int


class FeatureUsage(Use):
    """One use that the next invoice bills."""

    usage_amount: int = Field(description="Units; of use at cost, billionths of the currency.")
    cost: Exactly | None = Field(description="Of use at cost: what it is charged, in the currency.")


RESOURCES = (
    Resource(
        name="credit-transactions",
        access=access(),
        description="Uses paid with credits, by organization. Append-only.",
        out=CreditTransaction,
        order="by organization_id, then seq, ascending",
        filters=FILTERS,
    ),
    Resource(
        name="feature-usage",
        access=access(),
        description="Uses that invoices bill, by organization. Append-only.",
        out=FeatureUsage,
        order="by organization_id, then seq, ascending",
        filters=FILTERS,
    ),
)
