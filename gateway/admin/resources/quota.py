"""Token plans, tenants' quotas and the token ledger: how much may be used, and what was."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from gateway.admin.fields import Amount, Id, In, Instant, LongText, Money, Out, Text, patch_of
from gateway.admin.listing import Filter
from gateway.admin.resources.resource import Resource

KINDS = ("consume", "recharge", "reset", "adjust")


class TokenPlanCreate(In):
    """A new token plan."""

    name: Text
    total_amount: Amount | None = Field(default=None, description="Tokens a cycle; null is unlimited.")
    description: LongText | None = None
    reset_interval: Literal["monthly", "weekly", "daily", "none"] = "monthly"
    overage_policy: Literal["block", "carry", "bill"] = Field(
        default="block",
        description="block: debt is forgiven at reset; carry: it is kept; bill: never refused.",
    )
    overage_unit_price: Money | None = None
    rollover_max: Amount = Field(default=0, description="Most unused tokens a reset carries over.")
    admission: Literal["available", "strict"] = "available"
    on_exhausted: Literal["finish", "cut"] = "finish"
    on_store_failure: Literal["deny", "allow"] = "deny"


class TokenPlan(Out):
    """How many tokens a tenant gets, how often, and what happens when they are used up.

    A change of `total_amount` applies at each tenant's next reset.
    """

    id: Id
    name: str
    total_amount: int | None
    description: str | None
    reset_interval: str
    overage_policy: str
    overage_unit_price: Money | None
    rollover_max: int
    admission: str
    on_exhausted: str
    on_store_failure: str
    created_at: Instant


class TenantQuotaPatch(In):
    """The plan to move the tenant to, now; the difference is written as an `adjust`."""

    plan_id: Id | None = Field(default_factory=lambda: None)


class TenantQuota(Out):
    """A tenant's token account as it is now; its id is the tenant's."""

    id: Id
    tenant_id: Id
    plan_id: Id | None
    tokens_used: int = Field(description="This cycle.")
    tokens_remaining: int | None = Field(description="Settled; below 0 is debt, null is unlimited.")
    tokens_held: int = Field(description="Held by calls in flight.")
    is_blocked: bool
    manual_block: bool
    last_reset: Instant | None
    next_reset_at: Instant | None


class TokenLedgerRow(Out):
    """One movement of a tenant's token account; `seq` counts them without a gap."""

    id: int
    tenant_id: Id
    transaction_type: Literal["consume", "recharge", "reset", "adjust"]
    amount: int
    total_remaining: int | None = Field(description="After this movement; null is unlimited.")
    direction: Literal["IN", "OUT"]
    created_at: Instant
    epoch: int
    seq: int
    cycle: int
    request_id: UUID | None
    service_id: int | None
    user_id: int | None
    metadata: dict[str, object] | None


RESOURCES = (
    Resource(
        name="token-plans",
        title="TokenPlan",
        description="Plans that tenants' quotas follow.",
        out=TokenPlan,
        create=TokenPlanCreate,
        patch=patch_of("TokenPlanPatch", TokenPlanCreate),
        deletable=True,
        filters={"name": Filter("text")},
    ),
    Resource(
        name="tenant-quotas",
        title="TenantQuota",
        description="Live token accounts; the id is the tenant's.",
        out=TenantQuota,
        patch=TenantQuotaPatch,
        live="quota",
        filters={"tenant_id": Filter(), "plan_id": Filter(), "organization_id": Filter()},
    ),
    Resource(
        name="token-ledger",
        title="TokenLedgerRow",
        description="Every movement of every tenant's tokens. Append-only.",
        out=TokenLedgerRow,
        order="by tenant_id, then seq, ascending",
        filters={
            "tenant_id": Filter(),
            "organization_id": Filter(),
            "service_id": Filter(),
            "user_id": Filter(),
            "api_key_id": Filter(),
            "request_id": Filter("uuid"),
            "transaction_type": Filter("text", KINDS),
            "direction": Filter("text", ("IN", "OUT")),
        },
    ),
)
