"""The prices of use beyond what was bought."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection

from gateway.core.billing.charges import (
    MOVE_MAX,
    too_many,
)
from gateway.errors import Unprocessable
from persistence.queries import query

_OVERAGE_PRICES = query("credit_balances.overage_prices", "Select the prices beyond plans and balances", """
SELECT t.id, CASE WHEN p.overage_policy = 'bill' THEN
            coalesce(CASE WHEN t.plan_id IS NULL THEN s.overage_unit_price END, p.overage_unit_price) END
           AS token, o.credit_unit_cost AS credit
  FROM tenant AS t JOIN organization AS o ON o.id = t.organization_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
  LEFT JOIN organization_subscription AS s ON s.organization_id = o.id
 WHERE t.id = ANY(:tenants)""")  # fmt: skip


class OveragePrices(NamedTuple):
    """The prices of a token beyond the plan and of a credit beyond the balance; None is free."""

    token: Decimal | None
    credit: Decimal | None

    def too_much(self, tokens: int, credits_: int) -> list[tuple[str, str]]:
        asked = (("tokens", tokens, self.token), ("credits", credits_, self.credit))
        return [(name, why) for name, amount, price in asked if (why := too_many(amount, price, MOVE_MAX))]


def refuse_too_much_overage(connection: Connection, tenant_id: int, tokens: int, credits_: int) -> None:
    """Raise `Unprocessable` if one movement of a tenant could cost more than a charge may."""
    if errors := prices_of(connection, tenant_id).too_much(tokens, credits_):
        raise Unprocessable(errors=tuple(errors))


def prices_of(connection: Connection, tenant_id: int) -> OveragePrices:
    return overage_prices(connection, [tenant_id]).get(tenant_id, OveragePrices(None, None))


def overage_prices(connection: Connection, tenant_ids: Collection[int]) -> dict[int, OveragePrices]:
    """Return the overage prices of these tenants, by tenant id."""
    rows = connection.execute(_OVERAGE_PRICES, {"tenants": list(tenant_ids)})
    return {row.id: OveragePrices(row.token, row.credit) for row in rows}
