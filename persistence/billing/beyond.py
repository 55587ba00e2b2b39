"""What is used beyond a plan or a balance costs, and how much of it one move may come to.

Such use is told, not asked for: nothing refuses it later, so it is looked at where it is taken in.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, text

from gateway.core.billing.bounds import MOVE_MAX, too_many
from gateway.errors import Unprocessable

_PRICES = text("""
SELECT CASE WHEN p.overage_policy = 'bill' THEN
            coalesce(CASE WHEN t.plan_id IS NULL THEN s.overage_unit_price END, p.overage_unit_price) END
           AS token, o.credit_unit_cost AS credit
  FROM tenant AS t JOIN organization AS o ON o.id = t.organization_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
  LEFT JOIN organization_subscription AS s ON s.organization_id = o.id
 WHERE t.id = :tenant""")


class Prices(NamedTuple):
    """What a token beyond the plan and a credit beyond the balance cost; None: nothing."""

    token: Decimal | None
    credit: Decimal | None

    def too_much(self, tokens: int, credits_: int) -> list[tuple[str, str]]:
        """Which of them is more than one move may be, and what would be right."""
        asked = (("tokens", tokens, self.token), ("credits", credits_, self.credit))
        return [(name, why) for name, amount, price in asked if (why := too_many(amount, price, MOVE_MAX))]


def refuse_too_much(connection: Connection, tenant_id: int, tokens: int, credits_: int) -> None:
    """`Unprocessable` where one move of a tenant would be more than may be billed of it."""
    if errors := prices_of(connection, tenant_id).too_much(tokens, credits_):
        raise Unprocessable(errors=tuple(errors))


def prices_of(connection: Connection, tenant_id: int) -> Prices:
    """The prices of now."""
    row = connection.execute(_PRICES, {"tenant": tenant_id}).first()
    return Prices(None, None) if row is None else Prices(row.token, row.credit)
