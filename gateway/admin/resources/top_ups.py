"""Credits that are bought by themselves: the terms an organization has for it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from gateway.admin.resources.values import Amount, In, Money, PositiveAmount
from gateway.core.billing.payment import TOP_UPS_A_MONTH_MAX


def _above_nothing(cost: Decimal) -> Decimal:
    if not cost:
        raise ValueError("must be above 0")
    return cost


UnitCost = Annotated[Money, AfterValidator(_above_nothing)]


class AutoTopUp(In):
    """When credits are bought by themselves, how many, at which price, and how often a month at most."""

    threshold: Amount = Field(description="At this balance, or below it.")
    credits: PositiveAmount = Field(description="How many.")
    unit_cost: UnitCost = Field(description="What one costs.")
    invoicing: Literal["now", "prepaid"] = Field(
        default="now", description="prepaid: in force once their invoice is paid."
    )
    monthly_max: Annotated[int, Field(strict=True, ge=1, le=TOP_UPS_A_MONTH_MAX)] = Field(
        default=10, description="Most in a month (UTC)."
    )


def _stored(terms: AutoTopUp) -> dict[str, Any]:
    return terms.model_dump(mode="json")


AutoTopUpField = Annotated[AutoTopUp, PlainSerializer(_stored)]
