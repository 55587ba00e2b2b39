"""Credit transactions and feature usage, read: an organization's rows in the order of their seq."""

from __future__ import annotations

from sqlalchemy import Table, select

from persistence.subject import Subject, equals
from persistence.tables.ledgers import credit_transaction, feature_usage


def _uses(table: Table) -> Subject:
    names = (
        "organization_id",
        "feature_id",
        "tenant_id",
        "user_id",
        "content_id",
        "project_id",
        "request_id",
    )
    return Subject(
        source=select(table),
        id=table.c.id,
        time=table.c.timestamp,
        order=(("organization_id", table.c.organization_id), ("seq", table.c.seq)),
        filters={name: equals(table.c[name]) for name in names},
    )


CREDIT_TRANSACTIONS = _uses(credit_transaction)
FEATURE_USAGE = _uses(feature_usage)
