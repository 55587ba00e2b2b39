"""Usage as charges of the FinOps Open Cost and Usage Specification (FOCUS), versions 1.4 and 1.2. Pure.

A row is a day of one organization, tenant, key, user, project, service, model and tags. Its cost is that of
the price book, without the markup of usage at cost. Discounts are on invoices alone, so all four costs are
the same. Columns that do not apply (capacity, zones, currencies to convert) are left out, as the specification
requires. A charge names no invoice, because invoices also bill plans and services. Source:
https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

Charge = dict[str, object]

# The groups and the interval whose rows become charges.
FOCUS_GROUPED_BY: Final = ("organization", "tenant", "user", "api_key", "project", "service", "model")
FOCUS_INTERVAL: Final = "day"
FOCUS_COLUMNS: Final = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountStatus", "ConsumedQuantity", "ConsumedUnit",
    "ContractedCost", "EffectiveCost", "HostProviderName", "InvoiceId", "InvoiceIssuerName", "ListCost",
    "PricingCategory", "PricingQuantity", "PricingUnit", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceProviderName",
    "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId",
    "SubAccountName", "Tags",
)  # fmt: skip
# Version 1.2 has other columns for the provider and the publisher of a service.
_BEFORE: Final = {"ServiceProviderName": "ProviderName", "HostProviderName": "PublisherName"}
VERSIONS: Final = {
    "1.4": FOCUS_COLUMNS,
    "1.2": tuple(sorted(_BEFORE.get(name, name) for name in FOCUS_COLUMNS)),
}
FOCUS_QUANTITIES: Final = frozenset({
    "BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "ConsumedQuantity", "PricingQuantity",
})  # fmt: skip
FOCUS_TIMES: Final = frozenset(name for name in FOCUS_COLUMNS if name.endswith(("PeriodStart", "PeriodEnd")))
PROVIDER: Final = "Tollkeeper"
_KINDS: Final = ("input", "cache_read", "cache_write", "output")
_MODELS: Final = ("AI and Machine Learning", "Generative AI")
_OTHERS: Final = ("Other", "Other (Other)")
_FOCUS_DAY = timedelta(days=1)


def focus_charge(row: Mapping[str, object], *, since: datetime, until: datetime, seller: str) -> Charge:
    """Return a row of usage as a FOCUS charge: of a model, if it names one or has tokens of one.

    `seller` is the sender of invoices. The charge's time is limited to `since` and `until`.
    """
    start, cost = row["start"], row["cost"]
    assert isinstance(start, datetime)
    assert isinstance(cost, Decimal)
    month = start.replace(day=1)
    # A service has one category: use from outside may name no model of the service that its calls name.
    tokens = row["model"] is not None or any(row[kind] for kind in _KINDS)
    category, subcategory = _MODELS if tokens else _OTHERS
    quantity, unit = (row["tokens"], "Tokens") if tokens else (row["requests"], "Requests")
    service = row["service"] or f"service {row['service_id'] or 'none'}"
    sku = f"{service}/{row['model']}" if row["model"] else str(service)
    # Always with a decimal point, because readers guess the type of a column from its cells.
    spent, many = _exact(cost), f"{quantity}.0"
    of_key = bool(row["api_key_id"])
    return {
        **dict.fromkeys(FOCUS_COLUMNS),
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), spent),
        **dict.fromkeys(("InvoiceIssuerName", *_BEFORE, *_BEFORE.values()), seller or PROVIDER),
        "BillingAccountId": f"organization/{row['organization_id']}",
        "BillingAccountName": row["organization"],
        "BillingCurrency": row["currency"],
        "BillingPeriodStart": _instant(month),
        "BillingPeriodEnd": _instant((month + 31 * _FOCUS_DAY).replace(day=1)),
        "ChargeCategory": "Usage",
        "ChargeDescription": _description(row, sku),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _instant(max(start, since)),
        "ChargePeriodEnd": _instant(min(start + _FOCUS_DAY, until)),
        "ConsumedQuantity": many,
        "ConsumedUnit": unit,
        "PricingCategory": "Standard",
        "PricingQuantity": many,
        "PricingUnit": unit,
        "ResourceId": f"api-key/{row['api_key_id']}" if of_key else f"service/{row['service_id'] or 0}",
        "ResourceName": (row["api_key"] or f"key {row['api_key_id']}") if of_key else service,
        "ResourceType": "API key" if of_key else "Service",
        "ServiceCategory": category,
        "ServiceName": service,
        "ServiceSubcategory": subcategory,
        "SkuId": sku,
        "SkuMeter": unit,
        "SkuPriceId": sku,
        "SubAccountId": f"tenant/{row['tenant_id']}",
        "SubAccountName": row["tenant"] or f"tenant {row['tenant_id']}",
        "Tags": _tags(row),
    }


def with_types(charge: Charge) -> Charge:
    """Return a charge with numbers and times instead of texts."""
    numbers = {name: Decimal(str(charge[name])) for name in FOCUS_QUANTITIES}
    return charge | numbers | {name: datetime.fromisoformat(str(charge[name])) for name in FOCUS_TIMES}


def _description(row: Mapping[str, object], sku: str) -> str:
    kinds = ", ".join(f"{row[kind]} {kind.replace('_', ' ')}" for kind in _KINDS if row[kind])
    return f"{row['requests']} requests of {sku}" + (f": tokens {kinds}" if kinds else "")


def _tags(row: Mapping[str, object]) -> str:
    """Return the dimensions of a charge besides accounts and resources, and its calls' tags, as JSON."""
    project = row["project"] or row["project_id"]
    tags = {"user": row["user"], "project": None if project is None else str(project), "model": row["model"]}
    of_calls = row["tags"]
    assert isinstance(of_calls, dict)
    known = {name: value for name, value in tags.items() if value is not None}
    return json.dumps({**of_calls, **known}, ensure_ascii=False)


def _exact(amount: Decimal) -> str:
    """Return every digit of an amount, without an exponent, and with a decimal point."""
    whole, _, rest = f"{amount:f}".partition(".")
    return f"{whole}.{rest.rstrip('0') or 0}"


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
