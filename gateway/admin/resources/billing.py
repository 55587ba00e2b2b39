"""Credits and subscriptions of organizations: what was bought."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.admin.resources.models import answer_of, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Resource
from gateway.admin.resources.unit_prices import TokenUnitPrice
from gateway.admin.resources.values import (
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
    SignedAmount,
)
from gateway.core.accounts.roles import BILLING, access

CATEGORIES = ("paid", "promotional", "refund", "correction")

Category = Literal["paid", "promotional", "refund", "correction"]
Invoicing = Literal["next", "now", "prepaid"]
Interval = Literal["monthly", "quarterly", "annual"]
Billing = Literal["advance", "arrears"]


class CreditAdditionCreate(In):
    """Credits to give, or to take back where the number is negative."""

    organization_id: Id
    credits_added: SignedAmount = Field(description="Not 0; negative takes back.")
    added_by_id: Id | None = Field(default=None, description="A user; by default the caller's.")
    remark: LongText | None = None
    category: Category | None = Field(
        default=None, description="By default paid, or correction where credits are taken back."
    )
    priority: Amount | None = Field(default=None, description="A lower number is used first; 100 by default.")
    expires_at: Instant | None = Field(default=None, description="What is unspent then is taken back.")
    unit_cost: Money | None = Field(
        default=None, description="What one credit costs; paid ones with a cost are on the next invoice."
    )
    timestamp: Instant | None = Field(default=None, description="By default now; not in the future.")
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
        Field(description="Bought by itself: the movement of the account that brought the threshold."),
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
    end_date: Day | None = Field(
        default=None,
        description="The first UTC day it is no longer in force; null: it renews until cancelled.",
    )
    billing_interval: Interval = Field(
        default="monthly", description="How long a cycle is; a quarter costs three months."
    )
    billing: Billing | None = Field(
        default=None,
        description="When the fee of a cycle is charged as one: advance, with its first day; arrears, with "
        "its last. Null: every invoice has the days of its period.",
    )
    trial_end: Day | None = Field(default=None, description="The first day that is not free.")
    negotiated_cost: Money | None = Field(
        default=None, description="What a cycle of the plan costs instead of its price; not of a later plan."
    )
    overage_unit_price: TokenUnitPrice | None = Field(
        default=None, description="What a token beyond a plan that bills costs instead of its price."
    )
    discount_rate: Fraction | None = Field(
        default=None, description="What is off the fee, as a fraction: 0.20 is 20 %."
    )
    discount_end: Day | None = Field(
        default=None, description="The first day without the discount; null: there is none."
    )
    minimum_commitment: Money | None = Field(
        default=None,
        description="What fee, discount, overage and use of a cycle come to at least; what is missing is "
        "charged once it is over.",
    )


class OrganizationSubscriptionExtend(In):
    """The end to move."""

    end_date: Day | None = Field(description="Null: it renews until cancelled.")


class ChangePlan(In):
    """The plan to move to, and when."""

    plan_id: Id
    when: Literal["now", "period_end"] = "now"


class Cancel(In):
    """When it is to end."""

    when: Literal["now", "period_end"] = "period_end"


class SubscriptionSegment(Out):
    """A plan that was, is or will be in force, and what a whole period of it costs."""

    plan_id: Id
    billing_interval: str
    cost: Money
    start_date: Day
    end_date: Day | None


class OrganizationSubscription(Out):
    """What an organization is subscribed to; `segments` keep every plan it had."""

    id: Id
    organization_id: Id
    plan_id: Id
    start_date: Day
    end_date: Day | None = Field(description="Null: it renews until it is cancelled.")
    billing_interval: str
    billing: str | None = Field(description="advance, arrears, or null: by day.")
    trial_end: Day | None
    negotiated_cost: Exactly | None
    overage_unit_price: Exactly | None
    discount_rate: Exactly | None
    discount_end: Day | None
    minimum_commitment: Exactly | None
    next_plan_id: Id | None = Field(description="The plan it changes to on `change_at`.")
    change_at: Day | None
    cancel_at: Day | None = Field(description="The day a cancellation ends it.")
    status: str = Field(description="future, active or over.")
    segments: Annotated[list[SubscriptionSegment], Field(description="Oldest first.")]
    created_at: Instant


RESOURCES = (
    Resource(
        name="credit-additions",
        access=access(BILLING, ours=("create",)),
        description="Credits given to organizations and taken back, with what is left of each.",
        out=CreditAddition,
        create=CreditAdditionCreate,
        filters={
            "organization_id": Filter(),
            "added_by_id": Filter(),
            "category": Filter("text", CATEGORIES),
        },
    ),
    Resource(
        name="organization-subscriptions",
        access=access(BILLING, ours=("create", "extend", "change", "cancel")),
        description="What organizations are subscribed to.",
        out=OrganizationSubscription,
        create=OrganizationSubscriptionCreate,
        patch=patch_of(OrganizationSubscriptionExtend, name="OrganizationSubscriptionPatch"),
        patch_verb="extend",
        filters={"organization_id": Filter(), "plan_id": Filter(), "next_plan_id": Filter()},
        refers={"plan_id": "subscription-plans"},
        actions=(
            Action("change", "Move to another plan, now or when the period ends", ChangePlan),
            Action("cancel", "End it, now or when the period ends", Cancel),
        ),
        declared=Declared(
            by=("organization_id",),
            is_gone=lambda row: row["status"] == "over",
            begins=("start_date",),
            actions={"plan_id": "change"},
            becomes={"plan_id": "next_plan_id"},
        ),
    ),
)
