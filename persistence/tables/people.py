"""Who exists and what they may do: organizations, tenants, users, their credentials and limits."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKey,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from gateway.core.accounts.plan_terms import TERMS
from persistence.tables.columns import document, identity, integer, line, metadata, moment, money, refers

organization = Table(
    "organization",
    metadata,
    identity(),
    line("name"),
    Column("currency", Text, nullable=False),
    integer("credit_balance"),
    integer("credit_limit"),
    money("spend_cap"),
    document("limits"),
    Column("tax_rate", Numeric(7, 6), nullable=False),
    # The credit and spend accounts as of the last flushed event; a rebuild of Redis starts here.
    integer("credit_epoch"),
    integer("credit_last_seq"),
    integer("spend_epoch"),
    integer("spend_last_seq"),
    integer("spent"),
    Column("spend_month", Date),
    # Movements of the credit account up to here are in credit_allocation.
    integer("allocated_seq"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
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
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
)

app_user = Table(
    "app_user",
    metadata,
    identity(),
    refers("organization_id", "organization"),
    Column("external_id", Text, nullable=False),
    Column("name", Text),
    document("limits"),
    # True where a request's attribution made the row, not a person.
    Column("first_sight", Boolean, nullable=False),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
    UniqueConstraint("organization_id", "external_id", postgresql_nulls_not_distinct=True),
)

admin_token = Table(
    "admin_token",
    metadata,
    identity(),
    line("name"),
    line("role"),
    refers("user_id", "app_user"),
    Column("digest", Text, nullable=False, unique=True),
    line("prefix"),
    moment("expires_at"),
    moment("revoked_at"),
    moment("created_at", required=True),
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
    document("models", required=False),
    # Hex HMAC-SHA-256 of the key under the pepper; the key itself is stored nowhere.
    Column("digest", Text, nullable=False, unique=True),
    line("prefix"),
    moment("expires_at"),
    moment("revoked_at"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    # What a request of this key may say of its user.
    line("user_header"),
)

token_plan = Table(
    "token_plan",
    metadata,
    identity(),
    line("name"),
    Column("description", Text),
    *(line(one.name) if one.choices else integer(one.name, required=not one.nullable) for one in TERMS),
    money("overage_unit_price"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
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
    integer("total", required=False),
    integer("tokens_used"),
    integer("tokens_remaining", required=False),
    # While the plan is unlimited: what was granted beyond it, which counts again under one with a total.
    integer("tokens_granted"),
    Column("is_blocked", Boolean, nullable=False),
    Column("manual_block", Boolean, nullable=False),
    moment("last_reset"),
    moment("next_reset_at"),
    integer("cycle"),
    Column("anchor", SmallInteger, nullable=False),
    integer("epoch"),
    integer("last_seq"),
    # What webhooks were last told of `is_blocked`.
    Column("noticed_blocked", Boolean, nullable=False),
    moment("updated_at", required=True),
)
