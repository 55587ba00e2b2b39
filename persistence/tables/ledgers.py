"""What happened: append-only ledgers and the journal of calls, by month, and the roll-ups made from them.

A ledger row is named by its account and `seq`, stamped by the counters with the balance that
follows. Foreign keys are left out on purpose: a check per row would halve the flush, and the
writer refuses accounts it does not know.
"""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Identity,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    cast,
    literal,
)

from gateway.core.accounts.usage import DIMENSIONS, SUMS
from gateway.core.billing.pricing import NANO
from gateway.core.billing.vector import KINDS
from persistence.tables.columns import (
    Columns,
    amounts,
    days,
    documents,
    flags,
    identity,
    integers,
    moments,
    prices,
    refers,
    table,
    texts,
    uuids,
)


def _ledger(name: str, owner: str, at: str, *columns: Columns) -> Table:
    """One of an owner's movements, partitioned by the moment `at`."""
    return table(
        name,
        Column("id", BigInteger, Identity(), nullable=False),
        integers(owner, "epoch", "seq"),
        moments(at),
        documents("metadata?"),
        *columns,
        PrimaryKeyConstraint(owner, "seq", at),
    )


def _uses(name: str, *columns: Columns) -> Table:
    """A ledger of an organization's uses, each with whom it is of."""
    attributed = ("feature_id?", "tenant_id?", "api_key_id?", "user_id?", "content_id?", "project_id?")
    said = (texts("feature_version?"), uuids("request_id?"))
    return _ledger(name, "organization_id", "timestamp", integers(*attributed), *said, *columns)


token_ledger = _ledger(
    "token_ledger",
    "tenant_id",
    "created_at",
    texts("transaction_type", "direction"),
    integers("amount", "total_remaining?", "cycle", "service_id?", "api_key_id?", "user_id?"),
    integers("content_id?", "project_id?"),
    texts("feature_version?"),
    uuids("request_id?", "control_write_id?"),
)

credit_posting = _ledger(
    "credit_posting",
    "organization_id",
    "created_at",
    texts("kind"),
    integers("credit_addition_id?", "amount", "balance_after"),
    uuids("control_write_id?"),
)

# `carried` is what its credits are more than it cost, in nano-credits; below 0 where they are less.
credit_transaction = _uses("credit_transaction", integers("credits_used", "carried", "balance_after"))

feature_usage = _uses(
    "feature_usage",
    # Units given back are those of a row that corrects another.
    integers("usage_amount"),
    # What the use cost and the month's spend after it, in the counters' integer unit.
    integers("spend", "spent_after"),
    # Units are billionths of the currency.
    flags("in_money"),
    # What a unit cost, or how many cost how much each where the use crossed a tier.
    documents("unit_prices?"),
)

# One row a call. `cost` is in nano-units of `currency`, null where no price said what the call costs.
call = table(
    "call",
    Column("id", BigInteger, Identity(), nullable=False),
    uuids("request_id"),
    moments("created_at"),
    integers(
        "organization_id", "tenant_id", "api_key_id", "user_id?", "service_id?", "project_id?", "content_id?"
    ),
    texts("feature_version?", "session?", "route?", "model?", "response_model?", "service_tier?"),
    integers(*KINDS),
    documents("tools?"),
    integers("tokens", "credits", "units", "cost?"),
    texts("currency?"),
    integers("price_id?", "status"),
    texts("reason?"),
    flags("streamed", "estimated", "refused"),
    integers("duration_ms", "first_token_ms?"),
    texts("upstream_request_id?", "unknown_usage?", "unpriced?"),
    # Tokens that were taken off it, and by how much its cost moved as it was rated again.
    integers("amended", "rerated"),
)


def money(nano: ColumnElement[int]) -> ColumnElement[Decimal]:
    """Nano-units as an amount of their currency: a product has all of its digits, a quotient is cut."""
    return cast(nano, Numeric) * literal(Decimal(1) / NANO)


# Since when the journal, and each span of hours, has its rows: what is older was dropped.
kept_since = table("kept_since", texts("ledger"), moments("since"), PrimaryKeyConstraint("ledger"))

# Days that request ids say who were given by a clock ahead by more than a day: since when they have rows.
clock_ahead = table("clock_ahead", days("day"), moments("since"), PrimaryKeyConstraint("day"))

