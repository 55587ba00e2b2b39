"""What happened: append-only ledgers by month, and the roll-up made from them.

A ledger row is named by its account and `seq`, stamped by the counters with the balance that
follows. Foreign keys are left out on purpose: a check per row would halve the flush, and the
writer refuses accounts it does not know.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Identity,
    Index,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)

from gateway.core.model import INTEGER_MAX
from persistence.tables.columns import count, document, metadata, moment, money, one_of, refers, signed

# Ledgers number their rows in blocks: a sequence asked once a row costs a tenth of a flush.
ROW_ID_CACHE = 1_000


def _row_id() -> Column[int]:
    return Column("id", BigInteger, Identity(cache=ROW_ID_CACHE), nullable=False)


def _by_id(table: str) -> Index:
    # Ids grow with the rows, so a few bytes a megabyte find one: a tree of them would cost each flush.
    return Index(f"{table}_id_idx", "id", postgresql_using="brin", postgresql_with={"autosummarize": "on"})


def _attributed() -> tuple[Column[int], ...]:
    return (
        Column("tenant_id", BigInteger),
        Column("api_key_id", BigInteger),
        Column("user_id", BigInteger),
        count("content_id", required=False),
        count("project_id", required=False),
    )


token_ledger = Table(
    "token_ledger",
    metadata,
    _row_id(),
    Column("tenant_id", BigInteger, nullable=False),
    one_of("transaction_type", ("consume", "recharge", "reset", "adjust")),
    count("amount", default=None),
    signed("total_remaining", required=False),
    one_of("direction", ("IN", "OUT")),
    Column("created_at", DateTime(timezone=True), nullable=False),
    count("epoch", default=None),
    count("seq", default=None),
    count("cycle", default=None),
    Column("request_id", Uuid),
    Column("control_write_id", Uuid),
    Column("service_id", BigInteger),
    Column("api_key_id", BigInteger),
    Column("user_id", BigInteger),
    document("metadata", default=None),
    PrimaryKeyConstraint("tenant_id", "seq", "created_at"),
    _by_id("token_ledger"),
    Index(None, "request_id"),
    # Where cycles begin and plans change, among a million uses.
    Index(
        "token_ledger_turn_idx", "tenant_id", "seq", postgresql_where=text("transaction_type <> 'consume'")
    ),
    postgresql_partition_by="RANGE (created_at)",
)

credit_posting = Table(
    "credit_posting",
    metadata,
    _row_id(),
    Column("organization_id", BigInteger, nullable=False),
    one_of("kind", ("addition", "expiry", "correction")),
    Column("credit_addition_id", BigInteger),
    signed("amount"),
    signed("balance_after"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    count("epoch", default=None),
    count("seq", default=None),
    Column("control_write_id", Uuid),
    document("metadata", default=None),
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
    count("credits_used", default=None),
    Column("feature_version", Text),
    document("metadata", default=None),
    Column("request_id", Uuid),
    signed("balance_after"),
    count("epoch", default=None),
    count("seq", default=None),
    PrimaryKeyConstraint("organization_id", "seq", "timestamp"),
    _by_id("credit_transaction"),
    Index(None, "request_id"),
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
    Column(
        "usage_amount",
        BigInteger,
        CheckConstraint(
            f"abs(usage_amount) <= {INTEGER_MAX} AND (usage_amount >= 0 OR metadata ? 'corrects')",
            name="usage_amount",
        ),
        nullable=False,
    ),
    Column("feature_version", Text),
    document("metadata", default=None),
    Column("request_id", Uuid),
    # What the use cost and the month's spend after it, in the counters' integer unit.
    signed("spend"),
    signed("spent_after"),
    count("epoch", default=None),
    count("seq", default=None),
    PrimaryKeyConstraint("organization_id", "seq", "timestamp"),
    _by_id("feature_usage"),
    Index(None, "request_id"),
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
    count("requests"),
    count("tokens"),
    count("credits"),
    signed("usage_amount"),
    # What invoices have billed of the amounts above: the rest is billed by the next one.
    count("billed_credits"),
    signed("billed_usage_amount"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id"),
    Index(None, "organization_id", "day"),
    Index(None, "day"),
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
    Column(
        "first_unit",
        BigInteger,
        CheckConstraint(f'"first_unit" BETWEEN -{INTEGER_MAX} AND {INTEGER_MAX}', name="first_unit"),
        nullable=False,
    ),
    signed("quantity"),
    signed("billed_quantity"),
    PrimaryKeyConstraint("tenant_id", "day", "service_id", "unit_price"),
    Index(None, "organization_id", "day"),
)

credit_addition = Table(
    "credit_addition",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    refers("organization_id", "organization", required=True),
    Column(
        "credits_added",
        BigInteger,
        CheckConstraint("credits_added <> 0 AND abs(credits_added) < 9007199254740992", name="credits_added"),
        nullable=False,
    ),
    refers("added_by_id", "app_user"),
    Column("remark", Text),
    one_of("category", ("paid", "promotional", "refund", "correction"), default="paid"),
    Column("priority", BigInteger, nullable=False, server_default=text("100")),
    moment("expires_at"),
    money("unit_cost"),
    moment("timestamp", now=True),
    Column("control_write_id", Uuid, unique=True),
    # Credits of it that are allocated to uses.
    count("spent"),
    # The control write that takes what is left at its expiry.
    Column("expiry_write_id", Uuid, unique=True),
    Index("credit_addition_expiry_idx", "expires_at", postgresql_where=text("expiry_write_id IS NULL")),
)

credit_allocation = Table(
    "credit_allocation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    refers("organization_id", "organization", required=True, index=False),
    # The use, by its place in the organization's credit account; null: taken by no addition (debt).
    count("seq", default=None),
    refers("credit_addition_id", "credit_addition"),
    count("amount", default=None),
    moment("created_at", now=True),
    Index(None, "organization_id", "seq"),
    Index(
        "credit_allocation_debt_idx",
        "organization_id",
        "seq",
        postgresql_where=text("credit_addition_id IS NULL"),
    ),
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
