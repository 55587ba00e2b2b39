"""Every resource of the Admin API, and every report, by name."""

from gateway.admin.resources import (
    access,
    amendments,
    audit,
    billing,
    budgets,
    calls,
    catalogue,
    charges,
    events,
    handovers,
    integrity,
    invoices,
    people,
    prices,
    quota,
    tax_rates,
    usage_feeds,
    uses,
    webhooks,
)
from gateway.admin.resources.reports import REPORTS
from gateway.admin.resources.resource import Action, Part, Report, Resource, Secret

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for part in (
        people, access, quota, catalogue, prices, budgets, billing, invoices, tax_rates, handovers,
        usage_feeds, charges, events, amendments, uses, calls, webhooks, integrity, audit,
    )
    for resource in part.RESOURCES
}  # fmt: skip

__all__ = ["REPORTS", "RESOURCES", "Action", "Part", "Report", "Resource", "Secret"]
