"""What models cost, by provider, name, kind of token and time; and what a call would cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from gateway.admin.resources.resource import Declared, Filter, Question, Resource
from gateway.admin.resources.said import ModelText
from gateway.admin.resources.values import Amount, Currency, Exactly, Id, In, Instant, Money, Out, Text
from gateway.core.accounts.roles import BILLING, Reach, access
from gateway.core.billing.price_book import MATCHES, OPERATOR, SOURCES
from gateway.core.billing.vector import BASE_CURRENCY, KINDS

TOOLS_MAX = 100
CONTEXT_TIERS_MAX = 20
SERVICE_TIERS_MAX = 20
ANY_NAME = "*"

_PRICE = {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?$", "examples": ["2.50"]}


def _exact(value: Decimal) -> str:
    return f"{value:f}"


def _rate(value: object) -> object:
    if isinstance(value, str) and value.startswith("-"):
        raise ValueError('must be a decimal from 0 in a string, such as "2.50"')
    return value


def _ascii(name: str) -> str:
    if not name.isascii():
        raise ValueError("must be of ASCII characters: capitals of others are no two systems' same letters")
    return name


def _plain(model: str) -> str:
    if model.endswith(ANY_NAME):
        raise ValueError("must be a name without *; say match: prefix for all that begin with it")
    return model


def _lower(name: str) -> str:
    if name != name.lower():
        raise ValueError("must be in lower case, as names of tools and tiers are compared")
    return name


def _by_name(prices: dict[str, Decimal]) -> dict[str, str]:
    return {name: _exact(price) for name, price in prices.items()}


# With the decimals it was said with: at most nine.
Rate = Annotated[
    Money,
    BeforeValidator(_rate),
    PlainSerializer(_exact, when_used="json"),
    WithJsonSchema(_PRICE),
]
# Of a model, or of who sells it.
ModelName = Annotated[ModelText, AfterValidator(_ascii)]
# Of a provider's tool, or of a tier of service: what answers say is compared in lower case.
LowerName = Annotated[Text, AfterValidator(_lower)]
Rates = Annotated[dict[LowerName, Rate], PlainSerializer(_by_name)]


class TokenRates(In):
    """What a million tokens of each kind cost. A kind without a price costs what it falls back to."""

    input: Rate | None = Field(default=None, description="A million tokens read, but for cached ones.")
    output: Rate | None = Field(default=None, description="A million tokens written.")
    cache_read: Rate | None = Field(default=None, description="Read from a cache; null is what input costs.")
    cache_write: Rate | None = Field(
        default=None, description="Written to a cache for minutes; null is what input costs."
    )
    cache_write_1h: Rate | None = Field(
        default=None, description="Written to it for an hour; null is what cache_write costs."
    )
    reasoning: Rate | None = Field(default=None, description="Of the output; null is what output costs.")
    audio_input: Rate | None = Field(default=None, description="Of the input; null is what input costs.")
    audio_output: Rate | None = Field(default=None, description="Of the output; null is what output costs.")
    image_input: Rate | None = Field(default=None, description="Of the input; null is what input costs.")
    image_output: Rate | None = Field(default=None, description="Of the output; null is what output costs.")


class ContextTier(TokenRates):
    """Prices of the whole call where it has read more tokens than `above`; others stay as they are."""

    above: Amount

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, kind) is None for kind in KINDS):
            raise ValueError(f"must name a price: {', '.join(KINDS)}")
        return self


def _ascending(tiers: list[ContextTier]) -> list[ContextTier]:
    ends = [tier.above for tier in tiers]
    if ends != sorted(set(ends)):
        raise ValueError("must ascend in above")
    return tiers


def _stored(tiers: list[ContextTier]) -> list[dict[str, Any]]:
    return [tier.model_dump(mode="json", exclude_none=True) for tier in tiers]


ContextTiers = Annotated[
    list[ContextTier],
    Field(min_length=1, max_length=CONTEXT_TIERS_MAX),
    AfterValidator(_ascending),
    PlainSerializer(_stored),
]


class _Priced(In):
    """What a price is of."""

    model: Annotated[ModelName, AfterValidator(_plain)] = Field(
        description="A model's name, or what names begin with; A-Z and a-z are the same."
    )
    currency: Currency
    effective_from: Instant = Field(description="It is in force from then on; may lie in the past.")
    provider: ModelName | None = Field(default=None, description="Whose model; null is anybody's.")
    match: Literal["exact", "prefix"] = "exact"


class PriceCreate(TokenRates, _Priced):
    """A new price. It is never changed; a later one of the same takes its place."""

    request: Rate | None = Field(default=None, description="A call, whatever it uses.")
    tools: Annotated[Rates, Field(max_length=TOOLS_MAX)] | None = Field(
        default=None, description="A thousand uses of a provider's tool, by its name."
    )
    context_tiers: ContextTiers | None = Field(
        default=None, description="Prices of calls that read more tokens than `above`."
    )
    service_tiers: Annotated[Rates, Field(max_length=SERVICE_TIERS_MAX)] | None = Field(
        default=None, description="What tokens and the call cost in a service tier, times the usual."
    )
    source: Literal["bundled", "operator"] = Field(
        default="operator", description="The operator's stand above the bundled list."
    )


class Price(Out):
    """What a model costs since a time. Never changed: a later one takes its place."""

    id: Id
    provider: str | None
    model: str
    match: str
    currency: str
    effective_from: Instant
    input: Rate | None
    output: Rate | None
    cache_read: Rate | None
    cache_write: Rate | None
    cache_write_1h: Rate | None
    reasoning: Rate | None
    audio_input: Rate | None
    audio_output: Rate | None
    image_input: Rate | None
    image_output: Rate | None
    request: Rate | None
    tools: dict[str, str] | None
    context_tiers: list[dict[str, Any]] | None
    service_tiers: dict[str, str] | None
    source: str
    created_at: Instant


class Asked(In):
    """What a call used, and when."""

    model: Text
    at: Instant | None = Field(default=None, description="By default now.")
    provider: Text | None = Field(default=None, description="Whose model; by default its maker's.")
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
        default={}, description="Uses by name, each as tools.NAME=USES."
    )
    service_tier: LowerName | None = None


class QuoteLine(Out):
    """One part of a quote."""

    kind: str = Field(description="A kind of token, request, or tools. and a name.")
    quantity: int
    unit_price: Exactly = Field(description="With its service tier in it.")
    per: int = Field(description="What the price is of: a million tokens, a call, a thousand uses.")
    amount: Exactly = Field(description="Exact; the cost is their sum, rounded half up to nine decimals.")


class Quote(Out):
    """What a call would cost, and by which price."""

    cost: Exactly
    currency: str
    lines: list[QuoteLine]
    unpriced: list[str] = Field(
        description="Tools that the price does not name: their uses are not in `cost`."
    )
    price_id: Id
    provider: str | None
    model: str = Field(description="As the price has it.")
    match: str
    source: str
    effective_from: Instant


QUOTE = Question("quote", "Say what a call would cost", Asked, Quote)
RESOURCES = (
    Resource(
        name="prices",
        access=access(BILLING, reach=Reach.SHARED),
        named_by="model",
        description="What models cost. A price is never changed: a later one takes its place.",
        out=Price,
        create=PriceCreate,
        filters={
            "model": Filter("text"),
            "provider": Filter("text"),
            "match": Filter("text", MATCHES),
            "currency": Filter("text"),
            "source": Filter("text", SOURCES),
        },
        questions=(QUOTE,),
        declared=Declared(
            by=("provider", "match", "currency", "source", "model"),
            folded=True,
            after=("organizations",),
            is_kept=lambda row: row["source"] == OPERATOR,
            since="effective_from",
        ),
    ),
)
