"""Resources of use, read-only: credit transactions, feature usage, and calls."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from gateway.admin.resources.resource import Question, Resource, filters
from gateway.admin.resources.values import Exactly, Id, In, Instant, Metadata, Money, Out
from gateway.core.accounts.administration import READ, TEAM_ROLES, access


def by_name(row: Any) -> Any:
    """Return a row that callers or upstreams name, read by that name or by a number."""
    return {**row, "id": row["name"], "number": row["id"]} if "name" in row else row


FILTERS = filters(
    "organization_id feature_id request_id:uuid tenant_id user_id project_id:count content_id:count"
)


class Use(Out):
    """A use of a service, paid for by credits or the next invoice."""

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
    """A use paid with an organization's credits."""

    credits_used: int
    credits_exact: Exactly = Field(
        description="What it cost; whole ones are charged, and the difference carried to the next use."
    )
    balance_after: int


class FeatureUsage(Use):
    """A use that the next invoice bills."""

    usage_amount: int = Field(description="Units; of use at cost, billionths of the currency.")
    cost: Exactly | None = Field(description="Of use at cost: what it is charged, in the currency.")


USE_RESOURCES = (
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


class RefusedBy(Out):
    """The budget, run or plan that refused a call."""

    kind: Literal["budget", "run", "plan"]
    id: int
    name: str = Field(description="As it is called now; empty in an archive.")


class SubstitutedBy(Out):
    """The budget whose step sent a call as another model."""

    id: int
    name: str = Field(description="As it was called then.")


class Call(Out):
    """A call: one request, with its use and cost."""

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
    model: str | None = Field(description="Asked for, or sent instead of `model_asked`.")
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
    exchange_rate: str | None = Field(
        description="The exchange rate that its price was converted by; null where it is in this currency."
    )
    priced_at: Instant | None = Field(
        description="The time by which it was charged; null where no price of it changes by the hour."
    )
    hour_factor: str | None = Field(description="What its price was multiplied by at that time.")
    tags: dict[str, str] = Field(description="Those that its organization had declared when it came.")
    groups: list[int] = Field(description="Ids of the groups that its caller was in when it came.")
    model_asked: str | None = Field(
        description="The model that its caller named, where a step of a budget sent it as `model`; else null."
    )
    substituted_by: SubstitutedBy | None = Field(description="The budget of that step.")
    saved: Exactly | None = Field(
        description="What its answer would have cost more as `model_asked`, at the prices of then; below 0 if less."
    )
    status: int
    reason: str | None = Field(description="Why it was refused or failed; null where it was not.")
    run: str | None = Field(description="The id that the caller gave to its run; null of a call without one.")
    refused_by: RefusedBy | None = Field(
        description="The budget, run or token plan that refused it; null where none of them did."
    )
    streamed: bool
    estimated: bool
    duration_ms: int
    first_token_ms: int | None
    upstream_request_id: str | None


class CallStep(Out):
    """A step in the explanation of a call."""

    step: str = Field(
        description="request, model, caller, service, limits, tokens, balance, budgets, and so on."
    )
    outcome: Literal["passed", "refused", "stated"] = Field(
        description="Whether it let the call pass or refused it; `stated` where it decides nothing."
    )
    detail: str
    facts: list[str] = Field(description="More of it, such as each budget that applies.")


class CallExplanation(Out):
    """Why a call was refused, or what it cost."""

    steps: list[CallStep] = Field(description="In the order of the call's way.")


class CallExplanationQuery(In):
    """The query of an explanation, without parameters."""


EXPLANATION = Question(
    "explanation", "Tell step by step why a call was refused, or cost what it cost", CallExplanationQuery,
    CallExplanation, of="request_id",
)  # fmt: skip
CALL_RESOURCES = (
    Resource(
        name="calls",
        access=access(teams={READ: TEAM_ROLES}),
        description="Every request, with what it used by kind and what it cost.",
        out=Call,
        named_by="request_id",
        order="by created_at, then id, ascending",
        filters=filters(
            "request_id:uuid organization_id tenant_id api_key_id user_id reason:text service_id "
            "project_id:count model:text model_asked:text substituted_by response_model:text session:text content_id:count group_id"
        ),
        tagged=True,
        questions=(EXPLANATION,),
    ),
)
