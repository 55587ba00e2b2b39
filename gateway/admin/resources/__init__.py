"""Every resource of the Admin API, and every report, by name."""

from gateway.admin.resources import billing, catalogue, events, integrity, invoices, people, quota
from gateway.admin.resources.reports import REPORTS
from gateway.admin.resources.resource import Action, Part, Report, Resource, Secret

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        *people.RESOURCES, *people.ACCESS_RESOURCES, *quota.RESOURCES, *catalogue.RESOURCES,
        *catalogue.PRICE_RESOURCES, *quota.BUDGET_RESOURCES, *billing.RESOURCES, *invoices.RESOURCES,
        *billing.TAX_RATE_RESOURCES, *billing.HANDOVER_RESOURCES, *events.USAGE_FEED_RESOURCES,
        *billing.CHARGE_RESOURCES, *events.RESOURCES, *billing.AMENDMENT_RESOURCES, *quota.USE_RESOURCES,
        *quota.CALL_RESOURCES, *events.WEBHOOK_RESOURCES, *integrity.RESOURCES, *people.AUDIT_RESOURCES,
    )
}  # fmt: skip

__all__ = ["REPORTS", "RESOURCES", "Action", "Part", "Report", "Resource", "Secret"]
