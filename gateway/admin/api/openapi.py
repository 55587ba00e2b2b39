"""The OpenAPI 3.1 document, generated from the table of resources that also defines the routes.

`/admin/docs` shows the same document as one plain HTML page, which loads nothing else.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from gateway.admin.http.bodies import KEY_PARAMETER
from gateway.admin.http.requests import FILTER_CHARS_MAX, LIMIT_DEFAULT, LIMIT_MAX
from gateway.admin.resources.resource import (
    BatchEndpoint,
    Cursor,
    DocumentEndpoint,
    Endpoint,
    Filter,
    Question,
    ReportEndpoint,
    Resource,
    SubResource,
)
from gateway.admin.resources.values import Out
from gateway.core.accounts.administration import ROLES
from gateway.core.accounts.tags import GROUP, TAG
from gateway.core.alerts.events.event import Event
from gateway.core.alerts.events.registry import all_events

_TEMPLATES = Environment(
    loader=PackageLoader("gateway.admin.api"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
STYLE = Path(__file__).with_name("templates").joinpath("docs.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


# Query parameters of the OpenAPI document.
def whole(least: int, most: int) -> Json:
    return {"type": "integer", "minimum": least, "maximum": most}


_SCHEMAS: Mapping[str, Json] = {
    "text": {"type": "string", "minLength": 1, "maxLength": FILTER_CHARS_MAX},
    "uuid": {"type": "string", "format": "uuid"},
    "flag": {"type": "boolean"},
}


def parameter(name: str, schema: Json, description: str = "") -> Json:
    made: Json = {"name": name, "in": "query", "schema": schema}
    if schema.get("type") == "object":
        made |= {"style": "deepObject", "explode": True}
    return {**made, "description": description} if description else made


def filter_schema(wanted: Filter) -> Json:
    if wanted.kind in {"id", "count"}:
        return whole(int(wanted.kind == "id"), wanted.most)
    if not wanted.choices:
        return _SCHEMAS[wanted.kind]
    choices: Json = {"type": "string", "enum": list(wanted.choices)}
    if not wanted.or_tag:
        return choices
    return {"anyOf": [choices, {"type": "string", "pattern": f"^{GROUP.pattern}$"}]}


def query_parameters(model: type[BaseModel]) -> list[Json]:
    """Return the OpenAPI parameters of a query model; none is nullable, as absent ones are left out."""
    asked = model.model_json_schema()
    return [
        parameter(name, _without_null(schema), schema.get("description"))
        | {"required": name in asked.get("required", ())}
        for name, schema in asked["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """Return the schema of a field that may be null as that of its value; others unchanged."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) != 1:
        return schema
    plain: Json = {name: value for name, value in schema.items() if name not in {"anyOf", "default"}}
    plain.update(choices[0])
    return plain


OF_TAG = parameter(
    f"{TAG}NAME", {"type": "string"}, "With this value of the tag NAME; empty finds calls without it."
)
PAGING = (
    parameter("limit", {**whole(1, LIMIT_MAX), "default": LIMIT_DEFAULT}),
    parameter(
        "cursor",
        TypeAdapter(Cursor).json_schema(),
        "`next_cursor` of the page before, with the same filters.",
    ),
    parameter("order", {"type": "string", "enum": ["asc", "desc"], "default": "asc"}),
)


# Examples: hand-written requests to the Admin API, and answers generated from its schema.
#
# An example body must work for existing rows; a test validates each one by its model.

