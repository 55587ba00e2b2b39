"""Resources of billing: credit additions, top-ups and subscriptions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    create_model,
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
    TokenUnitPrice,
    must,
    optional,
)
from gateway.core.accounts.administration import BILLING, access
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
    quantity: Quantity = Field(
        default_factory=lambda: 0, description="Quantity; the fee is charged for each."
    )


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
