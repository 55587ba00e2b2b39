"""Every kind of row the Admin API has, by the name of its resource."""

from __future__ import annotations

from collections.abc import Mapping

from persistence import together
from persistence.billing import (
    amendments,
    charging,
    dunning,
    events,
    handed_over,
    invoice_source,
    invoices,
    payments,
    plans,
    quotas,
    reratings,
    subscriptions,
    tax_rates,
    usage_feed,
)
from persistence.resources import (
    additions,
    admin_tokens,
    app_users,
    audit,
    budgets,
    console_sessions,
    dead_letters,
    keys,
    ledgers,
    offers,
    organizations,
    quarantine,
    reconciliation_results,
    services,
    tenants,
    webhooks,
)
from persistence.subject import Subject

SUBJECTS: dict[str, Subject] = {
    "organizations": organizations.SUBJECT,
    "tenants": tenants.SUBJECT,
    "users": app_users.SUBJECT,
    "api-keys": keys.SUBJECT,
    "admin-tokens": admin_tokens.SUBJECT,
    "token-plans": plans.SUBJECT,
    "tenant-quotas": quotas.SUBJECT,
    "token-ledger": ledgers.TOKEN_LEDGER,
    "calls": ledgers.CALLS,
    "business-models": services.BUSINESS_MODELS,
    "services": services.SERVICES,
    "organization-services": offers.ORGANIZATION_SERVICES,
    "subscription-plans": offers.SUBSCRIPTION_PLANS,
    "organization-subscriptions": subscriptions.SUBJECT,
    "credit-additions": additions.SUBJECT,
    "prices": reratings.PRICES,
    "reratings": reratings.SUBJECT,
    "budgets": budgets.SUBJECT,
    "budget-accounts": budgets.ACCOUNTS,
    "charges": charging.SUBJECT,
    "events": events.SUBJECT,
    "amendments": amendments.SUBJECT,
    "invoices": invoices.SUBJECT,
    "invoice-heads": invoice_source.HEADS,
    "payments": payments.SUBJECT,
    "tax-rates": tax_rates.SUBJECT,
    "dunning-steps": dunning.SUBJECT,
    "handovers": handed_over.SUBJECT,
    "handover-events": handed_over.EVENTS,
    "usage-feeds": usage_feed.FEEDS,
    "usage-events": usage_feed.EVENTS,
    "webhooks": webhooks.WEBHOOKS,
    "webhook-deliveries": webhooks.WEBHOOK_DELIVERIES,
    "quarantine": quarantine.SUBJECT,
    "dead-letters": dead_letters.SUBJECT,
    "letters": dead_letters.MANY,
    "credit-transactions": ledgers.CREDIT_TRANSACTIONS,
    "feature-usage": ledgers.FEATURE_USAGE,
    "audit-log": audit.SUBJECT,
    "console-sessions": console_sessions.SUBJECT,
    "reconciliation": reconciliation_results.SUBJECT,
}

# Kinds of which many rows are made at once, where configuration says many.
TOGETHER: Mapping[str, together.Makes] = {
    "organizations": together.create,
    "organization-services": offers.negotiate_all,
    "users": app_users.create_all,
    "tenants": tenants.create_all,
    "api-keys": keys.create_all,
    "prices": reratings.create_all,
    "budgets": budgets.create_all,
}
