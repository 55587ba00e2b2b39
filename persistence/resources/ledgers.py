"""The ledgers of uses, read: an account's rows in the order of their seq; and the journal of all calls."""

from __future__ import annotations

from itertools import chain

from sqlalchemy import ColumnElement, Table, and_, case, func, literal, select, text

from gateway.core.accounts.facts import SEPARATOR
from gateway.core.billing.vector import KINDS
from persistence.keeper.request_rows import not_before
from persistence.subject import Condition, Subject
from persistence.tables import call, credit_transaction, feature_usage, money, tenant, token_ledger


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


def _of_request(table: Table, at: str) -> Condition:
    """Filter by a request, looking into no month that is over before it began."""
    return lambda value: and_(table.c.request_id == value, not_before(table.c[at], str(value).lower()))


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
        "request_id": _of_request(token_ledger, "created_at"),
    },
)
CREDIT_TRANSACTIONS = Subject(
    credit_transaction,
    source=select(
        credit_transaction,
        (credit_transaction.c.credits_used - money(credit_transaction.c.carried)).label("credits_exact"),
    ),
    conditions={"request_id": _of_request(credit_transaction, "timestamp")},
    time="timestamp",
    order=("organization_id", "seq"),
)
FEATURE_USAGE = Subject(
    feature_usage,
    source=select(
        *(column for column in feature_usage.c if column.name != "unit_prices"),
        case((feature_usage.c.in_money, money(feature_usage.c.usage_amount))).label("cost"),
    ),
    conditions={"request_id": _of_request(feature_usage, "timestamp")},
    time="timestamp",
    order=("organization_id", "seq"),
)

_USAGE = func.jsonb_build_object(
    *chain.from_iterable((literal(kind), call.c[kind]) for kind in KINDS),
    literal("tools"),
    func.coalesce(call.c.tools, text("'{}'::jsonb")),
).op("||")(func.jsonb_strip_nulls(func.jsonb_build_object(literal("unknown"), call.c.unknown_usage)))
_OTHERWISE = {"tools", "unknown_usage", "unpriced", "cost", "api_key_id", *KINDS}
CALLS = Subject(
    call,
    source=select(
        *(column for column in call.c if column.name not in _OTHERWISE),
        func.nullif(call.c.api_key_id, 0).label("api_key_id"),
        _USAGE.label("usage"),
        money(call.c.cost).label("cost"),
        func.coalesce(func.string_to_array(call.c.unpriced, SEPARATOR), text("'{}'::text[]")).label(
            "unpriced"
        ),
    ),
    conditions={"request_id": _of_request(call, "created_at")},
    # Ids come in blocks, one for each session of a keeper: alone they say nothing of time.
    order=("created_at", "id"),
)
