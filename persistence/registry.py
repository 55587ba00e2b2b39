"""All kinds of row of the Admin API, by the name of the resource."""

from __future__ import annotations

from dataclasses import replace

from gateway.feature import features
from persistence.billing import (
    accounting_rates,
    amendments,
    charges,
    events,
    invoice_heads,
    invoices,
    payments,
    plans,
    quotas,
    reratings,
    subscriptions,
    tax_rates,
)
from persistence.entity import Entity
from persistence.resources import (
    admin_tokens,
    api_keys,
    app_users,
    audit,
    budgets,
    catalogue,
    credit_additions,
    groups,
    integrity,
    journal,
    people,
    prices,
    sessions,
    subscription_plans,
    webhooks,
)

SUBJECTS: dict[str, Entity] = {
    "organizations": people.ORGANIZATION_SUBJECT,
    "tenants": people.TENANT_SUBJECT,
    "users": app_users.SUBJECT,
    "api-keys": api_keys.KEY_SUBJECT,
    "admin-tokens": admin_tokens.ADMIN_TOKEN_SUBJECT,
    "token-plans": plans.SUBJECT,
    "tenant-quotas": quotas.SUBJECT,
    "token-ledger": journal.TOKEN_LEDGER,
    "calls": journal.CALLS,
    "business-models": catalogue.BUSINESS_MODELS,
    "services": catalogue.SERVICES,
    "models": catalogue.MODELS,
    "organization-services": catalogue.ORGANIZATION_SERVICES,
    "subscription-plans": subscription_plans.SUBSCRIPTION_PLANS,
    "organization-subscriptions": subscriptions.SUBJECT,
    "credit-additions": credit_additions.ADDITION_SUBJECT,
    "prices": reratings.PRICES,
    "exchange-rates": prices.RATE_SUBJECT,
    "reratings": reratings.SUBJECT,
    "budgets": budgets.BUDGET_SUBJECT,
    "groups": groups.SUBJECT,
    "budget-accounts": budgets.BUDGET_ACCOUNTS,
    "budget-overrides": budgets.BUDGET_OVERRIDES,
    "charges": charges.CHARGE_SUBJECT,
    "events": events.SUBJECT,
    "amendments": amendments.SUBJECT,
    "invoices": invoices.SUBJECT,
    "invoice-heads": invoice_heads.INVOICE_HEADS,
    "payments": payments.SUBJECT,
    "note-applications": payments.APPLICATIONS,
    "tax-rates": tax_rates.TAX_RATE_SUBJECT,
    "accounting-rates": accounting_rates.SUBJECT,
    "webhooks": webhooks.WEBHOOKS,
    "webhook-deliveries": webhooks.WEBHOOK_DELIVERIES,
    "quarantine": integrity.QUARANTINE_SUBJECT,
    "dead-letters": integrity.DEAD_LETTER_SUBJECT,
    "letters": integrity.MANY_DEAD_LETTERS,
    "counters": integrity.COUNTERS_SUBJECT,
    "credit-transactions": journal.CREDIT_TRANSACTIONS,
    "feature-usage": journal.FEATURE_USAGE,
    "audit-log": audit.AUDIT_SUBJECT,
    "console-sessions": sessions.SESSION_SUBJECT,
    "reconciliation": integrity.RECONCILIATION_SUBJECT,
    **{name: subject for feature in features() for name, subject in feature.subjects().items()},
}
for _name, _verbs in ((name, more) for feature in features() for name, more in feature.verbs().items()):
    SUBJECTS[_name] = replace(SUBJECTS[_name], verbs={**SUBJECTS[_name].verbs, **_verbs})
