"""The token ledger, read: a tenant's rows in the order of their seq."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, func, select

from persistence.subject import Condition, Subject, equals
from persistence.tables.ledgers import token_ledger
from persistence.tables.people import tenant


def _where(column: ColumnElement[str], among_turns: frozenset[str]) -> Condition:
    """Filter by a column; `among_turns` are values that no use has: those rows have an index of their own.

    PostgreSQL would take such rows for very rare, read all of a tenant's and sort them. Of a bare
    function it believes that a third passes, and reads them in order until the page is full.
    """

    def condition(value: Any) -> ColumnElement[bool]:
        if value not in among_turns:
            return equals(column)(value)
        return and_(func.texteq(column, value), token_ledger.c.transaction_type != "consume")

    return condition


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
        "transaction_type": _where(
            token_ledger.c.transaction_type, frozenset({"recharge", "reset", "adjust"})
        ),
        "direction": _where(token_ledger.c.direction, frozenset({"IN"})),
    },
)
