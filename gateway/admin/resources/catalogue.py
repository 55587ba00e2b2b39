"""Services, business models, negotiated prices and subscription plans: what is sold."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, model_validator

from gateway.admin.resources.models import answer_of, patch_of
from gateway.admin.resources.resource import Filter, Resource
from gateway.admin.resources.values import (
    Amount,
    Flag,
    Id,
    In,
    LongText,
    Money,
    PathPattern,
    PositiveAmount,
    ServiceKey,
    Text,
    UpstreamName,
)
from gateway.core.calls.paths import PATHS_MAX

TIERS_MAX = 100
PRICED_MODELS_MAX = 1_000
FEATURES_MAX = 1_000
Paths = Annotated[list[PathPattern], Field(min_length=1, max_length=PATHS_MAX)]
METERS = ("consumption", "subscription", "pay_per_use")


class Tier(In):
    """Units up to and including `up_to` (null: without end) cost `unit_price` each."""

    up_to: PositiveAmount | None
    unit_price: Money


class TokenPrice(In):
    """Credits a million tokens cost."""

    input: Amount = 0
    output: Amount = 0
    cached: Amount | None = Field(default=None, description="Null is what input costs.")


class Pricing(In):
    """Either graduated tiers (Pay-Per-Use) or credits by token and model (Consumption)."""

    tiers: Annotated[list[Tier], Field(min_length=1, max_length=TIERS_MAX)] | None = None
    per_million: (
        Annotated[dict[Text, TokenPrice], Field(min_length=1, max_length=PRICED_MODELS_MAX)] | None
    ) = Field(default=None, description='By model; "*" is any other.')

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.tiers is None) == (self.per_million is None):
            raise ValueError("must hold either tiers or per_million")
        ends = [tier.up_to for tier in self.tiers or ()]
        whole = [end for end in ends if end is not None]
        if ends and (ends[-1] is not None or len(whole) != len(ends) - 1 or whole != sorted(set(whole))):
            raise ValueError("tiers must rise in up_to, and only the last must have null")
        return self


def _stored(pricing: Pricing) -> dict[str, Any]:
    return pricing.model_dump(mode="json", exclude_none=False, exclude_defaults=True)


PricingField = Annotated[Pricing, PlainSerializer(_stored)]


class BusinessModelCreate(In):
    """A new business model."""

    name: Text
    meter: Literal["consumption", "subscription", "pay_per_use"]
    display_name: Text | None = None
    description: LongText | None = None


BusinessModel = answer_of(BusinessModelCreate, "How a service is paid for.")


class ServiceCreate(In):
    """A new service."""

    name: Text
    key: ServiceKey
    credits: Amount = Field(description="What one unit costs in credits.")
    service_type: Literal["Pay-As-You-Go", "One-Time"]
    business_model_id: Id
    description: LongText | None = None
    counts_tokens: Flag = Field(default=False, description="Debit the tenant's tokens as well.")
    pricing: PricingField | None = None
    upstream: UpstreamName | None = Field(
        default=None, description="Where /services/<key>/ goes: an upstream of the gateways' configuration."
    )
    paths: Paths | None = Field(
        default=None, description="What may be called there, such as /v1/sms/*; null is all."
    )


Service = answer_of(ServiceCreate, "Something that can be used and is metered.")


class OrganizationServiceCreate(In):
    """What an organization negotiated for a service."""

    organization_id: Id
    service_id: Id
    negotiated_credits: Amount
    business_model_id: Id | None = Field(default=None, description="Instead of the service's own.")
    pricing: PricingField | None = None


OrganizationService = answer_of(
    OrganizationServiceCreate, "What an organization negotiated for a service; one per pair."
)


class SubscriptionPlanCreate(In):
    """A new subscription plan."""

    name: Text
    monthly_cost: Money
    annual_cost: Money
    feature_access: Annotated[list[ServiceKey], Field(max_length=FEATURES_MAX)] = Field(
        description="Keys of the services it includes."
    )
    token_plan_id: Id | None = None


SubscriptionPlan = answer_of(SubscriptionPlanCreate, "What a subscription includes and costs.")


RESOURCES = (
    Resource(
        name="business-models",
        description="How services are paid for: with credits, by subscription, or by use.",
        out=BusinessModel,
        create=BusinessModelCreate,
        patch=patch_of(BusinessModelCreate),
        deletable=True,
        filters={"name": Filter("text"), "meter": Filter("text", METERS)},
    ),
    Resource(
        name="services",
        description="What can be used and is metered, and what a unit of it costs.",
        out=Service,
        create=ServiceCreate,
        patch=patch_of(ServiceCreate, without=("key",)),
        deletable=True,
        filters={"business_model_id": Filter(), "key": Filter("text"), "name": Filter("text")},
    ),
    Resource(
        name="organization-services",
        description="What an organization pays for a service instead of its list price.",
        out=OrganizationService,
        create=OrganizationServiceCreate,
        patch=patch_of(OrganizationServiceCreate, without=("organization_id", "service_id")),
        deletable=True,
        filters={"organization_id": Filter(), "service_id": Filter(), "business_model_id": Filter()},
    ),
    Resource(
        name="subscription-plans",
        description="What a subscription includes and costs.",
        out=SubscriptionPlan,
        create=SubscriptionPlanCreate,
        patch=patch_of(SubscriptionPlanCreate),
        deletable=True,
        filters={"token_plan_id": Filter(), "name": Filter("text")},
    ),
)
