"""What organizations are taxed with, since which day of supply."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.admin.resources.models import answer_of
from gateway.admin.resources.resource import Declared, Filter, Resource
from gateway.admin.resources.values import Day, Fraction, Id, In, Text
from gateway.core.accounts.roles import BILLING, access

Category = Literal["standard", "zero", "exempt", "reverse_charge", "outside_scope", "export"]


class TaxRateCreate(In):
    """A rate from a day on. It is never changed: a later row takes its place."""

    organization_id: Id
    rate: Fraction = Field(description='A fraction, such as "0.20".')
    effective_from: Day = Field(description="The first day of supply it is for; may lie in the past.")
    category: Category | None = Field(
        default=None, description="Of EN 16931. Above zero it is standard; below, why nothing is taxed."
    )
    reason: Text | None = Field(default=None, description="Why nothing is taxed, as documents say it.")


TaxRate = answer_of(TaxRateCreate, "What an organization is taxed with, since a day of supply.")

RESOURCES = (
    Resource(
        name="tax-rates",
        access=access(BILLING, ours=("create",)),
        description="What organizations are taxed with, by the day of supply. A rate is never changed: a "
        "later row takes its place.",
        out=TaxRate,
        named_by="id",
        create=TaxRateCreate,
        filters={"organization_id": Filter()},
        declared=Declared(by=("organization_id",), since="effective_from", repeats=True),
    ),
)