# Example bodies by model. A test fails for a model without one.
BODIES: Mapping[str, Json] = {
    "ConfigurationApply": {"objects": {"token-plans": [{"name": "Team", "total_amount": 5_000_000}]}},
    "CountersRebuild": {"organization_id": 1},
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
    "ApiKeyPatch": {"models": ["gpt-4o*"], "runs": {"max": "5.00", "required": True}},
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
    "ModelCreate": {
        "name": "gpt-4o",
        "targets": [{"upstream": "azure", "model": "prod-4o"}, {"upstream": "openai"}],
        "fallback": ["unreachable", "5xx", "credit"],
    },
    "ModelPatch": {"targets": [{"upstream": "openai"}]},
    "SharePatch": {"weight": 2, "priority": "batch"},
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
    "PriceAmend": {"reason": "typed 100 for 1", "input": "1"},
    "PriceCreate": {
        "model": "gpt-4o",
        "currency": "USD",
        "effective_from": "2026-01-01T00:00:00Z",
        "input": "2.50",
        "output": "10.00",
        "cache_read": "1.25",
    },
    "ExchangeRateCreate": {
        "currency": "EUR",
        "base": "USD",
        "rate": "0.92",
        "effective_from": "2026-01-01T00:00:00Z",
    },
    "AccountingRateCreate": {
        "currency": "EUR",
        "accounting_currency": "PLN",
        "rate": "4.2567",
        "published_on": "2026-04-30",
        "source": "NBP 83/A/NBP/2026",
        "effective_from": "2026-05-01",
        "effective_to": "2026-05-04",
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
    "BudgetReplayQuery": {
        "organization_id": 1,
        "budgets": [{"name": "a day", "unit": "money", "amount": "20.00", "interval": "day", "each": "user"}],
    },
    "Override": {"amount": "50.00", "until": "2999-01-01T00:00:00Z", "reason": "a large migration"},
    "GroupCreate": {"organization_id": 1, "name": "Platform", "kind": "user", "members": ["ada@example.com"]},
    "GroupPatch": {"claim": "platform-team"},
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
    "WriteOff": {"reason": "insolvent"},
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

# Example values of answers by field; other fields get a value of their type.
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
    """Add examples of the request and the answers to each operation."""
    for methods in paths.values():
        for method, operation in methods.items():
            if method == "parameters":
                continue
            for sent in operation.get("requestBody", {}).get("content", {}).values():
                # The example of a body, or a list of one if many may be sent.
                schema = sent["schema"]
                reference = schema.get("$ref") or schema["items"]["$ref"]
                body = body_of(reference.rpartition("/")[2], schemas)
                sent["example"] = body if "$ref" in schema else [body]
            for status in operation["responses"].values():
                content = status.get("content", {}).get("application/json")
                if content is not None:
                    content["example"] = example_answer(content["schema"], schemas)


def body_of(title: str, schemas: Mapping[str, Json]) -> Json:
    """Return the example body of a model: from `BODIES`, else the model's own."""
    return BODIES[title] if title in BODIES else schemas[title]["example"]


def example_answer(schema: Json, schemas: Mapping[str, Json], name: str = "", said: object = None) -> object:
    """Return an example answer of a schema.

    `name` is the field that contains it; `said` is the value that the example request has for this field.
    """
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return example_answer(schemas[title], schemas, name, _example_request(title, schemas) or said)
    if "allOf" in schema:
        return _merge_parts([example_answer(part, schemas, name) for part in schema["allOf"]])
    if "properties" in schema:
        known = said if isinstance(said, Mapping) else {}
        return {
            field: example_answer(part, schemas, field, known.get(field))
            for field, part in schema["properties"].items()
        }
    if said is not None:
        return said
    if "anyOf" in schema:
        return example_answer(schema["anyOf"][0], schemas, name)
    return _plain(schema, schemas, name)


def _example_request(title: str, schemas: Mapping[str, Json]) -> Json:
    """Return the example request that creates a schema's row, with the defaults of other fields."""
    made = schemas.get(f"{title}Create", {})
    usual = {name: field.get("default") for name, field in made.get("properties", {}).items()}
    return usual | (body_of(f"{title}Create", schemas) if made else {})


def _plain(schema: Json, schemas: Mapping[str, Json], name: str) -> object:
    """Return an example of a value that is no object: of its choices, its format, its name or its type."""
    for word in ("enum", "examples"):
        if schema.get(word):
            return schema[word][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "array":
        return [example_answer(schema.get("items", {}), schemas, name.removesuffix("s"))]
    if kind == "string" and "format" in schema:
        return _FORMATS[schema["format"]]
    if kind == "string" or isinstance(kind, list):
        return _VALUES.get(name, None if isinstance(kind, list) else "…")
    return schema.get("minimum", _KINDS.get(str(kind), {}))


def _merge_parts(parts: list[Any]) -> Json:
    merged: Json = {}
    for part in parts:
        merged |= part
    return merged


Json = dict[str, Any]  # JSON as OpenAPI has it: any shape

_REF = "#/components/schemas/"
# A link of the docs, whose text is in the first group.
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")

PROBLEM: Json = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}

REFUSALS = {
    "400": "The body is not one unambiguous JSON object. In plain text: the head of the request is too long.",
    "401": "No valid admin token.",
    "403": "The role of this token may not do this; the message says which may.",
    "404": "There is no such row.",
    "409": "Contradicts what is stored, or the Idempotency-Key was used for something else.",
    "413": "The body is too large.",
    "415": "The body has a Content-Encoding.",
    "422": "Some fields are wrong; `errors` names them.",
    "429": "The organization has enough under way, or has used up its hour; `Retry-After` says when.",
    "501": "This needs an extra that is not installed; the message says how to install it.",
    "503": "PostgreSQL does not answer.",
}
READ_REFUSALS = ("400", "401", "403", "404", "422", "429", "503")
# A document may not exist yet, or be impossible for the row's state.
DOCUMENT_REFUSALS = (*READ_REFUSALS[:-1], "409", "501", "503")


def document(
    resources: Mapping[str, Resource], reports: Mapping[str, ReportEndpoint], *, version: str
) -> Json:
    """Return the OpenAPI document of every resource and every report as JSON."""
    paths: Json = {}
    for report in reports.values():
        paths |= _report_paths(report)
    for resource in resources.values():
        paths |= _paths(resource, resources)
    schemas = _schemas(resources, reports)
    illustrate(paths, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper Admin API",
            "version": version,
            "description": "Administration of organizations, tenants, credentials, plans and quotas. "
            "Amounts are integers below 2^53, money is a decimal in a string, times are RFC 3339 UTC. "
            "422 also says what no schema can: an id that nobody has, a time that is over.",
        },
        "servers": [{"url": "/", "description": "The admin port of the keeper that answered this."}],
        "security": [{"token": []}],
        "tags": [
            {"name": described.name, "description": described.description}
            for described in (*resources.values(), *reports.values())
        ],
        "paths": paths,
        "webhooks": {event.name: _message(event) for event in all_events().values()},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {
                code: {
                    "description": text,
                    "content": {"application/problem+json": {"schema": {"$ref": _REF + "Problem"}}}
                    | ({"text/plain": {"schema": {"type": "string"}}} if code == "400" else {}),
                }
                for code, text in REFUSALS.items()
            },
        },
    }


