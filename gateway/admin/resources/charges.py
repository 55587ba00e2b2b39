"""Charges: money that is owed, a row for each fact, billed or not."""

from __future__ import annotations

from pydantic import Field

from gateway.admin.resources.resource import Filter, Part, Resource
from gateway.admin.resources.values import Exactly, Id, Instant, Out
from gateway.core.accounts.roles import access
from gateway.core.billing.charge import KINDS, REASONS


class Charge(Out):
    """Money that is owed for something supplied, exact; below zero where it takes something back."""

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
        description="fact; returned: days that a subscription lost; void, reissued: of an invoice made void, "
        "and what is owed again of it; credited, credit_void: of a credit note, and of one made void."
    )
    corrects_id: Id | None = Field(description="The charge it takes back, or owes again.")
    tenant_id: Id | None
    service_id: Id | None
    invoice_id: Id | None = Field(description="The invoice that has it; null where none has.")
    line: int | None = Field(description="Its position there; null where it came to nothing.")
    created_at: Instant


class UnbilledItem(Out):
    """What is owed of a kind, and no invoice has."""

    kind: str
    amount: Exactly = Field(description="Not rounded.")
    currency: str
    period_start: Instant = Field(description="When the first of it was supplied.")
    period_end: Instant = Field(description="Until when the last of it was.")
    charges: int = Field(description="How many there are, those of what is being used included.")


UNBILLED = Part(
    "unbilled",
    "Add up what it owes and no invoice has: of a subscription the days that are over",
    UnbilledItem,
    "by kind",
    ("kind", "amount", "currency", "period_start", "period_end", "charges"),
)
RESOURCES = (
    Resource(
        name="charges",
        access=access(),
        description="Money that is owed: a row for each fact, billed or not.",
        out=Charge,
        named_by="id",
        refers={"corrects_id": "charges"},
        filters={
            "organization_id": Filter(),
            "kind": Filter("text", KINDS),
            "reason": Filter("text", REASONS),
            "source": Filter("text"),
            "source_id": Filter(),
            "tenant_id": Filter(),
            "service_id": Filter(),
            "invoice_id": Filter(),
            "corrects_id": Filter(),
            "billed": Filter("flag"),
        },
    ),
)
