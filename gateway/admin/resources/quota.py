"""Token plans, tenants' quotas and the token ledger: how much may be used, and what was."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, PlainSerializer, WithJsonSchema, create_model

from gateway.admin.resources.models import IS_CURRENT, answer_of, patch_of
from gateway.admin.resources.resource import Declared, Filter, Resource
from gateway.admin.resources.unit_prices import TokenUnitPrice
from gateway.admin.resources.values import (
    Amount,
    AnchorDay,
    Currency,
    Id,
    In,
    Instant,
    LongText,
    Metadata,
    Money,
    Out,
    Text,
)
from gateway.core.accounts.plan_terms import TERMS, Term
from gateway.core.accounts.roles import BILLING, OPERATOR, Reach, access
from gateway.core.accounts.weights import WEIGHT_DIGITS_MAX, WEIGHT_MAX
from gateway.core.billing.vector import FALLBACK
from gateway.core.billing.vector import KINDS as KINDS_OF_TOKENS

KINDS = ("consume", "recharge", "reset", "adjust")


_KINDS = {"time_zone": Text, "anchor_day": AnchorDay}


def _asked(term: Term) -> tuple[object, object]:
    """A term as a caller states it: a choice, a count of tokens, or what has a kind of its own."""
    kind: Any = Literal[term.choices] if term.choices else _KINDS.get(term.name, Amount)
    kind = kind | None if term.nullable else kind
    return kind, Field(default=term.default, description=term.description or None)


def _weight(value: Decimal) -> Decimal:
    if value > WEIGHT_MAX or value != round(value, WEIGHT_DIGITS_MAX):
        raise ValueError(f'must be from "0" to "{WEIGHT_MAX}" with at most {WEIGHT_DIGITS_MAX} decimals')
    return value


# With the decimals it was said with.
Weight = Annotated[
    Money,
    AfterValidator(_weight),
    PlainSerializer("{:f}".format, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^[0-9]{{1,4}}(\.[0-9]{{1,{WEIGHT_DIGITS_MAX}}})?$",
            "examples": ["0.1"],
        }
    ),
]


def _said(weights: In) -> dict[str, str]:
    stored: dict[str, str] = weights.model_dump(mode="json", exclude_none=True)
    return stored


def _weighed(kind: str) -> tuple[object, object]:
    fallback = FALLBACK.get(kind)
    beside = f"what {fallback} counts" if fallback else "1"
    return Weight | None, Field(default=None, description=f"Null is {beside}.")


WeightsIn: type[In] = create_model(  # type: ignore[call-overload]  # built fields
    "Weights",
    __base__=In,
    __doc__="What a token of each kind counts toward the quota.",
    **{kind: _weighed(kind) for kind in KINDS_OF_TOKENS},
)
Weights: Any = Annotated[WeightsIn, PlainSerializer(_said)]

TokenPlanCreate: type[In] = create_model(  # type: ignore[call-overload]  # built fields
    "TokenPlanCreate",
    __base__=In,
    __doc__="A new token plan.",
    name=(Text, ...),
    description=(LongText | None, None),
    **{one.name: _asked(one) for one in TERMS},
    weights=(
        Weights | None,
        Field(
            default=None,
            description="What a token of a kind counts toward the quota, as decimal strings by kind.",
        ),
    ),
    overage_unit_price=(TokenUnitPrice | None, None),
    currency=(
        Currency | None,
        Field(
            default=None, description="What overage_unit_price is in; null is what each organization pays in."
        ),
    ),
)

# What billing alone says.
OF_MONEY = {"overage_policy", "overage_unit_price", "currency"}

TokenPlan = answer_of(
    TokenPlanCreate,
    "How many tokens a tenant gets, how often, and what happens when they are used up.\n\n"
    "A change of `total_amount` applies at each tenant's next reset, one of `weights` to calls admitted"
    " from then on. Under another `time_zone` a running cycle ends on the day it was to end, by the clocks"
    " there; under another `anchor_day` or `reset_interval` on the next day that these say.",
    overage_unit_price=Money | None,  # one of before may be higher
)


class TenantQuotaPatch(In):
    """The plan to move the tenant to, now; the difference is written as an `adjust`."""

    plan_id: Id | None = Field(default_factory=lambda: None)


class TenantQuota(Out):
    """A tenant's token account as it is now; its id is the tenant's."""

    id: Id
    tenant_id: Id
    plan_id: Id | None
    tokens_used: int = Field(description="This cycle, as the plan weighs them.")
    tokens_remaining: int | None = Field(description="Settled; below 0 is debt, null is unlimited.")
    tokens_held: int = Field(description="Held by calls in flight.")
    is_blocked: bool
    manual_block: bool
    last_reset: Instant | None
    next_reset_at: Instant | None
    is_current: bool = Field(default=False, description=IS_CURRENT)


class TokenLedgerRow(Out):
    """One movement of a tenant's token account; `seq` counts them without a gap."""

    id: int
    tenant_id: Id
    transaction_type: Literal["consume", "recharge", "reset", "adjust"]
    amount: int = Field(description="Tokens as the plan weighs them.")
    total_remaining: int | None = Field(description="After this movement; null is unlimited.")
    direction: Literal["IN", "OUT"]
    created_at: Instant
    epoch: int
    seq: int
    cycle: int
    request_id: UUID | None
    service_id: int | None
    user_id: int | None
    content_id: int | None
    project_id: int | None
    feature_version: str | None
    metadata: Metadata | None


RESOURCES = (
    Resource(
        name="token-plans",
        access=access(
            BILLING,
            OPERATOR,
            reach=Reach.SHARED,
            fields={OPERATOR: TokenPlanCreate.model_fields.keys() - OF_MONEY},
        ),
        description="How many tokens a tenant gets, how often, and what happens when they are used up.",
        out=TokenPlan,
        create=TokenPlanCreate,
        patch=patch_of(TokenPlanCreate),
        deletable=True,
        filters={"name": Filter("text")},
        declared=Declared(),
    ),
    Resource(
        name="tenant-quotas",
        access=access(OPERATOR, ours=("change",)),
        description="Live token accounts; the id is the tenant's.",
        out=TenantQuota,
        patch=TenantQuotaPatch,
        live="quota",
        filters={"tenant_id": Filter(), "plan_id": Filter(), "organization_id": Filter()},
    ),
    Resource(
        name="token-ledger",
        access=access(),
        description="Every movement of every tenant's tokens. Append-only.",
        out=TokenLedgerRow,
        order="by tenant_id, then seq, ascending",
        filters={
            "tenant_id": Filter(),
            "organization_id": Filter(),
            "service_id": Filter(),
            "user_id": Filter(),
            "api_key_id": Filter(),
            "project_id": Filter("count"),
            "content_id": Filter("count"),
            "request_id": Filter("uuid"),
            "transaction_type": Filter("text", KINDS),
            "direction": Filter("text", ("IN", "OUT")),
        },
    ),
)
