"""Resources of billing: credit additions, subscriptions, charges, amendments and organizations' tax rates."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    create_model,
    model_validator,
)

from gateway.admin.resources.resource import (
    Action,
    ConfigDeclaration,
    Resource,
    SubResource,
    answer_of,
    dated,
    filters,
    patch_of,
)
from gateway.admin.resources.values import (
    AS_STORED,
    Amount,
    Day,
    Exactly,
    Fraction,
    Id,
    In,
    Instant,
    LongText,
    Money,
    Out,
    PositiveAmount,
    SignedAmount,
    Text,
    TokenUnitPrice,
    must,
    optional,
)
from gateway.core.accounts.administration import BILLING, access
from gateway.core.billing.charges import KINDS, REASONS
from gateway.core.billing.events import AMOUNT_MAX
from gateway.core.billing.payments import TOP_UPS_A_MONTH_MAX

CATEGORIES = ("paid", "promotional", "refund", "correction")

Category = Literal["paid", "promotional", "refund", "correction"]
Invoicing = Literal["next", "now", "prepaid"]
Interval = Literal["monthly", "quarterly", "annual"]
Billing = Literal["advance", "arrears"]
Quantity = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class CreditAdditionCreate(In):
    """Credits to add, or to take back if the number is negative."""

    organization_id: Id
    credits_added: SignedAmount = Field(description="Not 0; negative takes back.")
    added_by_id: Id | None = optional("A user; by default the caller's.")
    remark: LongText | None = None
    category: Category | None = optional("By default paid, or correction where credits are taken back.")
    priority: Amount | None = optional("A lower number is used first; 100 by default.")
    expires_at: Instant | None = optional("The unspent part then is taken back.")
    unit_cost: Money | None = optional(
        "What one credit costs; paid ones with a cost are on the next invoice."
    )
    timestamp: Instant | None = optional("By default now; not in the future.")
    invoicing: Invoicing = Field(
        default="next",
        description="next: on the next invoice. now: on one of its own, made at once; the credits are in "
        "force at once. prepaid: on one of its own, made at once; they are in force once it is paid.",
    )


CreditAddition = answer_of(
    CreditAdditionCreate,
    "Credits given to an organization, or taken back. Never changed: correct one by another.",
    in_force=(bool, Field(description="False while they wait for their payment.")),
    invoice_id=(Id | None, Field(description="Its own invoice, once that is made.")),
    crossed_seq=(
        int | None,
        Field(description="Bought automatically: the movement of the account that reached the threshold."),
    ),
    credits_remaining=(int, Field(description="Not used yet, as of the last seconds.")),
    category=str,
    priority=int,
    timestamp=Instant,
    invoicing=(
        str,
        Field(
            description="next, now or prepaid; postpaid: what a paid invoice billed of credits used before."
        ),
    ),
)


class OrganizationSubscriptionCreate(In):
    """A new subscription; an organization has one at a time."""

    organization_id: Id
    plan_id: Id = Field(description="A subscription plan.")
    start_date: Day = Field(description="The first UTC day it is in force; cycles count from it.")
    end_date: Day | None = optional(
        "The first UTC day it is no longer in force; null: it renews until cancelled."
    )
    billing_interval: Interval = Field(
        default="monthly", description="How long a cycle is; a quarter costs three months."
    )
    billing: Billing | None = optional(
        "When the fee of a cycle is charged as one: advance, with its first day; arrears, with "
        "its last. Null: every invoice has the days of its period."
    )
    trial_end: Day | None = optional("The first day that is not free.")
    negotiated_cost: Money | None = optional(
        "What a cycle of the plan costs instead of its price; not of a later plan."
    )
    overage_unit_price: TokenUnitPrice | None = optional(
        "What a token beyond a plan that bills costs instead of its price."
    )
    discount_rate: Fraction | None = optional("The discount on the fee, as a fraction: 0.20 is 20 %.")
    discount_end: Day | None = optional("The first day without the discount; null: there is none.")
    minimum_commitment: Money | None = optional(
        "What fee, discount, overage and use of a cycle come to at least; what is missing is "
        "charged once it is over."
    )
    quantity: Quantity = Field(
        default=1, description="Quantity, such as seats; the fee is charged for each. Tokens do not change."
    )


class OrganizationSubscriptionExtend(In):
    """The new end of a subscription."""

    end_date: Day | None = Field(description="Null: it renews until cancelled.")


class ChangePlan(In):
    """The plan to switch a subscription to, and when."""

    plan_id: Id
    when: Literal["now", "period_end"] = "now"


class _SubscriptionTerms(In):
    discount: Fraction | None = optional(
        "The discount on the fee, as a fraction, until it is changed; null: nothing."
    )
    minimum: Money | None = optional("What a cycle comes to at least, by day; null: there is none.")
    negotiated_cost: Money | None = optional("What a cycle of the plan costs; null: its price of the day.")
    quantity: Quantity = Field(default_factory=int, description="Quantity; the fee is charged for each.")


NewTerms = dated(
    _SubscriptionTerms,
    "NewTerms",
    "The changes of a running subscription, with their days. what is not named stays.",
    "The first UTC day of the new terms, not before it had its plan. Those of a day to come wait for it.",
)


class Cancel(In):
    """When a subscription is to end."""

    when: Literal["now", "period_end"] = "period_end"


class SubscriptionSegment(Out):
    """A past, current or future plan of a subscription, and the price of a whole period."""

    plan_id: Id
    billing_interval: str
    cost: Money
    start_date: Day
    end_date: Day | None


SubscriptionTerms: type[Out] = create_model(  # type: ignore[call-overload]  # "from" is a keyword
    "SubscriptionTerms",
    __base__=Out,
    __doc__="Terms from a day on; what is not named stays.",
    **{
        "from": (Day, ...),
        "waits": (bool, Field(description="Its day is to come.")),
        "discount": (Exactly | None, None),
        "minimum": (Exactly | None, None),
        "negotiated_cost": (Exactly | None, None),
        "quantity": (int | None, None),
    },
)


OrganizationSubscription = answer_of(
    OrganizationSubscriptionCreate,
    "What an organization is subscribed to; `segments` keep every plan it had.",
    end_date=(Day | None, Field(description="Null: it renews until it is cancelled.")),
    billing=(str | None, Field(description="advance, arrears, or null: by day.")),
    negotiated_cost=Exactly | None,
    overage_unit_price=Exactly | None,
    discount_rate=Exactly | None,
    minimum_commitment=Exactly | None,
    quantity=int,
    next_plan_id=(Id | None, Field(description="The plan it changes to on `change_at`.")),
    change_at=Day | None,
    cancel_at=(Day | None, Field(description="The day a cancellation ends it.")),
    status=(str, Field(description="future, active or over.")),
    segments=Annotated[list[SubscriptionSegment], Field(description="Oldest first.")],
    terms=Annotated[
        list[SubscriptionTerms],  # type: ignore[valid-type]  # made here
        Field(description="Terms agreed since it began, the oldest first."),
    ],
)

# Terms besides the plan that can be agreed on again.
_AGREED = ("discount_rate", "minimum_commitment", "negotiated_cost", "quantity")

RESOURCES = (
    Resource(
        name="credit-additions",
        access=access(BILLING, ours=("create",)),
        description="Credits given to organizations and taken back, with what is left of each.",
        out=CreditAddition,
        create=CreditAdditionCreate,
        filters=filters("organization_id category added_by_id", category=CATEGORIES),
    ),
    Resource(
        name="organization-subscriptions",
        access=access(BILLING, ours=("create", "extend", "change", "cancel", "terms")),
        description="What organizations are subscribed to.",
        out=OrganizationSubscription,
        create=OrganizationSubscriptionCreate,
        patch=patch_of(OrganizationSubscriptionExtend, name="OrganizationSubscriptionPatch"),
        patch_verb="extend",
        filters=filters("organization_id plan_id next_plan_id"),
        refers={"plan_id": "subscription-plans"},
        actions=(
            Action("change", "Move to another plan, now or when the period ends", ChangePlan),
            Action("terms", "Change discount, minimum, fee or quantity from a day on", NewTerms),
            Action("cancel", "End it, now or when the period ends", Cancel),
        ),
        declared=ConfigDeclaration(
            by=("organization_id",),
            is_gone=lambda row: row["status"] == "over",
            begins=("start_date",),
            actions={"plan_id": "change", **dict.fromkeys(_AGREED, "terms")},
            words={"discount_rate": "discount", "minimum_commitment": "minimum"},
            dated={"terms": "from"},
            becomes={"plan_id": "next_plan_id"},
        ),
    ),
)


# Charges: amounts owed, one row for each fact, billed or not.
class Charge(Out):
    """An exact amount owed for something supplied; negative for a correction."""

    id: Id
    organization_id: Id
    kind: str = Field(description=f"{', '.join(KINDS)}.")
    period_start: Instant = Field(description="When it was supplied: from here")
    period_end: Instant = Field(description="to here, not included.")
    quantity: Exactly = Field(description="Days, tokens, credits or units.")
    unit_price: Exactly
    amount: Exactly = Field(description="Not rounded: a line of an invoice is, once.")
    currency: str
    source: str = Field(
        description="What it is for: subscription_segment, organization_subscription, token_ledger, "
        "credit_addition, credit_debt, usage_tier or usage_told (units told after their day)."
    )
    source_id: int | None = Field(
        description="The segment, the addition; of tokens the seq that their cycle or plan began with."
    )
    reason: str = Field(
        description="fact; returned: days that a subscription lost; void, reissued: of an invoice made "
        "void, and the amount owed again; credited, credit_void: of a credit note, and of one "
        "made void."
    )
    corrects_id: Id | None = Field(description="The charge it takes back, or owes again.")
    tenant_id: Id | None
    service_id: Id | None
    invoice_id: Id | None = Field(description="The invoice that has it; null where none has.")
    line: int | None = Field(description="Its position there; null where it came to nothing.")
    created_at: Instant


class UnbilledItem(Out):
    """The unbilled charges of a kind."""

    kind: str
    amount: Exactly = Field(description="Not rounded.")
    currency: str
    period_start: Instant = Field(description="When the first of it was supplied.")
    period_end: Instant = Field(description="Until when the last of it was.")
    charges: int = Field(description="How many there are, those in use included.")


UNBILLED = SubResource(
    "unbilled",
    "Add up what it owes and no invoice has: of a subscription the days that are over",
    UnbilledItem,
    "by kind",
    ("kind", "amount", "currency", "period_start", "period_end", "charges"),
)
CHARGE_RESOURCES = (
    Resource(
        name="charges",
        access=access(),
        description="Money that is owed: a row for each fact, billed or not.",
        out=Charge,
        named_by="id",
        refers={"corrects_id": "charges"},
        filters=filters(
            "organization_id kind billed:flag reason invoice_id tenant_id service_id "
            "source:text source_id corrects_id",
            kind=KINDS,
            reason=REASONS,
        ),
    ),
)


# Amendments: a refund of a part of a call's charge, or a further charge, with a reason.

MOVED = ("tokens", "credits", "units", "amount")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise ValueError("must be the id of a request, a UUID") from error


RequestId = Annotated[str, Field(strict=True, json_schema_extra={"format": "uuid"}), AfterValidator(_uuid)]
Direction = Literal["IN", "OUT"]
Moved = Annotated[int, Field(strict=True, ge=1, le=AMOUNT_MAX)]


class AmendmentCreate(In):
    """An amendment: a refund of a part of a call's charge, or a further charge."""

    request_id: RequestId
    reason: Text
    organization_id: Id | None = optional("Whose call it must be.")
    direction: Direction = Field(
        default="IN", description="IN takes back part of its charge; OUT charges it more."
    )
    tokens: Moved | None = optional("Tokens of the call.")
    credits: Moved | None = optional("Given back as an addition, charged as a use of credits.")
    units: Moved | None = optional("Of a service with a price a unit.")
    amount: Money | None = optional("Money, of a call that was charged at cost.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(getattr(self, name) for name in MOVED):
            raise ValueError(f"must move something: {', '.join(MOVED)}")
        return self


class Amendment(Out):
    """A refund of a part of a call's charge, or a further charge, with its reason and actor."""

    id: Id
    request_id: UUID
    organization_id: Id
    tenant_id: Id
    service_id: Id | None
    direction: Direction
    tokens: int
    credits: int
    units: int
    amount: Exactly | None = Field(description="Of a call that was charged at cost.")
    late_tokens: int = Field(
        description="Tokens of a quota whose cycle is over: it does not move, and owes less, or more."
    )
    reason: str
    actor: str = Field(description="Who did it.")
    created_at: Instant


class Rerating(Out):
    """A call that was rated again: its cost before and after, and the new price."""

    id: Id
    price_id: Id
    request_id: UUID
    organization_id: Id
    tenant_id: Id
    service_id: Id
    cost_before: Exactly
    cost_after: Exactly
    charged: Exactly = Field(description="By how much its charge moves.")
    credits: int = Field(description="By how much the credits move that it was charged.")
    currency: str
    reason: str
    actor: str = Field(description="Who set the price.")
    created_at: Instant


AMENDMENT_RESOURCES = (
    Resource(
        name="amendments",
        access=access(BILLING, ours=("create",)),
        description="What calls were charged, taken back or added to. A call is amended once.",
        out=Amendment,
        create=AmendmentCreate,
        named_by="id",
        filters=filters(
            "organization_id tenant_id service_id request_id:uuid direction", direction=("IN", "OUT")
        ),
    ),
    Resource(
        name="reratings",
        access=access(),
        description="Calls that were rated again by a price that was in force when they were made.",
        out=Rerating,
        named_by="id",
        refers={"price_id": "prices"},
        filters=filters("organization_id tenant_id service_id price_id request_id:uuid"),
    ),
)


# Tax rates of organizations, by the day of supply.

TaxCategory = Literal["standard", "zero", "exempt", "reverse_charge", "outside_scope", "export"]


class TaxRateCreate(In):
    """A tax rate from a day on. It never changes: a later row replaces it."""

    organization_id: Id
    rate: Fraction = Field(description='A fraction, such as "0.20".')
    effective_from: Day = Field(description="The first day of supply it is for; may lie in the past.")
    category: TaxCategory | None = optional(
        "Of EN 16931. Above zero it is standard; below, why nothing is taxed."
    )
    reason: Text | None = optional("Why nothing is taxed, as documents say it.")


TaxRate = answer_of(TaxRateCreate, "What an organization is taxed with, since a day of supply.")

TAX_RATE_RESOURCES = (
    Resource(
        name="tax-rates",
        access=access(BILLING, ours=("create",)),
        description="What organizations are taxed with, by the day of supply. A rate is never changed: a "
        "later row takes its place.",
        out=TaxRate,
        named_by="id",
        create=TaxRateCreate,
        filters=filters("organization_id"),
        declared=ConfigDeclaration(by=("organization_id",), since="effective_from", repeats=True),
    ),
)


# The terms of an organization for buying credits automatically.
UnitCost = Annotated[Money, must(bool, "be above 0")]


class AutoTopUp(In):
    """Terms for buying credits automatically: threshold, number, price, and maximum of purchases a month."""

    threshold: Amount = Field(description="At this balance, or below it.")
    credits: PositiveAmount = Field(description="How many.")
    unit_cost: UnitCost = Field(description="What one costs.")
    invoicing: Literal["now", "prepaid"] = Field(
        default="now", description="prepaid: in force once their invoice is paid."
    )
    monthly_max: Annotated[int, Field(strict=True, ge=1, le=TOP_UPS_A_MONTH_MAX)] = Field(
        default=10, description="Most in a month (UTC)."
    )


AutoTopUpField = Annotated[AutoTopUp, AS_STORED]
