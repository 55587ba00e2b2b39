"""What is sold: services, business models, subscriptions, invoices."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    Numeric,
    PrimaryKeyConstraint,
    Text,
    UniqueConstraint,
)

from gateway.core.billing.vector import KINDS
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
    uuids,
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
    # Neither of both: as the business model says.
    flags("counts_tokens", "counts_none"),
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
    flags("counts_tokens?"),
    documents("pricing?"),
    moments("created_at", "updated_at"),
    UniqueConstraint("organization_id", "service_id"),
)

subscription_plan = table(
    "subscription_plan",
    identity(),
    texts("name"),
    amounts("monthly_cost", "annual_cost"),
    texts("currency"),
    documents("feature_access"),
    refers("token_plan_id?", "token_plan"),
    # How many of its prices took effect that reach all who have it.
    integers("reprices"),
    moments("created_at", "updated_at", "deleted_at?"),
)

# What a plan costs since when for all who have it. `number` counts them, null until their day comes; 0 is
# that of before the first.
subscription_plan_price = table(
    "subscription_plan_price",
    identity(),
    refers("plan_id", "subscription_plan"),
    days("effective_from"),
    amounts("monthly_cost?", "annual_cost?"),
    integers("number?"),
    moments("created_at"),
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
    # What is agreed: when a fee falls due, what is free, off or at least owed, other prices, how many.
    texts("billing?"),
    days("trial_end?", "discount_end?"),
    decimals("discount_rate?", "minimum_commitment?", "negotiated_cost?", "overage_unit_price?"),
    integers("quantity"),
    # How many prices of its plan that reach all its fee follows.
    integers("reprices"),
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
    # Its cycles count from the anchor. What it has days beyond, up to which it was charged, is given back.
    days("anchor_date", "start_date", "end_date", "charged_until?"),
    # As agreed for it. The cost is so many times the plan's price, or what was negotiated.
    texts("billing?"),
    days("trial_end?", "discount_end?"),
    decimals("discount_rate?", "minimum_commitment?"),
    integers("quantity"),
    flags("negotiated"),
    moments("created_at"),
)

# Terms of a subscription that change from a day on, those that are said, since it began on its anchor.
subscription_term = table(
    "subscription_term",
    identity(),
    refers("organization_id", "organization"),
    refers("subscription_id", "organization_subscription"),
    days("anchor_date", "starts_on"),
    documents("said"),
    flags("in_force"),
    moments("created_at"),
    UniqueConstraint("subscription_id", "anchor_date", "starts_on"),
)

# Token plans that a subscription gave and that ended, each with the control write that took it: what days of
# its cycle pay, how many tokens the next plan has, and, once it is known, how many were used ahead.
plan_end = table(
    "plan_end",
    identity(),
    refers("organization_id", "organization"),
    refers("tenant_id", "tenant"),
    uuids("control_write_id"),
    # The tenant was deleted before: no control write took its plan.
    flags("is_gone"),
    refers("subscription_id", "organization_subscription"),
    days("anchor_date", "paid_from"),
    moments("cycle_ends_at?"),
    integers("total_amount", "counted"),
    decimals("worth", "paid"),
    days("supplied_from", "supplied_until"),
    integers("quantity?"),
    decimals("amount?"),
    moments("created_at"),
    # What was used of the plan, and how often a difference was charged.
    integers("used?", "charges"),
    # The next plan carries on what is beyond it: until which write, and what was left of it then.
    flags("carries"),
    uuids("debt_write_id?"),
    moments("debt_ends_at?"),
    integers("debt_counted?", "debt?"),
    # Up to which day days were had; the row of the ledger that gave the tokens; and how many of them a later
    # plan of the cycle has, where that is more than the next one.
    days("paid_until?"),
    integers("began?", "regained?"),
    UniqueConstraint("control_write_id"),
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
    # What alone it bills, as charges name it; null of an invoice over a period.
    texts("source?"),
    integers("source_id?"),
    # Which movements it billed: those from the day `since` on, up to a seq of each account.
    documents("covers?"),
    # Seller, buyer, terms and what it corrects, as they were when it became final; null of older ones.
    documents("document?"),
    amounts("total_amount"),
    moments("created_at", "finalized_at?", "voided_at?"),
    # The last day it may be paid on, and what of it is paid; when a person gave it up.
    days("due_date?"),
    texts("payment_status?"),
    moments("uncollectible_at?"),
    # Of a note: that no credit of it is left to apply.
    flags("used_up"),
    UniqueConstraint("number"),
)

# Money that came in for an invoice, or (below zero) went out of a credit note; what goes back is a row of its
# own, with the sign turned.
payment = table(
    "payment",
    identity(),
    refers("organization_id", "organization"),
    refers("invoice_id", "invoice"),
    amounts("amount"),
    # The reference names a payment of its invoice: what is told twice is here once.
    texts("currency", "reference"),
    refers("corrects_id?", "payment"),
    moments("created_at"),
    UniqueConstraint("invoice_id", "reference"),
)

# Credit of a note that is applied to an invoice; below zero where it is taken back.
note_application = table(
    "note_application",
    identity(),
    refers("organization_id", "organization"),
    refers("note_id", "invoice"),
    refers("invoice_id", "invoice"),
    amounts("amount"),
    texts("currency", "reason", "actor"),
    moments("created_at"),
)

invoice_line = table(
    "invoice_line",
    identity(),
    refers("invoice_id", "invoice"),
    Column("position", Integer, nullable=False),
    texts("kind", "description"),
    refers("service_id?", "service"),
    refers("tenant_id?", "tenant"),
    # What both were called then.
    texts("service?", "tenant?"),
    Column("quantity", Numeric(28, 10), nullable=False),
    prices("unit_price"),
    amounts("amount"),
    # Of a credit note: the line of the invoice it gives back, or part of it.
    Column("corrects_position", Integer),
    # What its charges come to, and what its rounding goes on with.
    decimals("exact?"),
    texts("basis?"),
    # The tax of what was supplied: a fraction, its kind, and why there is none. Null of older lines.
    decimals("tax_rate?"),
    texts("tax_category?", "tax_reason?"),
    # When it was supplied, half open; null of taxes and of older lines.
    days("period_start?", "period_end?"),
    UniqueConstraint("invoice_id", "position"),
)

# Money that is owed: a row for each fact, one of its own for what takes a row back, each billed once.
charge = table(
    "charge",
    identity(),
    refers("organization_id", "organization"),
    texts("kind"),
    moments("period_start", "period_end"),
    decimals("quantity", "unit_price", "amount"),
    texts("currency"),
    # The rows it is for, why it is here, and the row it takes back.
    texts("source"),
    integers("source_id?"),
    texts("reason"),
    refers("corrects_id?", "charge"),
    # Names the fact: what is delivered twice is here once.
    texts("fact"),
    integers("tenant_id?", "service_id?", "place?"),
    refers("invoice_id?", "invoice"),
    Column("line", Integer),
    moments("created_at"),
    UniqueConstraint("fact"),
)

# PDF and XML of final invoices, as they were made the first time. A void one has a PDF that says so.
invoice_document = table(
    "invoice_document",
    refers("invoice_id", "invoice"),
    texts("format", "status", "sha256"),
    Column("content", LargeBinary, nullable=False),
    moments("made_at"),
    PrimaryKeyConstraint("invoice_id", "format", "status"),
)

# What finalized invoices told of credits that were used; and of all they billed before there were charges.
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
