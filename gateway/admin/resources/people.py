"""Organizations, tenants and users: who exists."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.admin.resources.addresses import Address, Country
from gateway.admin.resources.charges import UNBILLED
from gateway.admin.resources.handovers import StripeCustomer
from gateway.admin.resources.models import IS_CURRENT, answer_of, patch_of
from gateway.admin.resources.resource import Action, Declared, Filter, Resource
from gateway.admin.resources.said import ExternalId
from gateway.admin.resources.top_ups import AutoTopUpField, UnitCost
from gateway.admin.resources.values import (
    Amount,
    Cap,
    Currency,
    Exactly,
    Flag,
    Fraction,
    Id,
    In,
    LimitsIn,
    Money,
    PositiveAmount,
    Text,
)
from gateway.core.accounts.roles import BILLING, OPERATOR, access
from gateway.core.accounts.zones import is_zone
from gateway.core.billing.due import LEFT_REASONS
from gateway.core.billing.payment import DUE_DAYS_MAX
from gateway.core.billing.vector import BASE_CURRENCY


def _zone(name: str) -> str:
    if not is_zone(name):
        raise ValueError("must be a name of the IANA's, such as Europe/Berlin")
    return name


Zone = Annotated[Text, AfterValidator(_zone)]


class OrganizationCreate(In):
    """A new organization."""

    name: Text
    currency: Currency = Field(default=BASE_CURRENCY, description="ISO 4217; what its money is in.")
    credit_limit: Amount = Field(default=0, description="Credits it may use beyond its balance.")
    credit_unit_cost: UnitCost | None = Field(
        default=None,
        description="What a credit costs that is used beyond the balance from now on; null: nothing.",
    )
    auto_top_up: AutoTopUpField | None = Field(
        default=None,
        description="Credits that are bought by themselves: at which balance (threshold), how many "
        "(credits), what one costs (unit_cost), invoicing now or prepaid, how often a month (monthly_max).",
    )
    spend_cap: Cap | None = Field(default=None, description="Most Pay-Per-Use spend a month.")
    services: Literal["all", "listed"] = Field(
        default="all",
        description="Of services paid with credits or by the call: all, or those it has a price for.",
    )
    limits: LimitsIn | None = None
    due_days: Annotated[int, Field(strict=True, ge=0, le=DUE_DAYS_MAX)] | None = Field(
        default=None, description="Days its invoices may be paid in; null is what the settings say."
    )
    dunning: Flag = Field(
        default=True,
        description="False: of its unpaid invoices nobody is reminded, and none ends in a block.",
    )
    tax_rate: Fraction = Field(default="0", description='A fraction, such as "0.20".', validate_default=True)
    address: Address | None = Field(default=None, description="Below its name on invoices.")
    country: Country | None = Field(default=None, description="ISO 3166, two letters.")
    tax_number: Text | None = Field(default=None, description="Such as its VAT identifier.")
    stripe_customer: StripeCustomer | None = Field(
        default=None,
        description="Who it is at Stripe, such as cus_…: what becomes final is handed over from now on.",
    )
    time_zone: Zone = Field(default="UTC", description="An IANA name: where its months end, for invoices.")


# What an organization says of itself. Files and staff know it by its name.
THEIR_FIELDS = {"limits", "address", "country", "tax_number"}

Organization = answer_of(
    OrganizationCreate,
    "Who is billed: the owner of credits, of a spend cap and of tenants.",
    credit_balance=(int, Field(description="Credits as the counters hold them now.")),
    balance_is_current=(bool, Field(default=False, description=IS_CURRENT)),
    credit_ahead=(Exactly, Field(description="Part of a credit that is paid and not used yet.")),
    credit_unit_cost=Money | None,
    spend_cap=Money | None,
    currency=(str, Field(description="ISO 4217; what its money is in.")),
    time_zone=str,
    invoicing_left=(str | None, Field(description="Why its invoice on schedule was not made; null: it was.")),
    invoicing_left_reason=(
        str | None,
        Field(description=f"The same in a word: {', '.join(LEFT_REASONS)}."),
    ),
)


class TenantCreate(In):
    """A new tenant; without `organization_id` an organization of its name is made for it."""

    name: Text
    organization_id: Id | None = None
    plan_id: Id | None = Field(default=None, description="A token plan.")
    limits: LimitsIn | None = None
    user_limits: LimitsIn | None = Field(default=None, description="For each of the tenant's users.")


Tenant = answer_of(
    TenantCreate,
    "A part of an organization with its own token quota. It never changes organization.",
    organization_id=Id,
)


class Recharge(In):
    """Tokens to add to what remains."""

    amount: PositiveAmount


class Adjust(In):
    """A correction of what remains, with its reason."""

    amount: PositiveAmount
    direction: Literal["IN", "OUT"]
    reason: Text


class UserCreate(In):
    """A new user; `organization_id` null is a member of staff."""

    external_id: ExternalId = Field(description="The caller's own name for this user.")
    organization_id: Id | None = None
    name: Text | None = None
    limits: LimitsIn | None = Field(default=None, description="Override the tenant's `user_limits`.")


User = answer_of(UserCreate, "Someone a request acts for, or a member of staff.")


RESOURCES = (
    Resource(
        name="organizations",
        access=access(
            BILLING,
            OPERATOR,
            verbs={"delete": (OPERATOR,)},
            fields={
                BILLING: OrganizationCreate.model_fields.keys() - {"limits"},
                OPERATOR: ("name", "limits"),
            },
            of_all=("create",),
            ours=("delete", *OrganizationCreate.model_fields.keys() - THEIR_FIELDS),
            theirs=("change",),
        ),
        description="Who is billed: the owner of credits, of a spend cap and of tenants.",
        out=Organization,
        create=OrganizationCreate,
        patch=patch_of(OrganizationCreate),
        deletable=True,
        live="credits",
        parts=(UNBILLED,),
        filters={
            "name": Filter("text"),
            "search": Filter("text"),
            "invoicing_left_reason": Filter("text", LEFT_REASONS),
        },
        declared=Declared(),
    ),
    Resource(
        name="tenants",
        access=access(
            OPERATOR,
            ours=("plan_id", "recharge", "reset", "adjust", "block", "unblock"),
            theirs=("create", "change", "delete"),
        ),
        description="Parts of organizations with their own token quota.",
        out=Tenant,
        create=TenantCreate,
        patch=patch_of(TenantCreate, without=("organization_id",)),
        deletable=True,
        filters={
            "organization_id": Filter(),
            "plan_id": Filter(),
            "name": Filter("text"),
            "search": Filter("text"),
        },
        actions=(
            Action("recharge", "Add tokens to what remains of this cycle", Recharge, quota=True),
            Action("reset", "Begin a new cycle now", quota=True),
            Action("adjust", "Correct what remains, stating why", Adjust, quota=True),
            Action("block", "Refuse the tenant's requests until unblocked", quota=True),
            Action("unblock", "Take a block by hand away", quota=True),
        ),
        declared=Declared(by=("organization_id", "name"), needs=("organization_id",), known_by_id=True),
    ),
    Resource(
        name="users",
        access=access(OPERATOR, theirs=("create", "change", "delete")),
        description="Whom requests act for, and staff. Met on their first request, or made here.",
        out=User,
        named_by="external_id",
        create=UserCreate,
        patch=patch_of(UserCreate, without=("organization_id", "external_id")),
        deletable=True,
        filters={"organization_id": Filter(), "external_id": Filter("text")},
        # Those that a request was the first to name are not configuration, unless a person gave them limits.
        declared=Declared(
            by=("organization_id", "external_id"),
            is_kept=lambda row: not row["first_sight"] or bool(row["limits"]),
        ),
    ),
)