def _message(event: Event) -> Json:
    """Return the OpenAPI path item of the messages about an event, which receivers get."""
    sentence = _LINK.sub(r"\1", event.when) + f". Once: {event.once}."
    body: Json = {
        "type": "object",
        "properties": {
            "type": {"const": event.name},
            "timestamp": {"type": "string", "format": "date-time"},
            "text": {"type": "string", "description": "The event in words."},
            "data": {"type": "object", "properties": event.schema(), "required": [*event.schema()]},
        },
        "required": ["type", "timestamp", "text", "data"],
    }
    return {
        "post": {
            "summary": event.name,
            "description": sentence[0].upper() + sentence[1:],
            "requestBody": {"content": {"application/json": {"schema": body}}},
            "responses": {"2XX": {"description": "The message has arrived."}},
        }
    }


def _schemas(resources: Mapping[str, Resource], reports: Mapping[str, ReportEndpoint]) -> Json:
    """Return the JSON Schemas of all bodies and answers by their names in references."""
    models: list[tuple[type[BaseModel], Any]] = []
    for report in reports.values():
        models.append((report.out, "serialization"))
        if report.ran is not None:
            models.append((report.ran, "serialization"))
        if report.run is not None and report.run.body is not None:
            models.append((report.run.body, "validation"))
    for resource in resources.values():
        models.append((resource.out, "serialization"))
        models += [(question.out, "serialization") for question in resource.questions]
        models += [(question.asked, "validation") for question in resource.questions if question.verb]
        for part in resource.parts:
            models += [] if part.out is None else [(part.out, "serialization")]
            models += [(action.body, "validation") for _, action in part.writes if action.body is not None]
        if resource.batch is not None:
            models += [(resource.batch.body, "validation"), (resource.batch.out, "serialization")]
        bodies = (resource.create, resource.patch, *(action.body for action in resource.actions))
        models += [(model, "validation") for model in bodies if model is not None]
    _, made = models_json_schema(models, ref_template=_REF + "{model}")
    schemas: Json = {"Problem": PROBLEM, **made["$defs"]}
    for resource in resources.values():
        if resource.secret is not None:
            schemas[f"{resource.title}Created"] = {
                "allOf": [
                    {"$ref": _REF + resource.title},
                    {
                        "type": "object",
                        "properties": {
                            resource.secret.field: {"type": "string", "description": "Shown once."}
                        },
                    },
                ]
            }
    return schemas


