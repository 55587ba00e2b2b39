"""What happened: append-only ledgers by month, and the roll-up made from them.

A ledger row is named by its account and `seq`, stamped by the counters with the balance that
follows. Foreign keys are left out on purpose: a check per row would halve the flush, and the
writer refuses accounts it does not know.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Identity,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)

from persistence.tables.columns import document, integer, line, metadata, moment, money, refers


def _row_id() -> Column[int]:
    return Column("id", BigInteger, Identity(), nullable=False)


def _attributed() -> tuple[Column[int], ...]:
    return (
        Column("tenant_id", BigInteger),
        Column("api_key_id", BigInteger),
        Column("user_id", BigInteger),
        integer("content_id", required=False),
        integer("project_id", required=False),
    )


token_ledger = Table(
    "token_ledger",
    metadata,
    _row_id(),
    Column("tenant_id", BigInteger, nullable=False),
    line("transaction_type"),
    integer("amount"),
    integer("total_remaining", required=False),
    line("direction"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    integer("epoch"),
    integer("seq"),
    integer("cycle"),
    Column("request_id", Uuid),
    Column("control_write_id", Uuid),
    Column("service_id", BigInteger),
    Column("api_key_id", BigInteger),
    Column("user_id", BigInteger),
    document("metadata", required=False),
    PrimaryKeyConstraint("tenant_id", "seq", "created_at"),
    postgresql_partition_by="RANGE (created_at)",
)

credit_posting = Table(
    "credit_posting",
    metadata,
    _row_id(),
    Column("organization_id", BigInteger, nullable=False),
    line("kind"),
    Column("credit_addition_id", BigInteger),
    integer("amount"),
    integer("balance_after"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    integer("epoch"),
    integer("seq"),
    Column("control_write_id", Uuid),
    document("metadata", required=False),
    PrimaryKeyConstraint("organization_id", "seq", "created_at"),
    postgresql_partition_by="RANGE (created_at)",
)

credit_transaction = Table(
    "credit_transaction",
    metadata,
    _row_id(),
    Column("organization_id", BigInteger, nullable=False),
    Column("feature_id", BigInteger),
    *_attributed(),
    Column("timestamp", DateTime(timezone=True), nullable=False),
    integer("credits_used"),
    Column("feature_version", Text),
    document("metadata", required=False),
    Column("request_id", Uuid),
    integer("balance_after"),
    integer("epoch"),
    integer("seq"),
    PrimaryKeyConstraint("organization_id", "seq", "timestamp"),
    postgresql_partition_by='RANGE ("timestamp")',
)

feature_usage = Table(
    "feature_usage",
    metadata,
    _row_id(),
    Column("organization_id", BigInteger, nullable=False),
    Column("feature_id", BigInteger),
    *_attributed(),
    Column("timestamp", DateTime(timezone=True), nullable=False),
    # Units given back are those of a row that corrects another.
    Column("usage_amount", BigInteger, nullable=False),
    Column("feature_version", Text),
    document("metadata", required=False),
    Column("request_id", Uuid),
    # What the use cost and the month's spend after it, in the counters' integer unit.
    integer("spend"),
    integer("spent_after"),
    integer("epoch"),
    integer("seq"),
    PrimaryKeyConstraint("organization_id", "seq", "timestamp"),
    postgresql_partition_by='RANGE ("timestamp")',
)

# Ledgers, each with the column it is partitioned by.
LEDGERS = {
    "token_ledger": "created_at",
    "credit_posting": "created_at",
    "credit_transaction": "timestamp",
    "feature_usage": "timestamp",
}

usage_daily = Table(
    "usage_daily",
    metadata,
    Column("day", Date, nullable=False),
    Column("organization_id", BigInteger, nullable=False),
    Column("tenant_id", BigInteger, nullable=False),
    Column("service_id", BigInteger, nullable=False),
    integer("requests"),
    integer("tokens"),
    integer("credits"),
    integer("usage_amount"),
    # What invoices have billed of the amounts above: the rest is billed by the next one.
    integer("billed_credits"),
    integer("billed_usage_amount"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id"),
)

# A day's Pay-Per-Use units by what they cost; `first_unit` is the first one's place in its month.
usage_tier = Table(
    "usage_tier",
    metadata,
    Column("tenant_id", BigInteger, nullable=False),
    Column("day", Date, nullable=False),
    Column("service_id", BigInteger, nullable=False),
    Column("unit_price", Numeric(28, 12), nullable=False),
    Column("organization_id", BigInteger, nullable=False),
    Column("first_unit", BigInteger, nullable=False),
    integer("quantity"),
    integer("billed_quantity"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id", "unit_price"),
)

credit_addition = Table(
    "credit_addition",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    refers("organization_id", "organization", required=True),
    Column("credits_added", BigInteger, nullable=False),
    refers("added_by_id", "app_user"),
    Column("remark", Text),
    line("category"),
    Column("priority", BigInteger, nullable=False),
    moment("expires_at"),
    money("unit_cost"),
    moment("timestamp", required=True),
    Column("control_write_id", Uuid, unique=True),
    # Credits of it that are allocated to uses.
    integer("spent"),
    # The control write that takes what is left at its expiry.
    Column("expiry_write_id", Uuid, unique=True),
)

credit_allocation = Table(
    "credit_allocation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    refers("organization_id", "organization", required=True),
    # The use, by its place in the organization's credit account; null: taken by no addition (debt).
    integer("seq"),
    refers("credit_addition_id", "credit_addition"),
    integer("amount"),
    moment("created_at", required=True),
)

service_activation = Table(
    "service_activation",
    metadata,
    Column("organization_id", BigInteger, nullable=False),
    Column("service_id", BigInteger, nullable=False),
    Column("request_id", Uuid),
    moment("activated_at", required=True),
    PrimaryKeyConstraint("organization_id", "service_id"),
)
