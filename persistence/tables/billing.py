"""What is sold: services, business models, subscriptions, invoices."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, Numeric, Text, UniqueConstraint

from gateway.core.billing.cost import KINDS
from persistence.tables.columns import (
    amounts,
    days,
    decimals,
    documents,
    flags,
    identity,
    integers,
    moments,
    prices,
    refers,
    table,
    texts,
)

business_model = table(
    "business_model",
    identity(),
    texts("name", "display_name?", "description?", "meter"),
    moments("created_at", "updated_at"),
    UniqueConstraint("name"),
)

service = table(
    "service",
    identity(),
    texts("name", "description?", "key", "service_type"),
    integers("credits"),
    refers("business_model_id", "business_model"),
    flags("counts_tokens"),
    documents("pricing?"),
    moments("created_at", "updated_at", "deleted_at?"),
    # Where its calls under /services/ go: a configured upstream's name, and patterns of paths.
    texts("upstream?"),
    documents("paths?"),
    UniqueConstraint("key"),
)

organization_service = table(
    "organization_service",
    identity(),
    refers("organization_id", "organization"),
    refers("service_id", "service"),
    integers("negotiated_credits"),
    refers("business_model_id?", "business_model"),
    documents("pricing?"),
    moments("created_at", "updated_at"),
    UniqueConstraint("organization_id", "service_id"),
)

subscription_plan = table(
    "subscription_plan",
    identity(),
    texts("name"),
    amounts("monthly_cost", "annual_cost"),
    documents("feature_access"),
    refers("token_plan_id?", "token_plan"),
    moments("created_at", "updated_at", "deleted_at?"),
)

organization_subscription = table(
    "organization_subscription",
    identity(),
    refers("organization_id", "organization"),
    refers("plan_id", "subscription_plan"),
    days("start_date", "end_date"),
    texts("billing_interval"),
    # A change that waits for the period's end; the day a cancellation ends it.
    refers("next_plan_id?", "subscription_plan"),
    days("change_at?", "cancel_at?"),
    # How it stood when gateways and tenants were last told.
    texts("status"),
    moments("created_at", "updated_at"),
    UniqueConstraint("organization_id"),
)

# What was in force when, at which price: the subscription fee's source.
subscription_segment = table(
    "subscription_segment",
    identity(),
    refers("organization_id", "organization"),
    refers("plan_id", "subscription_plan"),
    texts("billing_interval"),
    amounts("cost"),
    # Its cycles count from the anchor.
    days("anchor_date", "start_date", "end_date"),
    moments("created_at"),
)

invoice = table(
    "invoice",
    identity(),
    refers("organization_id", "organization"),
    # An invoice, or a note that gives back what another billed.
    texts("kind"),
    refers("corrects_id?", "invoice"),
    texts("number?", "status"),
    # The organization's name as it was when the invoice was made.
    texts("customer?", "currency"),
    days("period_start", "period_end"),
    # Which movements it billed: those from the day `since` on, up to a seq of each account.
    documents("covers?"),
    amounts("total_amount"),
    moments("created_at", "finalized_at?", "voided_at?"),
    UniqueConstraint("number"),
)

invoice_line = table(
    "invoice_line",
    identity(),
    refers("invoice_id", "invoice"),
    Column("position", Integer, nullable=False),
    texts("kind", "description"),
    refers("service_id?", "service"),
    refers("tenant_id?", "tenant"),
    Column("quantity", Numeric(28, 10), nullable=False),
    prices("unit_price"),
    amounts("amount"),
    # Of a credit note: the line of the invoice it gives back, or part of it.
    Column("corrects_position", Integer),
    UniqueConstraint("invoice_id", "position"),
)

# What finalized invoices billed, so that no other does: days of a segment, tokens of a tenant's cycle,
# an addition of credits, units and credits of a day. What a void one billed counts as not billed.
invoice_basis = table(
    "invoice_basis",
    identity(),
    refers("invoice_id", "invoice"),
    texts("kind"),
    integers("quantity"),
    refers("segment_id?", "subscription_segment"),
    days("start_date?", "end_date?"),
    refers("tenant_id?", "tenant"),
    integers("cycle?"),
    refers("credit_addition_id?", "credit_addition"),
    refers("service_id?", "service"),
    days("day?"),
    prices("unit_price?"),
)

# The last number given out, row-locked while the next is taken, so numbers have no gap.
invoice_sequence = table(
    "invoice_sequence",
    Column("series", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False),
)

# What a model costs since when: never changed, superseded by a later one. A million tokens of each kind.
price = table(
    "price",
    identity(),
    texts("provider?", "model", "match", "currency"),
    moments("effective_from"),
    decimals(*(f"{kind}?" for kind in KINDS), "request?"),
    documents("tools?", "context_tiers?", "service_tiers?"),
    texts("source"),
    moments("created_at"),
)
