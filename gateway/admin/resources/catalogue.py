"""Resources of the catalogue: services, models, shares, negotiated terms, subscription plans, prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    create_model,
    model_validator,
)

from gateway.admin.resources.resource import (
    Action,
    ConfigDeclaration,
    Question,
    Resource,
    answer_of,
    dated,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    AS_STORED,
    FACTOR,
    TABLE,
    TEXT_CHARS_MAX,
    Amount,
    AskedModel,
    CreditsPerUnit,
    Currency,
    Day,
    Exactly,
    Flag,
    Fraction,
    Id,
    In,
    Instant,
    LongText,
    Markup,
    ModelText,
    Money,
    Out,
    PathPattern,
    PositiveAmount,
    ServiceKey,
    Text,
    UnitPrice,
    UpstreamName,
    Zone,
    must,
    optional,
    plausible,
)
from gateway.admin.resources.values import (
    Rate as CreditRate,
)
from gateway.core.accounts.administration import BILLING, OPERATOR, READ, TEAM_ROLES, Row, RowScope, access
from gateway.core.accounts.intervals import DAYS_OF_WEEK
from gateway.core.billing.hours import EXCEPT_MAX, overlaps, read_hours
from gateway.core.billing.price_book import BASE_CURRENCY, KINDS, MATCHES, SOURCES
from gateway.core.billing.price_book import OPERATOR as BY_OPERATOR
from gateway.core.calls.routes import FALLBACK_CAUSES, PATHS_MAX, TARGETS_MAX, FallbackCause

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
    """Credits that a million tokens of each kind cost; null takes the price of another kind."""

    input: Amount = 0
    output: Amount = 0
    cache_read: Amount | None = optional("Null is what input costs.")
    cached: Amount | None = optional("Another name of cache_read.")
    cache_write: Amount | None = optional("Null is what input costs.")
    cache_write_1h: Amount | None = optional("Null is what cache_write costs.")
    reasoning: Amount | None = optional("Null is what output costs.")
    audio_input: Amount | None = optional("Null is what input costs.")
    audio_output: Amount | None = optional("Null is what output costs.")
    image_input: Amount | None = optional("Null is what input costs.")
    image_output: Amount | None = optional("Null is what output costs.")

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
    """The cost of the call by the price book, times a markup."""

    markup: Markup = Field(default=Decimal(1), description='Such as "1.2".')
    credits_per_unit: CreditsPerUnit | None = optional(
        "Of Consumption: how many credits a unit of the currency is."
    )


def _only(name: str, kind: str, *beside: str) -> dict[str, Any]:
    none = {"type": "null"}
    apart = {"tiers", "per_million", "at_cost", "currency", "markup"} - {name, *beside}
    shape: dict[str, Any] = {"type": kind} | ({"items": {}} if kind == "array" else {})
    return {"required": [name], "properties": {name: shape, **dict.fromkeys(sorted(apart), none)}}


class Pricing(In):
    """Graduated tiers (Pay-Per-Use), credits by token and model (Consumption), or what the call costs."""

    model_config = ConfigDict(
        # Not as `oneOf`: of that, generators of clients make a class for each, and lose the fields.
        json_schema_extra={
            "if": _only("tiers", "array", "currency"),
            "else": {
                "if": _only("per_million", "object", "markup"),
                "else": _only("at_cost", "object"),
            },
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
    ) = optional('By model, exact or as gpt-4o*; "*" is any other.')
    currency: Currency | None = optional("What tiers are in; null is what each organization pays in.")
    markup: Markup | None = optional("Of per_million: what it is multiplied by.")
    at_cost: AtCost | None = optional("In money (Pay-Per-Use), or in credits (Consumption).")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        """Raise ValueError unless exactly one kind of price is set, and tiers rise."""
        if sum(kind is not None for kind in (self.tiers, self.per_million, self.at_cost)) != 1:
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
    counts_tokens: Flag | None = optional(
        "Debit the tenant's tokens; null is as the business model says: Subscription does."
    )
    pricing: PricingField | None = None
    upstream: UpstreamName | None = optional(
        "Where /services/<key>/ goes: an upstream of the gateways' configuration."
    )
    paths: Paths | None = optional("Paths that may be called there, such as /v1/sms/*; null is all.")


Service = answer_of(ServiceCreate, "Something that can be used and is metered.")


class AnsweringUpstream(In):
    """An upstream that answers for a model."""

    upstream: UpstreamName
    model: AskedModel | None = optional(
        "What it calls the model; null is the name asked for, a * what is behind a prefix."
    )


Targets = Annotated[list[AnsweringUpstream], Field(min_length=1, max_length=TARGETS_MAX), AS_STORED]


# As in a configuration file.
ModelTokens = Annotated[int, Field(strict=True, ge=1, le=100_000_000)]


class ModelCreate(In):
    """A new model."""

    name: AskedModel | None = optional(
        "What callers ask for; with a * at its end, what such names begin with."
    )
    prefix: AskedModel | None = optional("The same as a name with a * behind it, with or without the *.")
    targets: Targets = Field(description="The upstreams that answer, in the order they are asked.")
    fallback: Annotated[list[FallbackCause], Field(max_length=len(FALLBACK_CAUSES))] = Field(
        default=[*FALLBACK_CAUSES],
        description="The failures that lead to the next target.",
    )
    organization_id: Id | None = optional("Whose calls; null is everybody's.")
    output_max: ModelTokens | None = optional("Tokens of one answer at most; null is as its upstreams say.")
    context: ModelTokens | None = optional(
        "Tokens of prompt and answer together; null is as its upstreams say."
    )


Model = answer_of(ModelCreate, "A model that callers ask for, and the upstreams that answer.", name=str)


class OrganizationServiceCreate(In):
    """The terms that an organization negotiated for a service."""

    organization_id: Id
    service_id: Id
    negotiated_credits: Amount
    business_model_id: Id | None = optional("Instead of the service's own.")
    counts_tokens: Flag | None = optional("Debit the tenant's tokens; null is as the service says.")
    pricing: PricingField | None = None
    discount: Fraction | None = optional(
        "The fraction that is off its use, of the month in which it is set and of later ones: 0.10 is 10 %."
    )


OrganizationService = answer_of(
    OrganizationServiceCreate, "What an organization negotiated for a service; one per pair."
)


class SubscriptionPlanCreate(In):
    """A new subscription plan."""

    name: Text
    monthly_cost: Money
    annual_cost: Money
    currency: Currency = Field(
        default=BASE_CURRENCY, description="Only organizations with it can subscribe; it never changes."
    )
    feature_access: Annotated[list[ServiceKey], Field(max_length=FEATURES_MAX)] = Field(
        description="Keys of the services it includes."
    )
    token_plan_id: Id | None = None


class _PlanCosts(In):
    monthly_cost: Money = Field(default_factory=lambda: Decimal(0), description="By default as it is.")
    annual_cost: Money = Field(default_factory=lambda: Decimal(0), description="By default as it is.")


Reprice = dated(
    _PlanCosts,
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
        access=access(BILLING, reach=RowScope.SHARED),
        description="How services are paid for: with credits, by subscription, or by use.",
        out=BusinessModel,
        create=BusinessModelCreate,
        patch=patch_of(BusinessModelCreate),
        deletable=True,
        filters=filters("meter name:text", meter=METERS),
        declared=ConfigDeclaration(),
    ),
    Resource(
        name="services",
        access=access(
            BILLING,
            reach=RowScope.SHARED,
            teams={READ: TEAM_ROLES},
            verbs={"change": (BILLING, OPERATOR)},
            fields={
                BILLING: ServiceCreate.model_fields.keys() - {"upstream", "paths"},
                OPERATOR: ("description", "upstream", "paths"),
            },
        ),
        description="Things that can be used and are metered, and the cost of a unit.",
        out=Service,
        create=ServiceCreate,
        patch=patch_of(ServiceCreate, without=("key",)),
        deletable=True,
        filters=filters("business_model_id key:text name:text"),
        declared=ConfigDeclaration(by=("key",)),
    ),
    Resource(
        name="models",
        access=access(OPERATOR, of_all=("create", "change", "delete")),
        description="Models that callers ask for, and the upstreams that answer, in order.",
        out=Model,
        create=ModelCreate,
        patch=patch_of(ModelCreate, without=("name", "prefix", "organization_id")),
        deletable=True,
        filters=filters("organization_id name:text"),
        declared=ConfigDeclaration(by=("organization_id", "name")),
    ),
    Resource(
        name="organization-services",
        access=access(BILLING, ours=("create", "change", "delete")),
        description="What an organization pays for a service instead of its list price.",
        out=OrganizationService,
        create=OrganizationServiceCreate,
        patch=patch_of(OrganizationServiceCreate, without=("organization_id", "service_id")),
        deletable=True,
        filters=filters("organization_id service_id business_model_id"),
        declared=ConfigDeclaration(by=("organization_id", "service_id")),
    ),
    Resource(
        name="subscription-plans",
        access=access(BILLING, reach=RowScope.SHARED),
        description="What a subscription includes and costs.",
        out=SubscriptionPlan,
        create=SubscriptionPlanCreate,
        patch=patch_of(SubscriptionPlanCreate, without=("currency",)),
        deletable=True,
        filters=filters("name:text token_plan_id"),
        actions=(Action("reprice", "Change what it costs from a day on, for all who have it", Reprice),),
        declared=ConfigDeclaration(after=("services",)),
    ),
)


# Prices of models, by provider, name, kind of token and time; and quotes for calls.

TOOLS_MAX = 100
CONTEXT_TIERS_MAX = 20
SERVICE_TIERS_MAX = 20
HOURS_MAX = 50
ANY_NAME = "*"

_PRICE = {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?$", "examples": ["2.50"]}


def _exact(value: Decimal) -> str:
    return f"{value:f}"


def _rate(value: object) -> object:
    if isinstance(value, str) and value.startswith("-"):
        raise ValueError('must be a decimal from 0 in a string, such as "2.50"')
    return value


def _by_name(prices: dict[str, Decimal]) -> dict[str, str]:
    return {name: _exact(price) for name, price in prices.items()}


# With the decimals as sent: at most nine.
Rate = Annotated[
    Money,
    BeforeValidator(_rate),
    PlainSerializer(_exact, when_used="json"),
    WithJsonSchema(_PRICE),
]
# With six decimals at most, so that its thousandth is whole billionths.
MillionthRate = Annotated[
    Rate,
    must(lambda price: price.as_tuple().exponent >= -6, "have at most six decimals"),
    WithJsonSchema({**_PRICE, "pattern": r"^[0-9]{1,12}(\.[0-9]{1,6})?$"}),
]
# The name of a model or of a provider.
ModelName = Annotated[
    ModelText,
    must(str.isascii, "be of ASCII characters: capitals of others are no two systems' same letters"),
]
# The name of a provider's tool or of a service tier, compared with answers in lower case.
LowerName = Annotated[
    Text,
    must(lambda name: name == name.lower(), "be in lower case, as names of tools and tiers are compared"),
]
Rates = Annotated[dict[LowerName, Rate], PlainSerializer(_by_name)]


_PICTURE = "[^/]+/[^/]+"
_PICTURE_NAMES = {"maxLength": TEXT_CHARS_MAX, "pattern": f"^{_PICTURE}$"}


def _pictures(prices: dict[str, Decimal]) -> dict[str, Decimal]:
    for name in prices:
        if re.fullmatch(_PICTURE, name) is None:
            raise ValueError(f'must name size and quality, such as "1024x1024/high", not {name!r}')
    return prices


Pictures = Annotated[
    dict[LowerName, Rate],
    Field(min_length=1, max_length=TOOLS_MAX, json_schema_extra={"propertyNames": _PICTURE_NAMES}),
    AfterValidator(_pictures),
    PlainSerializer(_by_name),
]


class UnitRates(In):
    """Prices of units other than tokens, each a decimal string."""

    images: Pictures | None = optional('A picture by size and quality, such as {"1024x1024/high": "0.167"}.')
    audio_second: Rate | None = optional("A second of sound.")
    video_second: Rate | None = optional("A second of video.")
    character: Rate | None = optional("A character of text.")
    page: Rate | None = optional("A page.")
    search: Rate | None = optional("A search; also of a tool that searches and has no price in tools.")
    container: Rate | None = optional("A container; also of a tool that runs code and has no price in tools.")
    cache_hour: MillionthRate | None = optional("A million tokens that the provider keeps for an hour.")
    cache_audio: MillionthRate | None = optional(
        "A million tokens of cached sound; null is what cache_read costs."
    )


# Another name of the longer of two cache lifetimes: no provider has three.
LONGEST = "cache_write_12h"


class TokenRates(In):
    """Prices of a million tokens by kind. A kind without a price costs the same as another kind."""

    input: Rate | None = optional("A million tokens read, but for cached ones.")
    output: Rate | None = optional("A million tokens written.")
    cache_read: Rate | None = optional("Read from a cache; null is what input costs.")
    cache_write: Rate | None = optional("Written to a cache for minutes; null is what input costs.")
    cache_write_1h: Rate | None = optional(
        "Written to it for an hour or longer, also named cache_write_12h; null is what cache_write costs."
    )
    reasoning: Rate | None = optional("Of the output; null is what output costs.")
    audio_input: Rate | None = optional("Of the input; null is what input costs.")
    audio_output: Rate | None = optional("Of the output; null is what output costs.")
    image_input: Rate | None = optional("Of the input; null is what input costs.")
    image_output: Rate | None = optional("Of the output; null is what output costs.")

    @model_validator(mode="before")
    @classmethod
    def _rename_longest(cls, document: Any) -> Any:
        if not isinstance(document, dict) or LONGEST not in document:
            return document
        if document.get("cache_write_1h") is not None:
            raise ValueError(f"must name cache_write_1h or {LONGEST}: they are the same")
        return {name: value for name, value in document.items() if name != LONGEST} | {
            "cache_write_1h": document[LONGEST]
        }


class ContextTier(TokenRates):
    """Prices of a whole call that read more tokens than `above`; kinds that are left out keep their price."""

    above: Amount

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, kind) is None for kind in KINDS):
            raise ValueError(f"must name a price: {', '.join(KINDS)}")
        return self


ContextTiers = Annotated[
    list[ContextTier],
    Field(min_length=1, max_length=CONTEXT_TIERS_MAX),
    must(lambda tiers: (ends := [tier.above for tier in tiers]) == sorted(set(ends)), "ascend in above"),
    AS_STORED,
]


class ServiceTier(TokenRates):
    """Prices of a tier. Others stay, parts change as their whole. Usual context tiers do not apply."""

    context_tiers: ContextTiers | None = optional("Prices of calls that read more tokens than `above`.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, name) is None for name in (*KINDS, "context_tiers")):
            raise ValueError(f"must name a price: {', '.join(KINDS)}")
        return self


def _tier_form(value: object) -> str:
    return TABLE if isinstance(value, Mapping | ServiceTier) else FACTOR


def _tiers_by_name(tiers: dict[str, Decimal | ServiceTier]) -> dict[str, Any]:
    return {
        name: _exact(tier) if isinstance(tier, Decimal) else tier.model_dump(mode="json", exclude_none=True)
        for name, tier in tiers.items()
    }


ServiceTiers = Annotated[
    dict[
        LowerName,
        Annotated[
            Annotated[Rate, Tag(FACTOR)] | Annotated[ServiceTier, Tag(TABLE)], Discriminator(_tier_form)
        ],
    ],
    Field(max_length=SERVICE_TIERS_MAX),
    PlainSerializer(_tiers_by_name),
]


Clock = Annotated[str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]
HourFactor = Annotated[Rate, must(lambda factor: factor > 0, "be above 0")]


class PriceHour(In):
    """Hours of the week in which a price is multiplied, by the wall clock of a zone."""

    days: Annotated[
        list[Annotated[int, Field(strict=True, ge=1, le=DAYS_OF_WEEK)]],
        Field(min_length=1, max_length=DAYS_OF_WEEK),
        must(lambda days: len(set(days)) == len(days), "have each day once"),
    ] = Field(description="1 (Monday) to 7 (Sunday): the days that the hours begin on.")
    since: Annotated[Clock, must(lambda clock: clock != "24:00", "be before the end of the day")] = Field(
        alias="from", description="When they begin, such as 22:00."
    )
    until: Clock = Field(
        alias="to",
        description="When they are over; before `from`: on the next day. 24:00 is the end of a day.",
    )
    time_zone: Zone
    factor: HourFactor = Field(description="What the price is multiplied by then.")
    excepted: Annotated[list[Day], Field(max_length=EXCEPT_MAX)] = Field(
        default=[], alias="except", description="Dates on which they do not begin, such as holidays."
    )

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.since == self.until:
            raise ValueError("must end at another time than they begin, such as from 00:00 to 24:00")
        return self


def _hours_as_stored(hours: list[PriceHour] | None) -> list[dict[str, Any]] | None:
    if hours is None:
        return None
    return [hour.model_dump(mode="json", by_alias=True, exclude_defaults=True) for hour in hours]


def _check_hours(hours: list[PriceHour]) -> list[PriceHour]:
    price = read_hours({"hours": _hours_as_stored(hours)})
    assert price is not None
    for first, second in overlaps(price.spans):
        raise ValueError(f"must not overlap: hours[{first}] and hours[{second}] have a time in common")
    return hours


PriceHours = Annotated[
    list[PriceHour],
    Field(min_length=1, max_length=HOURS_MAX),
    AfterValidator(_check_hours),
    PlainSerializer(_hours_as_stored),
]


class _Priced(In):
    """The model, currency and time of a price."""

    model: Annotated[
        ModelName,
        must(
            lambda model: not model.endswith(ANY_NAME),
            "be a name without *; say match: prefix for all that begin with it",
        ),
    ] = Field(description="A model, or a prefix of models' names (see match). Case is ignored.")
    currency: Currency
    effective_from: Instant = Field(description="When it begins; may be in the past.")
    provider: ModelName | None = optional("Provider of the model; null: any.")
    match: Literal["exact", "prefix"] = "exact"


class _Amounts(UnitRates, TokenRates):
    """All that a price says of amounts."""

    request: Rate | None = optional("A call, whatever it uses.")
    tools: Annotated[Rates, Field(max_length=TOOLS_MAX)] | None = optional(
        "A thousand uses of a provider's tool, by its name."
    )
    context_tiers: ContextTiers | None = optional("Prices of calls that read more tokens than `above`.")
    service_tiers: ServiceTiers | None = optional(
        "By service tier: what tokens and the call cost, times the usual, or prices of each kind of token."
    )
    hours: PriceHours | None = optional(
        "Hours in which tokens and the call cost the usual times a factor; those of one price do not overlap."
    )
    hours_at: Literal["begin", "end"] = Field(
        default="begin", description="Which moment of a call is in the hours, or not."
    )


class PriceAmend(_Amounts):
    """The right amounts of a price that was set wrong. Other amounts stay; null takes one away."""

    reason: Text


class PriceCreate(_Amounts, _Priced):
    """A new price. It never changes; a later price for the same replaces it."""

    source: Literal["bundled", "operator"] = Field(
        default="operator", description="Prices of the operator precede the bundled list."
    )


Price = answer_of(
    PriceCreate,
    "What a model costs since a time. Never changed: a later one takes its place.",
    provider=str | None,
    model=str,
    currency=str,
    tools=dict[str, str] | None,
    images=dict[str, str] | None,
    context_tiers=list[dict[str, Any]] | None,
    service_tiers=dict[str, str | dict[str, Any]] | None,
    hours=list[dict[str, Any]] | None,
    amends_id=(Id | None, Field(description="The price in whose place it stands.")),
    amend_reason=str | None,
    amended_by_id=(Id | None, Field(description="The price that stands in its place.")),
)


class QuoteQuery(In):
    """The use of a call to be quoted, and its time."""

    model: Text
    at: Annotated[Instant, AfterValidator(plausible)] | None = optional("By default now.")
    provider: Text | None = optional("Provider of the model; default: its maker.")
    currency: Currency = BASE_CURRENCY
    input: Amount = Field(default=0, description="Tokens read, but for cached ones.")
    output: Amount = Field(default=0, description="Tokens written.")
    cache_read: Amount = 0
    cache_write: Amount = 0
    cache_write_1h: Amount = 0
    reasoning: Amount = Field(default=0, description="Of the output.")
    audio_input: Amount = Field(default=0, description="Of the input.")
    audio_output: Amount = Field(default=0, description="Of the output.")
    image_input: Amount = Field(default=0, description="Of the input.")
    image_output: Amount = Field(default=0, description="Of the output.")
    tools: Annotated[dict[LowerName, Amount], Field(max_length=TOOLS_MAX)] = Field(
        default={}, description="Uses by name, each as tools[NAME]=USES or tools.NAME=USES."
    )
    images: Annotated[dict[LowerName, Amount], Field(max_length=TOOLS_MAX)] = Field(
        default={},
        description="Pictures by size and quality, each as images[SIZE/QUALITY]=COUNT, or with a dot.",
    )
    audio_second: Amount = 0
    video_second: Amount = 0
    character: Amount = 0
    page: Amount = 0
    search: Amount = 0
    container: Amount = 0
    cache_hour: Amount = Field(default=0, description="Tokens that the provider keeps, times hours.")
    cache_audio: Amount = Field(default=0, description="Of cache_read: sound.")
    service_tier: LowerName | None = None


class QuoteLine(Out):
    """One part of a quote, such as the input tokens."""

    kind: str = Field(description="A kind of token, request, a unit, images.SIZE/QUALITY or tools.NAME.")
    quantity: int
    unit_price: Exactly = Field(description="With its service tier in it.")
    per: int = Field(
        description="What the price is of: a million tokens or hours of one, a call or unit, a thousand uses."
    )
    amount: Exactly = Field(description="Exact; the cost is their sum, rounded half up to nine decimals.")


class Quote(Out):
    """The cost of a call, and the price used."""

    cost: Exactly
    currency: str
    base: str | None = Field(description="The currency of the price, where it was converted.")
    exchange_rate: Exactly | None = Field(description="How much of `currency` a unit of `base` was.")
    lines: list[QuoteLine]
    unpriced: list[str] = Field(
        description="Tools and units that the price does not name: they are not in `cost`."
    )
    price_id: Id
    provider: str | None
    model: str = Field(description="As the price has it.")
    match: str
    source: str
    effective_from: Instant
    hour_factor: Exactly | None = Field(
        description="What the price is multiplied by at that time; null of a price without hours."
    )


class ExchangeRateCreate(In):
    """A new exchange rate. It never changes; a later rate for the same replaces it."""

    currency: Currency = Field(description="What organizations pay in.")
    base: Currency = Field(default=BASE_CURRENCY, description="What prices are in.")
    rate: CreditRate = Field(description="How much of `currency` a unit of `base` is.")
    effective_from: Instant = Field(description="When it begins; may be in the past.")


ExchangeRate = answer_of(
    ExchangeRateCreate, "What a unit of a currency is in another since a time. Never changed."
)


def _is_amendable(row: Row) -> bool:
    """Return whether a price is the operator's own, and no other one stands in its place."""
    return row["source"] == BY_OPERATOR and row["amended_by_id"] is None


