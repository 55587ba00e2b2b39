"""Who exists and what they may do: organizations, tenants, users, their credentials and limits."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
)

from gateway.core.accounts.plan_terms import TERMS
from persistence.tables.columns import (
    amounts,
    days,
    documents,
    flags,
    identity,
    integers,
    moments,
    refers,
    table,
    texts,
)

organization = table(
    "organization",
    identity(),
    texts("name", "currency"),
    integers("credit_balance", "credit_limit"),
    amounts("spend_cap?"),
    # What a credit beyond the balance costs now.
    amounts("credit_unit_cost?"),
    # When credits are bought by themselves.
    documents("auto_top_up?"),
    documents("limits"),
    Column("tax_rate", Numeric(7, 6), nullable=False),
    # What its invoices say of it.
    documents("address?"),
    texts("country?", "tax_number?"),
    integers("due_days?"),
    # Whether what it does not pay is reminded of, and ends in a block.
    flags("dunning"),
    # Who it is where its money is collected.
    texts("stripe_customer?"),
    # Which services it may use that no subscription includes.
    texts("services"),
    # Whose months it is billed by, and why the last invoice on schedule was left.
    texts("time_zone", "invoicing_left?", "invoicing_left_reason?"),
    # The credit and spend accounts as of the last flushed event; a rebuild of Redis starts here.
    integers("credit_epoch", "credit_last_seq", "credit_ahead", "spend_epoch", "spend_last_seq", "spent"),
    days("spend_month?"),
    # Movements of the credit account up to here are in credit_allocation.
    integers("allocated_seq"),
    moments("created_at", "updated_at", "deleted_at?"),
)

tenant = table(
    "tenant",
    identity(),
    refers("organization_id", "organization"),
    texts("name"),
    # Its own token plan; where it has none, the one its organization's subscription gives it.
    refers("plan_id?", "token_plan"),
    refers("inherited_plan_id?", "token_plan"),
    documents("limits", "user_limits"),
    moments("created_at", "updated_at", "deleted_at?"),
)

app_user = table(
    "app_user",
    identity(),
    refers("organization_id?", "organization"),
    texts("external_id", "name?"),
    documents("limits"),
    # True where a request's attribution made the row, not a person.
    flags("first_sight"),
    moments("created_at", "updated_at", "deleted_at?"),
    UniqueConstraint("organization_id", "external_id", postgresql_nulls_not_distinct=True),
)

admin_token = table(
    "admin_token",
    identity(),
    texts("name", "role", "digest", "prefix"),
    refers("user_id?", "app_user"),
    moments("expires_at?", "revoked_at?", "created_at"),
    # The one it is of; null is of all.
    refers("organization_id?", "organization"),
    # As of the last minutes.
    moments("last_used_at?"),
    # The id of the pepper that the digest is under; null of what was made before ids were kept.
    texts("pepper?"),
    # Which people of a provider sign in by it, where it is no secret: the digest is of these.
    texts("issuer?", "subject?"),
    # Of one organization, for staff: it decides what that one owes.
    flags("ours"),
    UniqueConstraint("digest"),
)

api_key = table(
    "api_key",
    identity(),
    refers("tenant_id", "tenant"),
    texts("name"),
    # The tenant's own user id that requests of this key act for.
    texts("user?"),
    documents("limits", "models?"),
    # Hex HMAC-SHA-256 of the key under the pepper; the key itself is stored nowhere.
    texts("digest", "prefix"),
    moments("expires_at?", "revoked_at?", "created_at", "updated_at"),
    # What a request of this key may say of its user.
    texts("user_header"),
    # Whose signed tokens stand for it, where it is no key: the digest is of these.
    texts("issuer?", "subject?"),
    # As of a token of staff.
    texts("pepper?"),
    # The key that stands in its place, until when both are good.
    refers("replaced_by_id?", "api_key", "SET NULL"),
    UniqueConstraint("digest"),
)

token_plan = table(
    "token_plan",
    identity(),
    texts("name", "description?", *(term.name for term in TERMS if term.is_text)),
    integers(*(f"{term.name}?" if term.nullable else term.name for term in TERMS if not term.is_text)),
    amounts("overage_unit_price?"),
    # Of that price; null is what an organization pays in.
    texts("currency?"),
    moments("created_at", "updated_at", "deleted_at?"),
    # What a token of a kind counts toward the quota: decimal strings by kind.
    documents("weights?"),
)

# What the counters are told of a zone's clocks, and up to which tenant they were; null is all.
zone_clock = table(
    "zone_clock",
    Column("time_zone", Text, primary_key=True),
    integers("offset", "turns_at", "offset_after", "tenant_id?"),
)

# What a plan said since when, kept by a trigger: its tokens, and what those beyond it cost.
token_plan_price = table(
    "token_plan_price",
    integers("plan_id"),
    moments("since"),
    texts("overage_policy"),
    amounts("unit_price?"),
    integers("total_amount?"),
    texts("reset_interval?", "time_zone?"),
    integers("anchor_day?"),
    PrimaryKeyConstraint("plan_id", "since"),
)

# The token account as of the last flushed event, and all a rebuild of Redis needs.
tenant_quota = table(
    "tenant_quota",
    Column("tenant_id", BigInteger, ForeignKey("tenant.id"), primary_key=True, autoincrement=False),
    refers("plan_id?", "token_plan"),
    integers("total?", "tokens_used", "tokens_remaining?"),
    # While the plan is unlimited: what was granted beyond it, which counts again under one with a total.
    integers("tokens_granted"),
    flags("is_blocked", "manual_block"),
    moments("last_reset?", "next_reset_at?", "updated_at"),
    integers("cycle", "epoch", "last_seq"),
    Column("anchor", SmallInteger, nullable=False),
    # What webhooks were last told of `is_blocked`.
    flags("noticed_blocked"),
)

# What an organization is taxed with since when, by the day of supply; of two of a day the later row counts.
tax_rate = table(
    "tax_rate",
    identity(),
    refers("organization_id", "organization"),
    days("effective_from"),
    Column("rate", Numeric(7, 6), nullable=False),
    texts("category?", "reason?"),
    moments("created_at"),
)
