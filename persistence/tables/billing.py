"""What is sold: services, business models, subscriptions, invoices."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Integer,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    text,
)

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

business_model = Table(
    "business_model",
    metadata,
    identity(),
    Column("name", Text, nullable=False, unique=True),
    Column("display_name", Text),
    Column("description", Text),
    one_of("meter", ("consumption", "subscription", "pay_per_use")),
    moment("created_at", now=True),
    moment("updated_at", now=True),
)

service = Table(
    "service",
    metadata,
    identity(),
    line("name"),
    Column("description", Text),
    Column("key", Text, nullable=False, unique=True),
    count("credits"),
    one_of("service_type", ("Pay-As-You-Go", "One-Time"), default="Pay-As-You-Go"),
    refers("business_model_id", "business_model", required=True),
    Column("counts_tokens", Boolean, nullable=False, server_default=text("false")),
    document("pricing", default=None),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
    # Where its calls under /services/ go: a configured upstream's name, and patterns of paths.
    Column("upstream", Text),
    document("paths", default=None),
)

organization_service = Table(
    "organization_service",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True, index=False),
    refers("service_id", "service", required=True),
    count("negotiated_credits", default=None),
    refers("business_model_id", "business_model"),
    document("pricing", default=None),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    UniqueConstraint("organization_id", "service_id"),
)

subscription_plan = Table(
    "subscription_plan",
    metadata,
    identity(),
    line("name"),
    money("monthly_cost", required=True),
    money("annual_cost", required=True),
    document("feature_access", default="[]"),
    refers("token_plan_id", "token_plan"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
    CheckConstraint("monthly_cost >= 0 AND annual_cost >= 0", name="costs"),
)

organization_subscription = Table(
    "organization_subscription",
    metadata,
    identity(),
    Column("organization_id", BigInteger, ForeignKey("organization.id"), nullable=False, unique=True),
    refers("plan_id", "subscription_plan", required=True),
    Column("start_date", Date, nullable=False),
    Column("end_date", Date, nullable=False),
    one_of("billing_interval", ("monthly", "annual"), default="monthly"),
    # A change that waits for the period's end; the day a cancellation ends it.
    refers("next_plan_id", "subscription_plan"),
    Column("change_at", Date),
    Column("cancel_at", Date),
    # How it stood when gateways and tenants were last told.
    one_of("standing", ("future", "active", "over"), default="future"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    CheckConstraint("end_date >= start_date", name="dates"),
)

# What was in force when, at which price: the subscription fee's source.
subscription_segment = Table(
    "subscription_segment",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    refers("plan_id", "subscription_plan", required=True),
    one_of("billing_interval", ("monthly", "annual")),
    money("cost", required=True),
    # Where its cycles count from.
    Column("anchor_date", Date, nullable=False),
    Column("start_date", Date, nullable=False),
    Column("end_date", Date, nullable=False),
    moment("created_at", now=True),
    CheckConstraint("end_date >= start_date", name="dates"),
)

invoice = Table(
    "invoice",
    metadata,
    identity(),
    refers("organization_id", "organization", required=True),
    # An invoice, or a note that gives back what another billed.
    one_of("kind", ("invoice", "credit_note"), default="invoice"),
    refers("corrects_id", "invoice"),
    Column("number", Text, unique=True),
    one_of("status", ("draft", "finalized", "void"), default="draft"),
    # The organization's name as it was when the invoice was made.
    Column("customer", Text),
    Column("currency", Text, CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"), nullable=False),
    Column("period_start", Date, nullable=False),
    Column("period_end", Date, nullable=False),
    # Which movements it billed: those from the day `since` on, up to a seq of each account.
    document("covers", default=None),
    Column("total_amount", Numeric(28, 10), nullable=False, server_default=text("0")),
    moment("created_at", now=True),
    moment("finalized_at"),
    moment("voided_at"),
    CheckConstraint("period_end > period_start", name="period"),
    CheckConstraint("(kind = 'credit_note') = (corrects_id IS NOT NULL)", name="corrects"),
    CheckConstraint("status = 'draft' OR number IS NOT NULL", name="number"),
)

invoice_line = Table(
    "invoice_line",
    metadata,
    identity(),
    refers("invoice_id", "invoice", required=True, index=False),
    Column("position", Integer, nullable=False),
    one_of("kind", ("subscription", "overage", "credits_purchased", "credits_consumed", "usage", "tax")),
    line("description"),
    refers("service_id", "service", index=False),
    refers("tenant_id", "tenant", index=False),
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
    one_of("kind", ("subscription", "overage", "credits_purchased", "credits_consumed", "usage")),
    signed("quantity"),
    refers("segment_id", "subscription_segment"),
    Column("start_date", Date),
    Column("end_date", Date),
    refers("tenant_id", "tenant"),
    count("cycle", required=False),
    refers("credit_addition_id", "credit_addition"),
    refers("service_id", "service", index=False),
    Column("day", Date),
    Column("unit_price", Numeric(28, 12)),
)

# The last number given out, row-locked while the next is taken, so numbers have no gap.
invoice_sequence = Table(
    "invoice_sequence",
    metadata,
    Column("series", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False, server_default=text("0")),
)