def _report_paths(report: ReportEndpoint) -> Json:
    """Return the OpenAPI path items of a report: reading it, running it, and its documents."""
    read = _operation(report, "show", report.summary, refusals=READ_REFUSALS)
    if report.numbers:
        read["parameters"] = [
            parameter(name, {**whole(number.least, number.most), "default": number.default}, number.hint)
            for name, number in report.numbers.items()
        ]
    if report.asked is not None:
        read["parameters"] = query_parameters(report.asked)
    methods = {"get": read}
    if report.run is not None:
        title = (report.ran or report.out).__name__
        run = methods["post"] = _operation(
            report, report.run.name, report.run.summary, report.run.body, title=title
        )
        needed = report.run.body.model_fields.values() if report.run.body is not None else ()
        run["requestBody"]["required"] = any(field.is_required() for field in needed)
        run["parameters"] = [KEY_PARAMETER]
    root = f"/admin/v1/{report.name}"
    return {root: methods} | {
        root + file.suffix: {"get": _document(report, file)} for file in report.documents
    }


def _paths(resource: Resource, resources: Mapping[str, Resource]) -> Json:
    """Return the OpenAPI path items of a resource, with its questions, actions, parts and documents."""
    name, root = resource.name, f"/admin/v1/{resource.name}"
    row = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
    collection: Json = {"get": _list(resource)}
    if resource.create is not None:
        collection["post"] = _create(resource)
    elif resource.batch is not None:
        collection["post"] = _take(resource, resource.batch)
    read = _operation(resource, "get", f"Read one of {name}", refusals=READ_REFUSALS)
    path: Json = {"parameters": [row], "get": read}
    if resource.patch is not None:
        path["patch"] = _operation(
            resource, resource.patch_verb, f"Change one of {name}", resource.patch, later=True
        )
    if resource.deletable:
        delete = path["delete"] = _operation(resource, "delete", f"Delete one of {name}")
        del delete["responses"]["200"]
        delete["responses"]["204"] = {"description": "Deleted."}
    paths: Json = {root: collection, root + "/{id}": path}
    for question in resource.questions:
        if question.of:
            either = {"anyOf": [filter_schema(resource.filters[question.of]), row["schema"]]}
            named = {**row, "schema": either, "description": f"Its {question.of}, or its id."}
            paths[f"{root}/{{id}}/{question.name}"] = {
                "parameters": [named],
                "get": _ask(resource, question),
            }
        else:
            method = "post" if question.verb else "get"
            paths[f"{root}/{question.name}"] = {method: _ask(resource, question)}
    for action in resource.actions:
        title = resources["tenant-quotas"].title if action.quota else resource.title
        title = f"{title}Created" if action.mints else title
        act = _operation(resource, action.name, action.summary, action.body, title=title, later=True)
        act["parameters"] = [KEY_PARAMETER]
        paths[f"{root}/{{id}}/{action.name}"] = {"parameters": [row], "post": act}
    for part in resource.parts:
        if part.out is not None:
            paths[f"{root}/{{id}}/{part.name}"] = {
                "parameters": [row],
                "get": _part(resource, part, part.out),
            }
        if part.writes:
            paths[f"{root}/{{id}}/{part.name}/{{{part.key}}}"] = _one_part(resource, part, row)
    for file in resource.documents:
        paths[f"{root}/{{id}}{file.suffix}"] = {"parameters": [row], "get": _document(resource, file)}
    return paths


def _list(resource: Resource) -> Json:
    operation = _operation(
        resource, "list", f"List {resource.name}, {resource.order}", refusals=READ_REFUSALS
    )
    operation["parameters"] = [
        *PAGING,
        parameter("from", {"type": "string", "format": "date-time"}, "Made at this time or later."),
        parameter("to", {"type": "string", "format": "date-time"}, "Made before this time."),
        *(parameter(name, filter_schema(filter_)) for name, filter_ in resource.filters.items()),
        *([OF_TAG] if resource.tagged else []),
    ]
    return _answer_page(operation, resource.title)


def _part(resource: Resource, part: SubResource, out: type[Out]) -> Json:
    summary = f"{part.summary}, {part.order}"
    operation = _operation(resource, part.name, summary, refusals=READ_REFUSALS)
    operation["parameters"] = list(PAGING)
    return _answer_page(operation, out.__name__)


def _one_part(resource: Resource, part: SubResource, row: Json) -> Json:
    """Return the OpenAPI path item to set or remove one part of a row."""
    assert part.named is not None
    [said] = query_parameters(part.named)
    path: Json = {"parameters": [row, {**said, "in": "path", "required": True}]}
    for method, action in part.writes:
        title = resource.title if part.out is None else part.out.__name__
        operation = _operation(resource, action.name, action.summary, action.body, title=title, later=True)
        if action.body is None:
            del operation["responses"]["200"]
            operation["responses"]["204"] = {"description": "Done."}
        path[method.lower()] = operation
    return path