# What calls add up to, by everything that is asked by: once for each `span`, an hour to a month, and a team.
usage_rollup = table(
    "usage_rollup",
    texts("span"),
    moments("start"),
    integers("organization_id", "tenant_id", "api_key_id", "user_id", "project_id", "service_id"),
    texts("model", "currency"),
    integers(*SUMS),
    PrimaryKeyConstraint("span", *DIMENSIONS),
)

# The models and projects of a day that are told apart in roll-ups: the first ones, up to a maximum.
usage_name = table(
    "usage_name",
    integers("organization_id"),
    days("day"),
    texts("kind", "name"),
    PrimaryKeyConstraint("organization_id", "day", "kind", "name"),
)

usage_daily = table(
    "usage_daily",
    days("day"),
    integers("organization_id", "tenant_id", "service_id"),
    integers("requests", "tokens", "credits", "usage_amount"),
    # The credits that invoices have told of: the rest is told by the next one.
    integers("billed_credits"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id"),
)

# A day's Pay-Per-Use units by what they cost; `first_unit` is the first one's place in its month. Of
# `charged_quantity` there are charges, written `charges` times.
usage_tier = table(
    "usage_tier",
    days("day"),
    integers("tenant_id", "service_id", "organization_id"),
    prices("unit_price"),
    integers("first_unit", "quantity", "charged_quantity", "charges"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id", "unit_price"),
)

# Those of a day that were supplied on an earlier one, or are taken back of what was told on a day: they are
# charged by the day of their supply.
usage_told = table(
    "usage_told",
    identity(),
    days("day", "supplied_on", "told_on"),
    flags("is_back"),
    integers("tenant_id", "service_id", "organization_id"),
    prices("unit_price"),
    integers("quantity", "charged_quantity", "charges"),
)

credit_addition = table(
    "credit_addition",
    identity(),
    refers("organization_id", "organization"),
    integers("credits_added", "priority"),
    refers("added_by_id?", "app_user"),
    texts("remark?", "category"),
    amounts("unit_cost?"),
    moments("expires_at?", "timestamp"),
    uuids("control_write_id?"),
    # Credits of it that are allocated to uses.
    integers("spent"),
    # The control write that takes what is left at its expiry.
    uuids("expiry_write_id?"),
    # On which invoice it is, and of one of its own which that is.
    texts("invoicing"),
    refers("invoice_id?", "invoice"),
    # Of one that was bought by itself: the movement that brought the threshold.
    integers("crossed_seq?"),
    UniqueConstraint("control_write_id"),
    UniqueConstraint("expiry_write_id"),
)

credit_allocation = table(
    "credit_allocation",
    identity(),
    refers("organization_id", "organization"),
    # The use, by its place in the organization's credit account; null: taken by no addition (debt).
    integers("seq"),
    refers("credit_addition_id?", "credit_addition"),
    integers("amount"),
    moments("created_at"),
    # Of debt that costs something: the day it was used on, and what a credit of it costs.
    days("day?"),
    amounts("unit_cost?"),
)

# Balances that came to their threshold; open until the credits are in the account, or will not be.
top_up_order = table(
    "top_up_order",
    identity(),
    refers("organization_id", "organization"),
    integers("seq", "balance"),
    refers("credit_addition_id?", "credit_addition"),
    moments("created_at", "closed_at?"),
    UniqueConstraint("credit_addition_id"),
)

# What a credit beyond the balance costs since when; null costs nothing.
credit_price = table(
    "credit_price",
    refers("organization_id", "organization"),
    moments("since"),
    amounts("unit_cost?"),
    PrimaryKeyConstraint("organization_id", "since"),
)

# Debt by day and price: what no addition has covered, what is owed for, and how much is charged and billed.
credit_debt = table(
    "credit_debt",
    refers("organization_id", "organization"),
    days("day"),
    amounts("unit_cost"),
    integers("open_quantity", "quantity", "charged_quantity", "charges", "billed_quantity"),
    PrimaryKeyConstraint("organization_id", "day", "unit_cost"),
)

# What is drawn of additions by the day it is an entry of: used, expired, taken back. A trigger fills it.
credit_drawdown = table(
    "credit_drawdown",
    identity(),
    refers("organization_id", "organization"),
    refers("credit_addition_id", "credit_addition"),
    texts("kind"),
    days("day"),
    integers("credits"),
    UniqueConstraint("credit_addition_id", "kind", "day"),
)

service_activation = table(
    "service_activation",
    integers("organization_id", "service_id"),
    uuids("request_id?"),
    moments("activated_at"),
    PrimaryKeyConstraint("organization_id", "service_id"),
)
