"""What takes charges back is a row of its own: of an invoice made void, and of a credit note."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.charge import DEBT, spread_amount
from gateway.core.billing.pricing import EXACT
from persistence.billing import debts

_COUNTER = """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, corrects_id, fact, tenant_id, service_id, place, invoice_id,
                    line)
SELECT organization_id, kind, period_start, period_end, {sign}quantity, unit_price, {sign}amount, currency,
       source, source_id, {reason}, id, format('{fact}:%s', id), tenant_id, service_id, place, {invoice}
  FROM charge WHERE invoice_id = :invoice AND reason NOT IN ('void', 'credit_void')"""
_VOID = text(_COUNTER.format(sign="-", reason="'void'", fact="void", invoice="invoice_id, line"))
_OWED_AGAIN = text(_COUNTER.format(sign="", reason="'reissued'", fact="reissued", invoice="NULL, NULL"))
_VOID_NOTE = text(_COUNTER.format(sign="-", reason="'credit_void'", fact="void", invoice="invoice_id, line"))
# The charges behind a line of an invoice, with what other notes gave back of them.
_BEHIND = text("""
SELECT id, max(source) AS source, max(unit_price) AS unit_price, sum(quantity) AS quantity,
       sum(amount) AS amount
  FROM (SELECT id, source, unit_price, quantity, amount FROM charge
         WHERE invoice_id = :invoice AND line = :line
        UNION ALL
        SELECT c.corrects_id, c.source, c.unit_price, c.quantity, c.amount
          FROM invoice AS n JOIN invoice_line AS l ON l.invoice_id = n.id AND l.corrects_position = :line
          JOIN charge AS c ON c.invoice_id = n.id AND c.line = l.position AND c.reason = 'credited'
         WHERE n.corrects_id = :invoice AND n.status = 'finalized') AS c
 GROUP BY id ORDER BY id""")
_CREDIT = text("""
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, corrects_id, fact, tenant_id, service_id, place, invoice_id,
                    line)
SELECT c.organization_id, c.kind, c.period_start, c.period_end, n.quantity, c.unit_price, n.amount,
       c.currency, c.source, c.source_id, 'credited', c.id,
       format('credited:%s:%s', cast(:note AS bigint), c.id), c.tenant_id, c.service_id, c.place, :note, :line
  FROM unnest(cast(:ids AS bigint[]), cast(:quantities AS numeric[]), cast(:amounts AS numeric[]))
    AS n (id, quantity, amount) JOIN charge AS c ON c.id = n.id
 WHERE c.invoice_id = :invoice AND c.line = :position""")


def void(connection: Connection, invoice_id: int) -> None:
    """Take an invoice's charges back, and owe them again."""
    connection.execute(_OWED_AGAIN, {"invoice": invoice_id})
    connection.execute(_VOID, {"invoice": invoice_id})
    debts.unbill(connection, [invoice_id])


def void_note(connection: Connection, note_id: int) -> None:
    """Take back what a credit note gave back."""
    connection.execute(_VOID_NOTE, {"invoice": note_id})


def credit(
    connection: Connection, note_id: int, line: int, corrected: tuple[int, int], amount: Decimal | None
) -> Decimal | None:
    """Give back of a line's charges all that is left (None), or so much money of them; answers how much.

    None where nothing is known to be behind the line: it is of before there were charges.
    """
    invoice_id, position = corrected
    behind = connection.execute(_BEHIND, {"invoice": invoice_id, "line": position}).all()
    if not behind:
        return None
    if amount is None:
        quantities, amounts = [-each.quantity for each in behind], [-each.amount for each in behind]
    else:
        amounts = spread_amount(amount, [each.amount for each in behind])
        quantities = _credits_of(behind, sum(amounts, Decimal(0)))
    values = {"ids": [each.id for each in behind], "quantities": quantities, "amounts": amounts}
    of = {"note": note_id, "line": line, "invoice": invoice_id, "position": position}
    connection.execute(_CREDIT, of | values)
    return sum(amounts, Decimal(0))


def _credits_of(behind: Sequence[Any], amount: Decimal) -> list[Decimal]:
    """Credits beyond the balance that go with a part of their price; of all else it is money alone.

    Whoever pays the rest gets the credits that it is the price of, a part of one as a whole one.
    """
    back = [Decimal(0)] * len(behind)
    if behind[0].source != DEBT:
        return back
    left = sum((each.amount for each in behind), Decimal(0)) + amount
    paid_for = EXACT.divide(left, behind[0].unit_price).to_integral_value(ROUND_CEILING, EXACT)
    more = sum((each.quantity for each in behind), Decimal(0)) - paid_for
    for at, each in enumerate(behind):
        taken = max(Decimal(0), min(each.quantity, more))
        back[at], more = -taken, more - taken
    return back
