"""Credits and subscriptions of organizations: what was bought."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.admin.resources.models import answer_of, patch_of
from gateway.admin.resources.resource import Action, Filter, Resource
from gateway.admin.resources.values import Amount, Day, Id, In, Instant, LongText, Money, Out, SignedAmount

CATEGORIES = ("paid", "promotional", "refund", "correction")

Category = Literal["paid", "promotional", "refund", "correction"]
Interval = Literal["monthly", "annual"]


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


CreditAddition = answer_of(
    CreditAdditionCreate,
    "Credits given to an organization, or taken back. Never changed: correct one by another.",
    credits_remaining=(int, Field(description="Not used yet, as of the last seconds.")),
    category=str,
    priority=int,
    timestamp=Instant,
)


class OrganizationSubscriptionCreate(In):
    """A new subscription; an organization has one at a time."""

    organization_id: Id
    plan_id: Id = Field(description="A subscription plan.")
    start_date: Day = Field(description="The first UTC day it is in force; cycles count from it.")
    end_date: Day = Field(description="The first UTC day it is no longer in force.")
    billing_interval: Interval = "monthly"


class OrganizationSubscriptionExtend(In):
    """The end to move."""

    end_date: Day


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
    end_date: Day


class OrganizationSubscription(Out):
    """What an organization is subscribed to; `segments` keep every plan it had."""

    id: Id
    organization_id: Id
    plan_id: Id
    start_date: Day
    end_date: Day
    billing_interval: str
    next_plan_id: Id | None = Field(description="The plan it changes to on `change_at`.")
    change_at: Day | None
    cancel_at: Day | None = Field(description="The day a cancellation ends it.")
    status: str = Field(description="future, active or over.")
    segments: Annotated[list[SubscriptionSegment], Field(description="Oldest first.")]
    created_at: Instant


RESOURCES = (
    Resource(
        name="credit-additions",
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
    ),
)
