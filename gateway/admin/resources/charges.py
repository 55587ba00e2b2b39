"""Charges, which the Admin API shows and nobody changes."""

from __future__ import annotations

from pydantic import (
    Field,
)

from gateway.admin.resources.resource import (
    Resource,
    filters,
)
from gateway.admin.resources.values import (
    Exactly,
    Id,
    Instant,
    Out,
)
from gateway.core.accounts.administration import access
from gateway.core.billing.charges import KINDS, REASONS


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
