"""What is copied into an invoice besides its lines: seller, buyer, terms, and the invoices it corrects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.billing.document import CORRECTED_MAX, Corrected, Document, Letterhead, Party
from persistence.subject import Change
from persistence.tables.billing import invoice
from persistence.tables.people import organization

_CORRECTED = text("SELECT number, finalized_at FROM invoice WHERE id = :id")
# The invoices that billed what charges of this one give back: the same supply, or the latest of the kind.
_GIVEN_BACK = text("""
WITH back AS (
    SELECT DISTINCT organization_id, kind, source, source_id, tenant_id, service_id, period_start
      FROM charge WHERE invoice_id = :id AND amount < 0
), billed AS (
    SELECT b.kind, i.number, i.finalized_at,
           c.source = b.source AND c.source_id IS NOT DISTINCT FROM b.source_id
           AND c.tenant_id IS NOT DISTINCT FROM b.tenant_id
           AND c.service_id IS NOT DISTINCT FROM b.service_id AND c.period_start = b.period_start AS same
      FROM back AS b
      JOIN invoice AS i ON i.organization_id = b.organization_id AND i.status = 'finalized'
       AND i.kind = 'invoice' AND i.id <> :id
      JOIN charge AS c ON c.invoice_id = i.id AND c.kind = b.kind AND c.amount > 0
)
SELECT number, finalized_at FROM billed AS b
 WHERE same OR (NOT EXISTS (SELECT FROM billed AS s WHERE s.kind = b.kind AND s.same)
                AND finalized_at = (SELECT max(finalized_at) FROM billed AS l WHERE l.kind = b.kind))
 GROUP BY 1, 2 ORDER BY finalized_at, number LIMIT :most""")


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
