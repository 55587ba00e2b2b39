"""What is done about invoices that are not paid."""

from __future__ import annotations

from sqlalchemy import UniqueConstraint

from persistence.tables.columns import identity, integers, moments, refers, table, texts, uuids

# What was done about invoices that are not paid. A block is ended by a step that names it.
dunning_step = table(
    "dunning_step",
    identity(),
    refers("organization_id", "organization"),
    refers("invoice_id", "invoice"),
    texts("action"),
    integers("days"),
    refers("tenant_id?", "tenant"),
    # The block or its end; null where a person decided.
    uuids("control_write_id?"),
    refers("corrects_id?", "dunning_step"),
    texts("reason", "actor"),
    moments("created_at"),
    UniqueConstraint("corrects_id"),
)
