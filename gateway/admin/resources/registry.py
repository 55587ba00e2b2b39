"""All resources and reports of the Admin API by name; those of features follow the core's."""

from dataclasses import replace

from gateway.admin.resources import (
    amendments,
    billing,
    budgets,
    catalogue,
    charges,
    events,
    groups,
    integrity,
    invoices,
    journal,
    people,
    quota,
    reports,
    tax_rates,
)
from gateway.admin.resources.resource import DocumentEndpoint, ReportEndpoint, Resource
from gateway.feature import features

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        *people.RESOURCES, *people.ACCESS_RESOURCES, *quota.RESOURCES, *catalogue.RESOURCES,
        *catalogue.PRICE_RESOURCES, *groups.RESOURCES, *budgets.BUDGET_RESOURCES, *billing.RESOURCES,
        *invoices.RESOURCES, *tax_rates.TAX_RATE_RESOURCES, *charges.CHARGE_RESOURCES,
        *events.RESOURCES, *amendments.AMENDMENT_RESOURCES, *journal.USE_RESOURCES, *journal.CALL_RESOURCES,
        *events.WEBHOOK_RESOURCES, *integrity.RESOURCES, *people.AUDIT_RESOURCES,
        *(resource for feature in features() for resource in feature.resources()),
    )
}  # fmt: skip
for _name, _actions in ((name, more) for feature in features() for name, more in feature.actions().items()):
    _resource = RESOURCES[_name]
    _access = replace(_resource.access, ours=_resource.access.ours | {action.name for action in _actions})
    RESOURCES[_name] = replace(_resource, actions=(*_resource.actions, *_actions), access=_access)
REPORTS: dict[str, ReportEndpoint] = {**reports.REPORTS}
for _name, _more in ((name, more) for feature in features() for name, more in feature.documents.items()):
    _documents = tuple(DocumentEndpoint(*row) for row in _more)
    if _name in REPORTS:
        _report = REPORTS[_name]
        REPORTS[_name] = replace(_report, documents=(*_report.documents, *_documents))
    else:
        _resource = RESOURCES[_name]
        RESOURCES[_name] = replace(_resource, documents=(*_documents, *_resource.documents))
