"""Dated tax rates of organizations."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from gateway.admin.resources.resource import (
    ConfigDeclaration,
    Resource,
    answer_of,
    filters,
)
from gateway.admin.resources.values import (
    Day,
    Fraction,
    Id,
    In,
    Text,
    optional,
)
from gateway.core.accounts.administration import BILLING, access

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
