"""The token ledger, read: a tenant's rows in the order of their seq."""

from __future__ import annotations

from sqlalchemy import select

from persistence.subject import Subject, equals
from persistence.tables import tenant, token_ledger

SUBJECT: Subject = Subject(
    source=select(token_ledger),
    id=token_ledger.c.id,
    time=token_ledger.c.created_at,
    order=(("tenant_id", token_ledger.c.tenant_id), ("seq", token_ledger.c.seq)),
    filters={
        "tenant_id": equals(token_ledger.c.tenant_id),
        "organization_id": lambda value: token_ledger.c.tenant_id.in_(
            select(tenant.c.id).where(tenant.c.organization_id == value)
        ),
        "service_id": equals(token_ledger.c.service_id),
        "user_id": equals(token_ledger.c.user_id),
        "api_key_id": equals(token_ledger.c.api_key_id),
        "request_id": equals(token_ledger.c.request_id),
        "transaction_type": equals(token_ledger.c.transaction_type),
        "direction": equals(token_ledger.c.direction),
    },
)
