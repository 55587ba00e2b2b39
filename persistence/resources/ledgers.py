"""The ledgers of uses, read: an account's rows in the order of their seq."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, func, select

from persistence.subject import Condition, Subject
from persistence.tables.ledgers import credit_transaction, feature_usage, token_ledger
from persistence.tables.people import tenant


def _where(column: ColumnElement[str], among_turns: frozenset[str]) -> Condition:
    """Filter by a column; `among_turns` are values that no use has: those rows have an index of their own.

    PostgreSQL would take such rows for very rare, read all of a tenant's and sort them. Of a bare
    function it believes that a third passes, and reads them in order until the page is full.
    """

    def condition(value: str) -> ColumnElement[bool]:
        if value not in among_turns:
            return column == value
        return and_(func.texteq(column, value), token_ledger.c.transaction_type != "consume")

    return condition


TOKEN_LEDGER = Subject(
    token_ledger,
    order=("tenant_id", "seq"),
    conditions={
        "organization_id": lambda value: token_ledger.c.tenant_id.in_(
            select(tenant.c.id).where(tenant.c.organization_id == value)
        ),
        "transaction_type": _where(
            token_ledger.c.transaction_type, frozenset({"recharge", "reset", "adjust"})
        ),
        "direction": _where(token_ledger.c.direction, frozenset({"IN"})),
    },
)
CREDIT_TRANSACTIONS = Subject(credit_transaction, time="timestamp", order=("organization_id", "seq"))
FEATURE_USAGE = Subject(feature_usage, time="timestamp", order=("organization_id", "seq"))
