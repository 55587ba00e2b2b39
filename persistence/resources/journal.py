"""Ledgers of use, read-only: rows in the order of their account's seq, runs, and the journal of all calls."""

from __future__ import annotations

from itertools import chain
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Table, and_, case, cast, func, literal, or_, select, text

from gateway.core.accounts.budgets import MONEY
from gateway.core.accounts.call_facts import SEPARATOR
from gateway.core.accounts.refusals import RefusingLimit
from gateway.core.accounts.runs import ENDED, EXHAUSTED, OPEN
from gateway.core.billing.price_book import KINDS
from persistence.entity import Condition, Entity
from persistence.keeper.retention import not_before
from persistence.resources.substitutions import select_step
from persistence.tables import (
    api_key,
    budget,
    budget_use,
    call,
    credit_transaction,
    feature_usage,
    money,
    organization,
    run,
    tenant,
    token_ledger,
    token_plan,
)


def _where(column: ColumnElement[str], among_turns: frozenset[str]) -> Condition:
    """Return a filter by the values of a column.

    The values in `among_turns` occur only in rows other than use, which have an index. PostgreSQL would take
    such rows for very rare, read all of a tenant's rows and sort them. For a bare function it assumes that a
    third of rows match, and reads them in order until the page is full.
    """

    def condition(value: str) -> ColumnElement[bool]:
        if value not in among_turns:
            return column == value
        return and_(func.texteq(column, value), token_ledger.c.transaction_type != "consume")

    return condition


def _request_filter(table: Table, at: str) -> Condition:
    """Return a filter by request id; `at` is the column of time by which earlier months are skipped."""
    return lambda value: and_(table.c.request_id == value, not_before(table.c[at], str(value).lower()))


TOKEN_LEDGER = Entity(
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
        "request_id": _request_filter(token_ledger, "created_at"),
    },
)
CREDIT_TRANSACTIONS = Entity(
    credit_transaction,
    source=select(
        credit_transaction,
        (credit_transaction.c.credits_used - money(credit_transaction.c.carried)).label("credits_exact"),
    ),
    conditions={"request_id": _request_filter(credit_transaction, "timestamp")},
    time="timestamp",
    order=("organization_id", "seq"),
)
FEATURE_USAGE = Entity(
    feature_usage,
    source=select(
        *(column for column in feature_usage.c if column.name != "unit_prices"),
        case((feature_usage.c.in_money, money(feature_usage.c.usage_amount))).label("cost"),
    ),
    conditions={"request_id": _request_filter(feature_usage, "timestamp")},
    time="timestamp",
    order=("organization_id", "seq"),
)
_of_calls, _of_amount = budget_use.alias(), budget_use.alias()
_calls, _used = cast(func.coalesce(_of_calls.c.used, 0), BigInteger), func.coalesce(_of_amount.c.used, 0)
_status = case(
    (or_(run.c.ended_at.is_not(None), run.c.expires_at <= func.now()), ENDED),
    (or_(_used >= run.c.amount, _calls >= run.c.calls_max), EXHAUSTED),
    else_=OPEN,
)


def _in_unit(number: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((run.c.unit == MONEY, money(number)), else_=number)


RUNS = Entity(
    run,
    source=select(
        run.c.id, run.c.organization_id, run.c.tenant_id, run.c.name, run.c.parent_name.label("parent_id"),
        run.c.unit, organization.c.currency, _in_unit(run.c.amount).label("max"),
        run.c.calls_max.label("max_calls"), _in_unit(_used).label("used"), _calls.label("calls"),
        _status.label("status"), run.c.created_at, run.c.expires_at, run.c.ended_at,
    ).select_from(
        run.join(organization, organization.c.id == run.c.organization_id)
        .outerjoin(_of_calls, (_of_calls.c.budget_id == run.c.id) & (_of_calls.c.start == run.c.created_at))
        .outerjoin(
            _of_amount, (_of_amount.c.budget_id == run.c.id + 1) & (_of_amount.c.start == run.c.created_at)
        )
    ),
    conditions={
        "id": lambda value: run.c.name == value,
        "parent_id": lambda value: run.c.parent_name == value,
        "status": lambda value: _status == value,
    },
    partitioned=True,
)  # fmt: skip
_USAGE = func.jsonb_build_object(
    *chain.from_iterable((literal(kind), call.c[kind]) for kind in KINDS),
    literal("tools"),
    func.coalesce(call.c.tools, text("'{}'::jsonb")),
).op("||")(func.jsonb_strip_nulls(func.jsonb_build_object(literal("unknown"), call.c.unknown_usage)))
_OTHERWISE = {
    "tools", "unknown_usage", "unpriced", "cost", "saved", "api_key_id", "run_id", "refused_kind", "refused_by",
    "tags", "groups", *KINDS,
}  # fmt: skip
# The current name of the budget, run or plan that refused a call; null if the row is gone.
_REFUSER = case(
    *(
        (
            call.c.refused_kind == kind.value,
            select(named.c.name).where(named.c.id == call.c.refused_by).scalar_subquery(),
        )
        for kind, named in (
            (RefusingLimit.BUDGET, budget),
            (RefusingLimit.RUN, run),
            (RefusingLimit.PLAN, token_plan),
        )
    )
)
CALLS = Entity(
    call,
    source=select(
        *(column for column in call.c if column.name not in _OTHERWISE),
        func.nullif(call.c.api_key_id, 0).label("api_key_id"),
        func.coalesce(call.c.tags, text("'{}'::jsonb")).label("tags"),
        _USAGE.label("usage"),
        func.coalesce(call.c.groups, text("'[]'::jsonb")).label("groups"),
        money(call.c.cost).label("cost"),
        money(call.c.saved).label("saved"),
        select(run.c.name).where(run.c.id == call.c.run_id).scalar_subquery().label("run"),
        case(
            (
                _REFUSER.isnot(None),
                func.jsonb_build_object(
                    literal("kind"),
                    call.c.refused_kind,
                    literal("id"),
                    call.c.refused_by,
                    literal("name"),
                    _REFUSER,
                ),
            )
        ).label("refused_by"),
        func.coalesce(func.string_to_array(call.c.unpriced, SEPARATOR), text("'{}'::text[]")).label(
            "unpriced"
        ),
    ),
    conditions={
        "request_id": _request_filter(call, "created_at"),
        "group_id": lambda value: call.c.groups.contains([value]),
        "substituted_by": select_step,
    },
    implied={
        "tenant_id": lambda value: select(tenant.c.organization_id).where(tenant.c.id == value),
        "api_key_id": lambda value: (
            select(tenant.c.organization_id, api_key.c.tenant_id)
            .join(tenant, tenant.c.id == api_key.c.tenant_id)
            .where(api_key.c.id == value)
        ),
    },
    # Ids come in blocks, one for each session of a keeper: alone they say nothing of time.
    order=("created_at", "id"),
)