def _answer_page(operation: Json, title: str) -> Json:
    operation["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _REF + title}},
            "next_cursor": {"type": ["string", "null"]},
        },
    }
    return operation


def _create(resource: Resource) -> Json:
    title = f"{resource.title}Created" if resource.secret else resource.title
    operation = _operation(
        resource, "create", f"Create one of {resource.name}", resource.create, title=title, later=True
    )
    operation["responses"]["201"] = operation["responses"].pop("200")
    operation["parameters"] = [KEY_PARAMETER]
    return operation


def _take(resource: Resource, batch: BatchEndpoint) -> Json:
    """Return the OpenAPI operation that takes a batch of objects."""
    operation = _operation(
        resource, batch.name, batch.summary, batch.body, title=batch.out.__name__, later=True
    )
    one = {"$ref": _REF + batch.body.__name__}
    schemas = {media: {"type": "array", "items": one} if "batch" in media else one for media in batch.media}
    operation["requestBody"]["content"] = {media: {"schema": schema} for media, schema in schemas.items()}
    operation["parameters"] = [KEY_PARAMETER]
    return operation


def _ask(resource: Resource, question: Question) -> Json:
    title = question.out.__name__
    if question.verb:
        operation = _operation(resource, question.verb, question.summary, question.asked, title=title)
        return operation | {"operationId": f"{resource.name}.{question.name}"}
    operation = _operation(resource, question.name, question.summary, title=title, refusals=READ_REFUSALS)
    operation["parameters"] = query_parameters(question.asked)
    return operation


# Descriptions of the parameters of documents.
_SAID = {
    "format": "Else what the Accept header names.",
    "profile": "What the document keeps to.",
    "version": "Of the specification.",
}


def _document(endpoint: Endpoint, file: DocumentEndpoint) -> Json:
    """Return the OpenAPI operation of a document of a resource or report."""
    schema: Json = {"type": "string", **({} if file.media.startswith("text/") else {"format": "binary"})}
    if file.media.endswith("json"):
        schema = {"type": "object"}
    read = _operation(endpoint, file.suffix.strip("./"), file.summary, refusals=DOCUMENT_REFUSALS)
    read["responses"]["200"] = {"description": "The document.", "content": {file.media: {"schema": schema}}}
    if file.public:
        read |= {"security": [], "description": "Anybody may ask: it shows no data."}
    if file.asked:
        read["parameters"] = [
            parameter(name, {"type": "string", "enum": list(values), "default": values[0]}, _SAID[name])
            for name, values in file.asked
        ]
    return read


def _operation(
    endpoint: Endpoint,
    verb: str,
    summary: str,
    body: type[BaseModel] | None = None,
    *,
    title: str = "",
    later: bool = False,
    refusals: Collection[str] = REFUSALS,
) -> Json:
    """Return an OpenAPI operation for the `verb` of a resource or report; `later` adds the answer 202."""
    content = {"application/json": {"schema": {"$ref": _REF + (title or endpoint.title)}}}
    responses: Json = {"200": {"description": "Done.", "content": content}}
    if later:
        responses["202"] = {"description": "Stored; applied once Redis is back.", "content": content}
    reads = refusals is not REFUSALS
    roles = endpoint.access.read if reads else endpoint.access.writers(verb)
    operation: Json = {
        "operationId": f"{endpoint.name}.{verb}",
        "tags": [endpoint.name],
        "summary": summary,
        "description": f"For the roles {', '.join(role for role in ROLES if role in roles)}.",
        "responses": responses | {code: {"$ref": f"#/components/responses/{code}"} for code in refusals},
    }
    if body is not None:
        schema = {"$ref": _REF + body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def mount_docs(app: web.Application, page: Callable[[], str]) -> None:
    """Serve the documentation page; `page` renders it on the first request."""

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=page(), content_type="text/html", headers={"Content-Security-Policy": CSP})

    app.router.add_get("/admin/docs", docs)


def render(described: Json) -> str:
    written = partial(json.dumps, indent=2, ensure_ascii=False)
    schemas = described["components"]["schemas"]
    page = _TEMPLATES.get_template("docs.html")
    return page.render(**described, schemas=schemas, style=STYLE, type_of=type_of, written=written)


def type_of(schema: Json) -> str:
    """Return the type of a schema in words."""
    if "anyOf" in schema:
        return " or ".join(type_of(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2]).removesuffix("In").lower()
    if "enum" in schema:
        return " | ".join(str(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return str(schema.get("format") or (" or ".join(kind) if isinstance(kind, list) else kind))
