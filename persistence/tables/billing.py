"""What is sold: services, business models, subscriptions, invoices."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKey,
    Integer,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
)

from persistence.tables.columns import document, identity, integer, line, metadata, moment, money, refers

business_model = Table(
    "business_model",
    metadata,
    identity(),
    Column("name", Text, nullable=False, unique=True),
    Column("display_name", Text),
    Column("description", Text),
    line("meter"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
)

service = Table(
    "service",
    metadata,
    identity(),
    line("name"),
    Column("description", Text),
    Column("key", Text, nullable=False, unique=True),
    integer("credits"),
    line("service_type"),
    refers("business_model_id", "business_model", required=True),
    Column("counts_tokens", Boolean, nullable=False),
    document("pricing", required=False),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
    # Where its calls under /services/ go: a configured upstream's name, and patterns of paths.
    Column("upstream", Text),
    document("paths", required=False),
)

organization_service = Table(
    "organization_service",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    refers("service_id", "service", required=True),
    integer("negotiated_credits"),
    refers("business_model_id", "business_model"),
    document("pricing", required=False),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    UniqueConstraint("organization_id", "service_id"),
)

subscription_plan = Table(
    "subscription_plan",
    metadata,
    identity(),
    line("name"),
    money("monthly_cost", required=True),
    money("annual_cost", required=True),
    document("feature_access"),
    refers("token_plan_id", "token_plan"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
)

organization_subscription = Table(
    "organization_subscription",
    metadata,
    identity(),
    Column("organization_id", BigInteger, ForeignKey("organization.id"), nullable=False, unique=True),
    refers("plan_id", "subscription_plan", required=True),
    Column("start_date", Date, nullable=False),
    Column("end_date", Date, nullable=False),
    line("billing_interval"),
    # A change that waits for the period's end; the day a cancellation ends it.
    refers("next_plan_id", "subscription_plan"),
    Column("change_at", Date),
    Column("cancel_at", Date),
    # How it stood when gateways and tenants were last told.
    line("status"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
)

# What was in force when, at which price: the subscription fee's source.
subscription_segment = Table(
    "subscription_segment",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    refers("plan_id", "subscription_plan", required=True),
    line("billing_interval"),
    money("cost", required=True),
    # Where its cycles count from.
    Column("anchor_date", Date, nullable=False),
    Column("start_date", Date, nullable=False),
    Column("end_date", Date, nullable=False),
    moment("created_at", required=True),
)

invoice = Table(
    "invoice",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    # An invoice, or a note that gives back what another billed.
    line("kind"),
    refers("corrects_id", "invoice"),
    Column("number", Text, unique=True),
    line("status"),
    # The organization's name as it was when the invoice was made.
    Column("customer", Text),
    Column("currency", Text, nullable=False),
    Column("period_start", Date, nullable=False),
    Column("period_end", Date, nullable=False),
    # Which movements it billed: those from the day `since` on, up to a seq of each account.
    document("covers", required=False),
    Column("total_amount", Numeric(28, 10), nullable=False),
    moment("created_at", required=True),
    moment("finalized_at"),
    moment("voided_at"),
)

invoice_line = Table(
    "invoice_line",
    metadata,
    identity(),
    refers("invoice_id", "invoice", required=True),
    Column("position", Integer, nullable=False),
    line("kind"),
    line("description"),
    refers("service_id", "service"),
    refers("tenant_id", "tenant"),
    Column("quantity", Numeric(28, 10), nullable=False),
    Column("unit_price", Numeric(28, 12), nullable=False),
    Column("amount", Numeric(28, 10), nullable=False),
    # Of a credit note: the line of the invoice it gives back, or part of it.
    Column("corrects_position", Integer),
    UniqueConstraint("invoice_id", "position"),
)

# What finalized invoices billed, so that no other does: days of a segment, tokens of a tenant's cycle,
# an addition of credits, units and credits of a day. What a void one billed counts as not billed.
invoice_basis = Table(
    "invoice_basis",
    metadata,
    identity(),
    refers("invoice_id", "invoice", required=True),
    line("kind"),
    integer("quantity"),
    refers("segment_id", "subscription_segment"),
    Column("start_date", Date),
    Column("end_date", Date),
    refers("tenant_id", "tenant"),
    integer("cycle", required=False),
    refers("credit_addition_id", "credit_addition"),
    refers("service_id", "service"),
    Column("day", Date),
    Column("unit_price", Numeric(28, 12)),
)

# The last number given out, row-locked while the next is taken, so numbers have no gap.
invoice_sequence = Table(
    "invoice_sequence",
    metadata,
    Column("series", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False),
)
