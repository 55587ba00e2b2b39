"""What is handed over to billing services, and what they told of it."""

from __future__ import annotations

from sqlalchemy import UniqueConstraint

from persistence.tables.columns import amounts, identity, integers, moments, refers, table, texts, uuids

# Final documents, and what became of them: a row each, done once.
handover = table(
    "handover",
    identity(),
    refers("organization_id", "organization"),
    refers("invoice_id", "invoice"),
    # The invoice it is about: those of one are done one after the other.
    refers("about_id", "invoice"),
    texts("kind"),
    # Names it there for ever, and its present run.
    uuids("key"),
    integers("version"),
    texts("customer", "state"),
    integers("attempts"),
    moments("next_attempt_at"),
    # What was made of it there.
    texts("remote?", "url?", "error?"),
    moments("created_at", "done_at?"),
    UniqueConstraint("invoice_id", "kind"),
)

# What was told of them, each message once; and what of it could not be done here.
handover_event = table(
    "handover_event",
    identity(),
    refers("organization_id", "organization"),
    refers("invoice_id", "invoice"),
    refers("handover_id", "handover"),
    texts("name", "kind"),
    amounts("amount"),
    texts("currency", "remains?"),
    moments("created_at"),
    UniqueConstraint("name"),
)
