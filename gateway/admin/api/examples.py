"""Examples: of what is sent to the Admin API, written by hand; of what it answers, made from its schema.

An example of a body is one that works for rows that are there; a test checks each against its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]  # JSON as OpenAPI has it: any shape

# Bodies by their model. One that is new is added here: a test asks for it.
BODIES: Mapping[str, Json] = {
    "ConfigurationApply": {"objects": {"token-plans": [{"name": "Team", "total_amount": 5_000_000}]}},
    "ReconciliationRun": {"repair": False, "whole": False},
    "LettersDecide": {"what": "dead_letters", "reason": "an older keeper could not read them", "limit": 100},
    "OrganizationCreate": {"name": "Acme", "currency": "EUR", "spend_cap": "500.00", "tax_rate": "0.20"},
    "OrganizationPatch": {"spend_cap": "750.00", "limits": {"requests_per_minute": 600}},
    "TenantCreate": {"name": "Acme production", "organization_id": 1, "plan_id": 1},
    "TenantPatch": {"limits": {"requests_per_minute": 600, "concurrency": 20}},
    "Recharge": {"amount": 1_000_000},
    "Adjust": {"amount": 25_000, "direction": "IN", "reason": "goodwill after an outage"},
    "UserCreate": {"external_id": "ada@example.com", "organization_id": 1, "name": "Ada Lovelace"},
    "UserPatch": {"name": "Ada King"},
    "ApiKeyCreate": {"tenant_id": 1, "name": "ci", "models": ["gpt-4o*"]},
    "ApiKeyPatch": {"models": ["gpt-4o*", "claude-sonnet-4-5"]},
    "Rotate": {"overlap_s": 86_400},
    "AdminTokenCreate": {"name": "finance export", "role": "readonly"},
    "AdminTokenPatch": {"name": "finance export, monthly"},
    "TokenPlanCreate": {
        "name": "Team",
        "total_amount": 5_000_000,
        "reset_interval": "monthly",
        "weights": {"cache_read": "0.1"},
    },
    "TokenPlanPatch": {"total_amount": 8_000_000},
    "TenantQuotaPatch": {"plan_id": 1},
    "BusinessModelCreate": {"name": "Metered", "meter": "pay_per_use"},
    "BusinessModelPatch": {"description": "Billed at the end of a month."},
    "ServiceCreate": {
        "name": "Text messages",
        "key": "sms",
        "credits": 2,
        "service_type": "Pay-As-You-Go",
        "business_model_id": 1,
        "paths": ["/v1/sms/*"],
    },
    "ServicePatch": {"credits": 3},
    "OrganizationServiceCreate": {"organization_id": 1, "service_id": 1, "negotiated_credits": 1},
    "OrganizationServicePatch": {"negotiated_credits": 2},
    "SubscriptionPlanCreate": {
        "name": "Pro",
        "monthly_cost": "49.00",
        "annual_cost": "490.00",
        "feature_access": ["chat", "embeddings"],
        "token_plan_id": 1,
    },
    "SubscriptionPlanPatch": {"monthly_cost": "59.00"},
    "PriceCreate": {
        "model": "gpt-4o",
        "currency": "USD",
        "effective_from": "2026-01-01T00:00:00Z",
        "input": "2.50",
        "output": "10.00",
        "cache_read": "1.25",
    },
    "BudgetCreate": {
        "organization_id": 1,
        "name": "experiments",
        "unit": "money",
        "amount": "200.00",
        "interval": "month",
        "thresholds": [0.5, 0.8, 1.0],
    },
    "BudgetPatch": {"amount": "300.00"},
    "Raise": {"amount": "400.00", "until": "2999-01-01T00:00:00Z", "reason": "launch week"},
    "CreditAdditionCreate": {"organization_id": 1, "credits_added": 10_000, "unit_cost": "0.01"},
    "OrganizationSubscriptionCreate": {"organization_id": 1, "plan_id": 1, "start_date": "2026-01-01"},
    "OrganizationSubscriptionPatch": {"end_date": None},
    "ChangePlan": {"plan_id": 2, "when": "period_end"},
    "NewTerms": {"from": "2026-07-01", "discount": "0.10", "quantity": 25},
    "Reprice": {"from": "2999-01-01", "monthly_cost": "33.00"},
    "Cancel": {"when": "period_end"},
    "InvoiceCreate": {"organization_id": 1, "period_start": "2026-01-01", "period_end": "2026-02-01"},
    "CreditNote": {"lines": [{"position": 1, "amount": "5.00"}]},
    "PaymentMade": {"amount": "59.00", "reference": "transfer 2026-02-11"},
    "CreditApplied": {"invoice_id": 2, "amount": "20.00"},
    "Refund": {"amount": "12.50", "reference": "transfer 2026-03-04"},
    "GivenUp": {"reason": "insolvent"},
    "PaymentReversed": {"reference": "chargeback 2026-03-02"},
    "TaxRateCreate": {"organization_id": 1, "rate": "0.19", "effective_from": "2026-01-01"},
    "CloudEvent": {
        "specversion": "1.0",
        "id": "0001",
        "source": "transcription",
        "type": "use",
        "subject": "tenant:1",
        "data": {"service": "sms", "units": 3},
    },
    "AmendmentCreate": {
        "request_id": "0b7f7a1e-6a52-4c8b-9c39-0d3f0a0d7f11",
        "reason": "answered twice",
        "tokens": 1200,
    },
    "WebhookCreate": {"url": "https://hooks.example.com/tollkeeper", "events": ["budget.exceeded"]},
    "WebhookPatch": {"enabled": False},
    "QuarantineRelease": {"reason": "compared by hand"},
    "DeadLetterRedrive": {"reason": "the keeper was too old"},
    "DeadLetterResolve": {"reason": "booked by hand"},
}

# What answers say in fields of a name; all others follow from their kind.
_VALUES: Mapping[str, object] = {
    "name": "Acme",
    "id": 1,
    "prefix": "tk_4fJ2a",
    "currency": "USD",
    "status": "active",
    "reason": "compared by hand",
    "model": "gpt-4o",
    "service": "chat",
    "user": "ada@example.com",
    "next_cursor": None,
    "url": "https://hooks.example.com/tollkeeper",
}
_KINDS: Mapping[str, object] = {"integer": 1, "number": 0.5, "boolean": True, "null": None, "object": {}}
_FORMATS: Mapping[str, object] = {
    "date-time": "2026-01-31T00:00:00Z",
    "date": "2026-01-31",
    "uuid": "0b7f7a1e-6a52-4c8b-9c39-0d3f0a0d7f11",
    "binary": "…",
}


def illustrate(paths: Mapping[str, Json], schemas: Mapping[str, Json]) -> None:
    """Give each operation an example of what it is sent and of what it answers."""
    for methods in paths.values():
        for method, operation in methods.items():
            if method == "parameters":
                continue
            for sent in operation.get("requestBody", {}).get("content", {}).values():
                _show_body(sent)
            for status in operation["responses"].values():
                content = status.get("content", {}).get("application/json")
                if content is not None:
                    content["example"] = answered(content["schema"], schemas)


def _show_body(sent: Json) -> None:
    """The example of a body, or a list of one where many may be sent."""
    schema = sent["schema"]
    reference = schema.get("$ref") or schema["items"]["$ref"]
    body = BODIES[reference.rpartition("/")[2]]
    sent["example"] = body if "$ref" in schema else [body]


def answered(schema: Json, schemas: Mapping[str, Json], name: str = "", said: object = None) -> object:
    """What an answer of a schema may look like; `name` is the field it stands in, `said` what it was sent."""
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return answered(schemas[title], schemas, name, _sent(title, schemas) or said)
    if "allOf" in schema:
        return _merged([answered(each, schemas, name) for each in schema["allOf"]])
    if "properties" in schema:
        known = said if isinstance(said, Mapping) else {}
        return {
            field: answered(each, schemas, field, known.get(field))
            for field, each in schema["properties"].items()
        }
    if said is not None:
        return said
    if "anyOf" in schema:
        return answered(schema["anyOf"][0], schemas, name)
    return _plain(schema, schemas, name)


def _sent(title: str, schemas: Mapping[str, Json]) -> Json:
    """What the row of an answer was made with: its example, and what is so by itself."""
    made = schemas.get(f"{title}Create", {})
    usual = {name: each.get("default") for name, each in made.get("properties", {}).items()}
    return usual | BODIES.get(f"{title}Create", {})


def _plain(schema: Json, schemas: Mapping[str, Json], name: str) -> object:
    for word in ("enum", "examples"):
        if schema.get(word):
            return schema[word][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "array":
        return [answered(schema.get("items", {}), schemas, name.removesuffix("s"))]
    if kind == "string" and "format" in schema:
        return _FORMATS[schema["format"]]
    if kind == "string" or isinstance(kind, list):
        return _VALUES.get(name, None if isinstance(kind, list) else "…")
    return schema.get("minimum", _KINDS.get(str(kind), {}))


def _merged(parts: list[Any]) -> Json:
    merged: Json = {}
    for part in parts:
        merged |= part
    return merged
