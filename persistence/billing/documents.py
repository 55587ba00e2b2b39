"""What is copied into an invoice besides its lines: seller, buyer, terms, and the invoices it corrects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.document import CORRECTED_MAX, Corrected, Document, Letterhead, Party
from persistence.subject import Change
from persistence.tables import invoice, organization

_CORRECTED = text("SELECT number, finalized_at FROM invoice WHERE id = :id")
# The invoices that billed what charges of this one give back: the same supply, or the latest of the kind.
# Both are found by sorting the organization's charges of these kinds: no charge is compared with each other.
_GIVEN_BACK = text("""
WITH charged AS (
    SELECT c.kind, i.number, i.finalized_at, c.invoice_id = :id AS back,
           bool_or(c.invoice_id = :id) OVER (PARTITION BY c.kind, c.source, c.source_id, c.tenant_id,
                                                          c.service_id, c.period_start) AS same
      FROM invoice AS n JOIN invoice AS i ON i.organization_id = n.organization_id
      JOIN charge AS c ON c.invoice_id = i.id
     WHERE n.id = :id AND c.kind IN (SELECT kind FROM charge WHERE invoice_id = :id AND amount < 0)
       AND CASE WHEN i.id = :id THEN c.amount < 0
                ELSE c.amount > 0 AND i.status = 'finalized' AND i.kind = 'invoice' END
), billed AS (
    SELECT kind, number, finalized_at, bool_or(same) AS same FROM charged WHERE NOT back GROUP BY 1, 2, 3
), of_kind AS (
    SELECT kind, bool_or(same) AS same, max(finalized_at) AS latest FROM billed GROUP BY 1
)
SELECT DISTINCT b.number, b.finalized_at FROM billed AS b JOIN of_kind AS k ON k.kind = b.kind
 WHERE b.same OR (NOT k.same AND b.finalized_at = k.latest)
 ORDER BY b.finalized_at, b.number LIMIT :most""")


def document_of(letterhead: Letterhead, organization: Any, corrects: Sequence[Corrected] = ()) -> Document:
    """What is true now of who sells, and of an organization's row."""
    buyer = Party(
        organization.name, tuple(organization.address or ()), organization.country, organization.tax_number
    )
    return Document(
        letterhead.seller, letterhead.buyer(organization.id, buyer), letterhead.notes,
        corrects=tuple(corrects), iban=letterhead.iban,
    )  # fmt: skip


def copy(change: Change, row: Row) -> Document:
    """Copy into a credit note what is true of it now; its due date is a column of its own."""
    of = organization.c
    found = select(of.id, of.name, of.address, of.country, of.tax_number)
    known = change.connection.execute(found.where(of.id == row["organization_id"])).one()
    copied = document_of(change.letterhead, known, corrected_by(change.connection, row))
    change.connection.execute(
        update(invoice)
        .where(invoice.c.id == row["id"])
        .values(document=copied.as_json(), customer=known.name)
    )
    return copied


def corrected_by(connection: Connection, row: Row) -> Sequence[Corrected]:
    """The invoices that a note gives something back of."""
    if row["corrects_id"] is not None:
        found = connection.execute(_CORRECTED, {"id": row["corrects_id"]})
    else:
        found = connection.execute(_GIVEN_BACK, {"id": row["id"], "most": CORRECTED_MAX})
    return [_corrected(each) for each in found]


def _corrected(row: Any) -> Corrected:
    return Corrected(row.number, row.finalized_at.astimezone(UTC).date().isoformat())
