"""Resources of quotas: token plans, tenants' quotas, and the ledger of tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, PlainSerializer, WithJsonSchema, create_model

from gateway.admin.resources.resource import (
    IS_CURRENT,
    ConfigDeclaration,
    Resource,
    answer_of,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    AS_STORED,
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
    TokenUnitPrice,
    must,
    optional,
)
from gateway.core.accounts.administration import BILLING, OPERATOR, READ, TEAM_ROLES, RowScope, access
from gateway.core.accounts.plans import TERMS, Term
from gateway.core.accounts.weights import WEIGHT_DIGITS_MAX, WEIGHT_MAX
from gateway.core.billing.price_book import FALLBACK
from gateway.core.billing.price_book import KINDS as KINDS_OF_TOKENS
from gateway.core.model import BLOCK_CAUSES

KINDS = ("consume", "recharge", "reset", "adjust")


BlockWord: Any = Literal[tuple(BLOCK_CAUSES)]
_KINDS = {"time_zone": Text, "anchor_day": AnchorDay}


def _request_field(term: Term) -> tuple[object, object]:
    """Return a plan's term as a field of the request: a choice, a number of tokens, or another type."""
    kind: Any = Literal[term.choices] if term.choices else _KINDS.get(term.name, Amount)
    kind = kind | None if term.nullable else kind
    return kind, Field(default=term.default, description=term.description or None)


# With the decimals as sent.
Weight = Annotated[
    Money,
    must(
        lambda value: value <= WEIGHT_MAX and value == round(value, WEIGHT_DIGITS_MAX),
        f'be from "0" to "{WEIGHT_MAX}" with at most {WEIGHT_DIGITS_MAX} decimals',
    ),
    PlainSerializer(lambda number: f"{number:f}", when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^[0-9]{{1,4}}(\.[0-9]{{1,{WEIGHT_DIGITS_MAX}}})?$",
            "examples": ["0.1"],
        }
    ),
]


WeightsIn: type[In] = create_model(  # type: ignore[call-overload]  # built fields
    "Weights",
    __base__=In,
    __doc__="What a token of each kind counts toward the quota.",
    **{
        kind: (
            Weight | None,
            optional(f"Null is {f'what {FALLBACK[kind]} counts' if kind in FALLBACK else 1}."),
        )
        for kind in KINDS_OF_TOKENS
    },
)
Weights: Any = Annotated[WeightsIn, AS_STORED]

TokenPlanCreate: type[In] = create_model(  # type: ignore[call-overload]  # built fields
    "TokenPlanCreate",
    __base__=In,
    __doc__="A new token plan.",
    name=(Text, ...),
    description=(LongText | None, None),
    **{term.name: _request_field(term) for term in TERMS},
    weights=(
        Weights | None,
        optional("What a token of a kind counts toward the quota, as decimal strings by kind."),
    ),
    overage_unit_price=(TokenUnitPrice | None, None),
    currency=(
        Currency | None,
        optional("What overage_unit_price is in; null is what each organization pays in."),
    ),
)

# Fields that only billing may set.
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
    """The plan that the tenant gets now; the difference is stored as an `adjust`."""

    plan_id: Id | None = Field(default_factory=lambda: None)


class TenantQuota(Out):
    """The current token account of a tenant; its id is the tenant's."""

    id: Id
    tenant_id: Id
    plan_id: Id | None
    tokens_used: int = Field(description="This cycle, as the plan weighs them.")
    tokens_remaining: int | None = Field(description="Settled; below 0 is debt, null is unlimited.")
    tokens_held: int = Field(description="Held by calls in flight.")
    is_blocked: bool
    manual_block: bool = Field(description="Whether a block is in force, whatever its cause.")
    block_cause: BlockWord | None = Field(
        description="A person, an unpaid invoice, or too much use that is not stored; null without a block."
    )
    last_reset: Instant | None
    next_reset_at: Instant | None
    is_current: bool = Field(default=False, description=IS_CURRENT)


class TokenLedgerRow(Out):
    """A movement of a tenant's token account; `seq` numbers them without a gap."""

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
            reach=RowScope.SHARED,
            fields={OPERATOR: TokenPlanCreate.model_fields.keys() - OF_MONEY},
        ),
        description="How many tokens a tenant gets, how often, and what happens when they are used up.",
        out=TokenPlan,
        create=TokenPlanCreate,
        patch=patch_of(TokenPlanCreate),
        deletable=True,
        filters=filters("name:text"),
        declared=ConfigDeclaration(),
    ),
    Resource(
        name="tenant-quotas",
        access=access(OPERATOR, ours=("change",), teams={READ: TEAM_ROLES}),
        description="Live token accounts; the id is the tenant's.",
        out=TenantQuota,
        patch=TenantQuotaPatch,
        live="quota",
        filters=filters("tenant_id plan_id organization_id"),
    ),
    Resource(
        name="token-ledger",
        access=access(teams={READ: TEAM_ROLES}),
        description="Every movement of every tenant's tokens. Append-only.",
        out=TokenLedgerRow,
        order="by tenant_id, then seq, ascending",
        filters=filters(
            "tenant_id organization_id service_id user_id api_key_id project_id:count "
            "content_id:count request_id:uuid transaction_type direction",
            transaction_type=KINDS,
            direction=("IN", "OUT"),
        ),
    ),
)
