"""Who sends the invoices of tests."""

from __future__ import annotations

from gateway.core.billing.document import InvoiceParty, Letterhead

LETTERHEAD = Letterhead(
    InvoiceParty("Tollkeeper Ltd", ("12 Gate Street",), "GB", "GB123456789"),
    notes=("Thank you.",),
    due_days=14,
)
