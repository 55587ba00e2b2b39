"""Who exists and what they may do: organizations, tenants, users, their credentials and limits."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Index,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from gateway.core.model import USER_HEADERS
from persistence.tables.columns import (
    count,
    document,
    identity,
    line,
    metadata,
    moment,
    money,
    one_of,
    refers,
    signed,
)

organization = Table(
    "organization",
    metadata,
    identity(),
    line("name"),
    Column(
        "currency",
        Text,
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        nullable=False,
        server_default="USD",
    ),
    signed("credit_balance"),
    count("credit_limit"),
    money("spend_cap"),
    document("limits"),
    Column(
        "tax_rate",
        Numeric(7, 6),
        CheckConstraint("tax_rate BETWEEN 0 AND 1", name="tax_rate"),
        nullable=False,
        server_default="0",
    ),
    # The credit and spend accounts as of the last flushed event; a rebuild of Redis starts here.
    count("credit_epoch"),
    count("credit_last_seq"),
    count("spend_epoch"),
    count("spend_last_seq"),
    signed("spent"),
    Column("spend_month", Date),
    # Movements of the credit account up to here are in credit_allocation.
    count("allocated_seq"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
    Index("organization_words_idx", text("name_words(name)"), postgresql_using="gin"),
)

tenant = Table(
    "tenant",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    line("name"),
    # Its own token plan; where it has none, the one its organization's subscription gives it.
    refers("plan_id", "token_plan"),
    refers("inherited_plan_id", "token_plan"),
    document("limits"),
    document("user_limits"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
    Index("tenant_words_idx", text("name_words(name)"), postgresql_using="gin"),
)

app_user = Table(
    "app_user",
    metadata,
    identity(),
    refers("organization_id", "organization", index=False),
    Column(
        "external_id",
        Text,
        CheckConstraint("length(external_id) BETWEEN 1 AND 128", name="external_id"),
        nullable=False,
    ),
    Column("name", Text),
    document("limits"),
    # True where a request's attribution made the row, not a person.
    Column("first_sight", Boolean, nullable=False, server_default=text("false")),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
    UniqueConstraint("organization_id", "external_id", postgresql_nulls_not_distinct=True),
    Index("app_user_first_sight_idx", "organization_id", "created_at", postgresql_where=text("first_sight")),
)

admin_token = Table(
    "admin_token",
    metadata,
    identity(),
    line("name"),
    one_of("role", ("admin", "readonly")),
    refers("user_id", "app_user"),
    Column("digest", Text, nullable=False, unique=True),
    line("prefix"),
    moment("expires_at"),
    moment("revoked_at"),
    moment("created_at", now=True),
)

api_key = Table(
    "api_key",
    metadata,
    identity(),
    refers("tenant_id", "tenant", required=True),
    line("name"),
    # The tenant's own user id that requests of this key act for.
    Column("user", Text),
    document("limits"),
    document("models", default=None),
    # Hex HMAC-SHA-256 of the key under the pepper; the key itself is stored nowhere.
    Column(
        "digest",
        Text,
        CheckConstraint("digest ~ '^[0-9a-f]{64}$'", name="digest"),
        nullable=False,
        unique=True,
    ),
    line("prefix"),
    moment("expires_at"),
    moment("revoked_at"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    # What a request of this key may say of its user.
    one_of("user_header", USER_HEADERS, default="accept"),
)

token_plan = Table(
    "token_plan",
    metadata,
    identity(),
    line("name"),
    count("total_amount", required=False),
    Column("description", Text),
    one_of("reset_interval", ("monthly", "weekly", "daily", "none"), default="monthly"),
    one_of("overage_policy", ("block", "carry", "bill"), default="block"),
    money("overage_unit_price"),
    count("rollover_max"),
    one_of("admission", ("available", "strict"), default="available"),
    one_of("on_exhausted", ("finish", "cut"), default="finish"),
    one_of("on_store_failure", ("deny", "allow"), default="deny"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
)

# What tokens beyond a plan cost since when, kept by a trigger.
token_plan_price = Table(
    "token_plan_price",
    metadata,
    Column("plan_id", BigInteger, nullable=False),
    moment("since", required=True),
    Column("overage_policy", Text, nullable=False),
    money("unit_price"),
    PrimaryKeyConstraint("plan_id", "since"),
)

# The token account as of the last flushed event, and all a rebuild of Redis needs.
tenant_quota = Table(
    "tenant_quota",
    metadata,
    Column("tenant_id", BigInteger, ForeignKey("tenant.id"), primary_key=True, autoincrement=False),
    refers("plan_id", "token_plan"),
    count("total", required=False),
    count("tokens_used"),
    signed("tokens_remaining", required=False),
    # While the plan is unlimited: what was granted beyond it, which counts again under one with a total.
    signed("tokens_granted"),
    Column("is_blocked", Boolean, nullable=False, server_default=text("false")),
    Column("manual_block", Boolean, nullable=False, server_default=text("false")),
    moment("last_reset"),
    moment("next_reset_at"),
    count("cycle"),
    Column(
        "anchor",
        SmallInteger,
        CheckConstraint("anchor BETWEEN 1 AND 31", name="anchor"),
        nullable=False,
        server_default="1",
    ),
    count("epoch"),
    count("last_seq"),
    # What webhooks were last told of `is_blocked`.
    Column("noticed_blocked", Boolean, nullable=False, server_default=text("false")),
    moment("updated_at", now=True),
    Index("tenant_quota_notice_idx", "tenant_id", postgresql_where=text("is_blocked <> noticed_blocked")),
)