QUOTE = Question("quote", "Say what a call would cost", QuoteQuery, Quote)
PRICE_RESOURCES = (
    Resource(
        name="prices",
        access=access(BILLING, reach=RowScope.SHARED, teams={READ: TEAM_ROLES}),
        named_by="model",
        description="What models cost. A price is never changed: a later one takes its place.",
        out=Price,
        create=PriceCreate,
        filters=filters("model:text provider:text currency:text source match", match=MATCHES, source=SOURCES),
        questions=(QUOTE,),
        actions=(
            Action(
                "amend",
                "Set it right as if it had always been so; its calls are rated again",
                PriceAmend,
                offered=_is_amendable,
            ),
        ),
        declared=ConfigDeclaration(
            by=("provider", "match", "currency", "source", "model"),
            folded=True,
            after=("organizations",),
            is_kept=_is_amendable,
            since="effective_from",
        ),
    ),
    Resource(
        name="exchange-rates",
        access=access(BILLING, reach=RowScope.SHARED),
        named_by="currency",
        description="What a unit of a currency is in another. Never changed: a later one takes its place.",
        out=ExchangeRate,
        create=ExchangeRateCreate,
        filters=filters("currency:text base:text"),
        declared=ConfigDeclaration(by=("base", "currency"), since="effective_from"),
    ),
)
