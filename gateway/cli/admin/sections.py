"""What people type for each resource of the Admin API, where it is not simply the resource's own word.

Everything else of a command is made of the resource itself (`commands.py`): its fields, filters and actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# A section is its resource in the singular, but for these.
SECTIONS: Mapping[str, str] = {
    "organizations": "org",
    "api-keys": "key",
    "token-plans": "plan",
    "tenant-quotas": "quota",
    "token-ledger": "ledger",
    "organization-services": "negotiated-price",
    "organization-subscriptions": "subscription",
    "credit-additions": "credits",
    "dead-letters": "deadletter",
    "webhook-deliveries": "webhook-delivery",
    "programs": "programs",
}
# The field a row is named by, besides its id, where it is not that of the resource.
NAMED_BY: Mapping[str, str] = {"services": "key", "organization-subscriptions": "organization_id"}
# Rows whose id is another resource's.
ID_OF: Mapping[str, str] = {"tenant-quotas": "tenants"}
# Shorter words for options; the field's own name is taken as well.
SHORT: Mapping[str, str] = {
    "organization": "org",
    "requests-per-minute": "rpm",
    "tokens-per-minute": "tpm",
    "total-amount": "total",
    "reset-interval": "reset",
    "overage-policy": "overage",
    "business-model": "model",
    "models": "model",
    "service-type": "type",
    "monthly-cost": "monthly",
    "annual-cost": "annual",
    "feature-access": "feature",
    "start-date": "start",
    "end-date": "end",
    "effective-from": "from",
    "billing-interval": "interval",
    "changes": "change",
    "lines": "line",
}
# What `create` takes without the option's name, where it is not each field that must be given.
POSITIONAL: Mapping[str, tuple[str, ...]] = {"api-keys": ("tenant_id", "name"), "services": ("key",)}
# Lists that show what is open; `--all` shows the rest as well.
OPEN: Mapping[str, str] = {"dead-letters": "resolved", "quarantine": "released"}
# What is shown with a row: another resource under the same id.
BESIDE: Mapping[str, tuple[str, str]] = {"tenants": ("quota", "tenant-quotas")}
# What a table shows, where the console shows no list of it.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tenants": ("id", "name", "organization_id", "plan_id", "limits", "user_limits"),
    "api-keys": (
        "id", "tenant_id", "name", "prefix", "user", "user_header", "models", "expires_at", "revoked_at",
    ),
    "tenant-quotas": (
        "tenant_id", "plan_id", "tokens_used", "tokens_remaining", "tokens_held", "is_blocked",
        "next_reset_at",
    ),
    "budgets": (
        "id", "name", "organization_id", "unit", "amount", "used", "remaining", "interval", "each", "mode",
        "resets_at",
    ),
    "token-ledger": (
        "seq", "created_at", "transaction_type", "direction", "amount", "total_remaining", "request_id",
    ),
    "credit-transactions": (
        "seq", "timestamp", "feature_id", "credits_used", "balance_after", "user_id", "request_id",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alias:
    """A second place of a command: `section verb`, with filters or fields that need no option's name."""

    section: str
    verb: str
    resource: str
    does: str
    summary: str
    positional: tuple[str, ...] = ()


ALIASES = (
    Alias("credits", "add", "credit-additions", "create", "Give credits; below 0 takes back."),
    Alias("credits", "uses", "credit-transactions", "list", "List what credits were used for.",
          ("organization_id",)),
    Alias("tenant", "ledger", "token-ledger", "list", "List the movements of a tenant's tokens.",
          ("tenant_id",)),
    Alias("tenant", "plan", "tenant-quotas", "change", "Move a tenant to another token plan, now."),
)  # fmt: skip


def section_of(resource: str) -> str:
    """The word people type for a resource."""
    return SECTIONS.get(resource) or resource.removesuffix("s")


def named_by(resource: str) -> str:
    """The field a row is named by, besides its id."""
    from gateway.admin.resources import RESOURCES  # noqa: PLC0415  # heavy, and backups need none

    return NAMED_BY.get(resource) or RESOURCES[resource].named_by


def defaults(resource: str, given: dict[str, Any]) -> dict[str, Any]:
    """What `create` takes for given where nothing is said."""
    if resource == "prices":
        return {"effective_from": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    if resource != "services":
        return {}
    key = {"name": given["key"]} if "key" in given else {}
    return {**key, "credits": "0", "service_type": "Pay-As-You-Go"}
