"""Services, business models, negotiated prices and subscription plans: what is sold."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, create_model, model_validator

from gateway.admin.resources.models import answer_of, dated, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Resource
from gateway.admin.resources.unit_prices import UnitPrice
from gateway.admin.resources.values import (
    Amount,
    Currency,
    Day,
    Exactly,
    Flag,
    Id,
    In,
    LongText,
    Markup,
    Money,
    Out,
    PathPattern,
    PositiveAmount,
    Rate,
    ServiceKey,
    Text,
    UpstreamName,
)
from gateway.core.accounts.roles import BILLING, OPERATOR, Reach, access
from gateway.core.billing.vector import BASE_CURRENCY
from gateway.core.calls.paths import PATHS_MAX

TIERS_MAX = 100
PRICED_MODELS_MAX = 1_000
FEATURES_MAX = 1_000
Paths = Annotated[list[PathPattern], Field(min_length=1, max_length=PATHS_MAX)]
METERS = ("consumption", "subscription", "pay_per_use")


class Tier(In):
    """Units up to and including `up_to` (null: without end) cost `unit_price` each."""

    up_to: PositiveAmount | None
    unit_price: UnitPrice


class TokenPrice(In):
    """Credits a million tokens of each kind cost; null is what the kind falls back to."""

    input: Amount = 0
    output: Amount = 0
    cache_read: Amount | None = Field(default=None, description="Null is what input costs.")
    cached: Amount | None = Field(default=None, description="Another name of cache_read.")
    cache_write: Amount | None = Field(default=None, description="Null is what input costs.")
    cache_write_1h: Amount | None = Field(default=None, description="Null is what cache_write costs.")
    reasoning: Amount | None = Field(default=None, description="Null is what output costs.")
    audio_input: Amount | None = Field(default=None, description="Null is what input costs.")
    audio_output: Amount | None = Field(default=None, description="Null is what output costs.")
    image_input: Amount | None = Field(default=None, description="Null is what input costs.")
    image_output: Amount | None = Field(default=None, description="Null is what output costs.")

    @model_validator(mode="after")
    def _read_once(self) -> Self:
        if self.cached is not None and self.cache_read is not None:
            raise ValueError("must name cached or cache_read: they are the same")
        return self


def _models(prices: dict[str, TokenPrice]) -> dict[str, TokenPrice]:
    for name in prices:
        if "*" in name[:-1]:
            raise ValueError(f"must have * at the end of a model's name alone, not as in {name}")
    return prices


class AtCost(In):
    """What the price book says the call costs, times a markup."""

    markup: Markup = Field(default=Decimal(1), description='Such as "1.2".')
    credits_per_unit: Rate | None = Field(
        default=None, description="Of Consumption: how many credits a unit of the currency is."
    )


def _only(name: str, kind: str, *beside: str) -> dict[str, Any]:
    """A document of one of them, with what may stand beside it."""
    none = {"type": "null"}
    apart = {"tiers", "per_million", "at_cost", "currency", "markup"} - {name, *beside}
    return {"required": [name], "properties": {name: {"type": kind}, **dict.fromkeys(sorted(apart), none)}}


class Pricing(In):
    """Graduated tiers (Pay-Per-Use), credits by token and model (Consumption), or what the call costs."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _only("tiers", "array", "currency"),
                _only("per_million", "object", "markup"),
                _only("at_cost", "object"),
            ]
        }
    )

    tiers: Annotated[list[Tier], Field(min_length=1, max_length=TIERS_MAX)] | None = None
    per_million: (
        Annotated[
            dict[Text, TokenPrice],
            Field(min_length=1, max_length=PRICED_MODELS_MAX),
            AfterValidator(_models),
        ]
        | None
    ) = Field(default=None, description='By model, exact or as gpt-4o*; "*" is any other.')
    currency: Currency | None = Field(
        default=None, description="What tiers are in; null is what each organization pays in."
    )
    markup: Markup | None = Field(default=None, description="Of per_million: what it is multiplied by.")
    at_cost: AtCost | None = Field(
        default=None, description="In money (Pay-Per-Use), or in credits (Consumption)."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(each is not None for each in (self.tiers, self.per_million, self.at_cost)) != 1:
            raise ValueError("must hold one of tiers, per_million and at_cost")
        if self.markup is not None and self.per_million is None:
            raise ValueError("must have its markup in at_cost, or with per_million")
        if self.currency is not None and self.tiers is None:
            raise ValueError("must have its currency with tiers: of all else it is the organization's")
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
    counts_tokens: Flag | None = Field(
        default=None,
        description="Debit the tenant's tokens; null is as the business model says: Subscription does.",
    )
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
    counts_tokens: Flag | None = Field(
        default=None, description="Debit the tenant's tokens; null is as the service says."
    )
    pricing: PricingField | None = None


OrganizationService = answer_of(
    OrganizationServiceCreate, "What an organization negotiated for a service; one per pair."
)


class SubscriptionPlanCreate(In):
    """A new subscription plan."""

    name: Text
    monthly_cost: Money
    annual_cost: Money
    currency: Currency = Field(
        default=BASE_CURRENCY, description="Of both; only organizations in it can subscribe. It stays."
    )
    feature_access: Annotated[list[ServiceKey], Field(max_length=FEATURES_MAX)] = Field(
        description="Keys of the services it includes."
    )
    token_plan_id: Id | None = None


class _Costs(In):
    monthly_cost: Money = Field(default_factory=Decimal, description="By default as it is.")
    annual_cost: Money = Field(default_factory=Decimal, description="By default as it is.")


Reprice = dated(
    _Costs,
    "Reprice",
    "What a plan costs for all who have it, and from when; what is not named stays.",
    "The first UTC day of the new price, today at the earliest.",
)
SubscriptionPlanPrice: type[Out] = create_model(  # type: ignore[call-overload]  # "from" is a keyword
    "SubscriptionPlanPrice",
    __base__=Out,
    __doc__="What a plan costs from a day on.",
    **{
        "from": (Day, ...),
        "monthly_cost": (Exactly | None, Field(description="Null: as before.")),
        "annual_cost": (Exactly | None, Field(description="Null: as before.")),
        "waits": (bool, Field(description="Its day is to come.")),
    },
)
SubscriptionPlan = answer_of(
    SubscriptionPlanCreate,
    "What a subscription includes and costs.",
    currency=str,
    prices=(
        list[SubscriptionPlanPrice],  # type: ignore[valid-type]  # made here
        Field(description="What it cost all who have it since when, the oldest first."),
    ),
)


RESOURCES = (
    Resource(
        name="business-models",
        access=access(BILLING, reach=Reach.SHARED),
        description="How services are paid for: with credits, by subscription, or by use.",
        out=BusinessModel,
        create=BusinessModelCreate,
        patch=patch_of(BusinessModelCreate),
        deletable=True,
        filters={"name": Filter("text"), "meter": Filter("text", METERS)},
        declared=Declared(),
    ),
    Resource(
        name="services",
        access=access(
            BILLING,
            reach=Reach.SHARED,
            verbs={"change": (BILLING, OPERATOR)},
            fields={
                BILLING: ServiceCreate.model_fields.keys() - {"upstream", "paths"},
                OPERATOR: ("description", "upstream", "paths"),
            },
        ),
        description="What can be used and is metered, and what a unit of it costs.",
        out=Service,
        create=ServiceCreate,
        patch=patch_of(ServiceCreate, without=("key",)),
        deletable=True,
        filters={"business_model_id": Filter(), "key": Filter("text"), "name": Filter("text")},
        declared=Declared(by=("key",)),
    ),
    Resource(
        name="organization-services",
        access=access(BILLING, ours=("create", "change", "delete")),
        description="What an organization pays for a service instead of its list price.",
        out=OrganizationService,
        create=OrganizationServiceCreate,
        patch=patch_of(OrganizationServiceCreate, without=("organization_id", "service_id")),
        deletable=True,
        filters={"organization_id": Filter(), "service_id": Filter(), "business_model_id": Filter()},
        declared=Declared(by=("organization_id", "service_id")),
    ),
    Resource(
        name="subscription-plans",
        access=access(BILLING, reach=Reach.SHARED),
        description="What a subscription includes and costs.",
        out=SubscriptionPlan,
        create=SubscriptionPlanCreate,
        patch=patch_of(SubscriptionPlanCreate, without=("currency",)),
        deletable=True,
        filters={"token_plan_id": Filter(), "name": Filter("text")},
        actions=(Action("reprice", "Change what it costs from a day on, for all who have it", Reprice),),
        declared=Declared(after=("services",)),
    ),
)
