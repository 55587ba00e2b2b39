"""What one unit, or one token, may cost at most: its multiples are counted, and billed."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator

from gateway.admin.resources.values import Money
from gateway.core.billing.bounds import TOKEN_PRICE_MAX
from gateway.core.billing.pricing import MICRO
from gateway.core.model import INTEGER_MAX


def _at_most(most: int) -> AfterValidator:
    def check(price: Decimal) -> Decimal:
        if price > most:
            raise ValueError(f"must be at most {most}")
        return price

    return AfterValidator(check)


# The counters add units up in millionths.
UnitPrice = Annotated[Money, _at_most(INTEGER_MAX // MICRO)]
TokenUnitPrice = Annotated[Money, _at_most(TOKEN_PRICE_MAX)]
