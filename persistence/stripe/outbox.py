"""Documents to hand over to Stripe, queued in the transaction that makes them final.

A document is handed over if its organization has a Stripe customer, or if its invoice was handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import Connection, text

from gateway.core.billing.payments import PAID, UNCOLLECTIBLE
from gateway.features.stripe.handover import COLLECTOR, Kind
from persistence.entity import EntityWrite

# The prefix of payments' references that record Stripe's money.
REFERENCE = "stripe:"

_OF_INVOICE = text("""
INSERT INTO handover (organization_id, invoice_id, about_id, kind, customer)
SELECT i.organization_id, i.id, i.id, i.kind, o.stripe_customer
  FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id
 WHERE i.id = ANY(cast(:ids AS bigint[])) AND i.status = 'finalized' AND i.corrects_id IS NULL
   AND o.stripe_customer IS NOT NULL
ON CONFLICT (invoice_id, kind) DO NOTHING RETURNING id""")
# A change of an invoice, or of a note without an invoice, goes to the same customer.
_BEHIND = text("""
INSERT INTO handover (organization_id, invoice_id, about_id, kind, customer)
SELECT i.organization_id, i.id, h.about_id, cast(:kind AS text), h.customer
  FROM invoice AS i
  JOIN handover AS h ON h.invoice_id = CASE :kind WHEN 'credit_note' THEN i.corrects_id ELSE i.id END
   AND h.kind IN ('invoice', 'credit_note') AND h.state <> 'canceled'
 WHERE i.id = ANY(cast(:ids AS bigint[]))
ON CONFLICT (invoice_id, kind) DO NOTHING RETURNING id""")
# A void document need not exist at Stripe; the retried hand-over finds out.
_AGAIN = text("""
UPDATE handover SET state = 'waiting', attempts = 0, version = version + 1, next_attempt_at = now()
 WHERE invoice_id = :id AND kind IN ('invoice', 'credit_note') AND state = 'failed'""")


def tell_final(connection: Connection, invoice_ids: Sequence[int]) -> int:
    """Queue final documents for Stripe; return the number queued."""
    here = {"ids": list(invoice_ids)}
    alone = connection.execute(_OF_INVOICE, here).all()
    return len(alone) + len(connection.execute(_BEHIND, here | {"kind": "credit_note"}).all())


class HandoverListener:
    """Queues changes of documents for Stripe, if their organization is a Stripe customer."""

    elsewhere = """EXISTS (SELECT FROM handover AS h
                         WHERE h.invoice_id = i.id AND h.kind = i.kind AND h.state <> 'canceled')"""
    reference = REFERENCE
    refusal = "Stripe has this note's credit: cancel its hand-over first, or use it there."

    def final(self, connection: Connection, invoice_ids: Sequence[int]) -> None:
        """Queue final documents for Stripe."""
        tell_final(connection, invoice_ids)

    def settled(self, change: EntityWrite, invoice_id: int, status: str, paid: Decimal) -> None:
        """Queue for Stripe that an invoice was paid elsewhere or written off, unless Stripe reported that."""
        if change.command.actor == COLLECTOR:
            return
        if status == PAID and paid > 0:
            _tell(change.connection, invoice_id, "paid")
        elif status == UNCOLLECTIBLE:
            _tell(change.connection, invoice_id, "uncollectible")

    def void(self, connection: Connection, invoice_id: int) -> None:
        """Queue the void of a document, and retry a failed hand-over."""
        connection.execute(_AGAIN, {"id": invoice_id})
        _tell(connection, invoice_id, "void")


def _tell(connection: Connection, invoice_id: int, kind: Kind) -> None:
    connection.execute(_BEHIND, {"ids": [invoice_id], "kind": kind})
