"""Credits that are given: once their invoice allows it."""

from __future__ import annotations

from sqlalchemy import insert

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict
from persistence.entity import EntityWrite, id_in
from persistence.queries import query
from persistence.resources.app_users import acting
from persistence.tables import credit_addition

POSTPAID = "postpaid"
# The credits that an invoice billed, less those that valid credit notes refunded.
_TO_GIVE = query("credit_balances.to_give", "Add up the credits that an invoice billed", """
SELECT coalesce(sum(quantity), 0)::bigint FROM (
    SELECT quantity FROM charge WHERE invoice_id = :invoice AND source = 'credit_debt'
       AND reason NOT IN ('void', 'credited', 'credit_void')
    UNION ALL
    SELECT c.quantity FROM charge AS o JOIN charge AS c ON c.corrects_id = o.id AND c.reason = 'credited'
     WHERE o.invoice_id = :invoice AND o.source = 'credit_debt'
       AND NOT EXISTS (SELECT FROM charge AS v
                        WHERE v.corrects_id = c.id AND v.reason = 'credit_void')) AS n""")  # fmt: skip
_GIVEN = query("credit_balances.given", "Select whether credits of an invoice were added", """
SELECT EXISTS (SELECT FROM credit_addition WHERE invoice_id = :invoice AND invoicing = 'postpaid')""")  # fmt: skip


def give_credits(change: EntityWrite, invoice: Row) -> None:
    """Add the credits that a paid invoice billed, once; the caller has locked the organization."""
    here = {"invoice": invoice["id"]}
    amount = int(change.connection.execute(_TO_GIVE, here).scalar_one())
    if amount <= 0 or change.connection.execute(_GIVEN, here).scalar_one():
        return
    organization_id = id_in(invoice, "organization_id")
    account = f"organization:{organization_id}"
    [write] = change.intend([account], "credits", {"amount": amount}, organization_id=organization_id)
    change.connection.execute(
        insert(credit_addition).values(
            organization_id=organization_id, credits_added=amount, category="paid", invoicing=POSTPAID,
            invoice_id=invoice["id"], remark=f"Used beyond the balance, paid with {invoice['number']}",
            added_by_id=acting(change.command.actor), timestamp=change.now, control_write_id=write,
        )
    )  # fmt: skip


def require_unused_invoice(change: EntityWrite) -> None:
    """Raise `Conflict` if the command's invoice was paid, so that the credits it sells were added."""
    if change.connection.execute(_GIVEN, {"invoice": change.row_id}).scalar_one():
        raise Conflict("The credits it billed were given with its payment; write a credit note.")
