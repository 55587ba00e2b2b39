"""Configuration in which each kind stands, with most of what its objects can say."""

from __future__ import annotations

import copy
from typing import Any

from tests.admin.conftest import Api

Objects = dict[str, Any]

WORLD: Objects = {
    "webhooks": [
        {"url": "https://hooks.example.com/all", "events": ["budget.threshold"]},
        {"organization": "Acme", "url": "https://acme.example.com/told", "enabled": False},
    ],
    "tax-rates": [
        {"organization": "Globex", "rate": "0.19", "effective_from": "2025-01-01"},
        {
            "organization": "Globex", "rate": "0", "effective_from": "2026-01-01", "category": "exempt",
            "reason": "of little use",
        },
    ],
    "organization-subscriptions": [
        {
            "organization": "Acme", "plan": "Team", "start_date": "2026-01-15",
            "billing_interval": "quarterly", "billing": "advance", "discount_rate": "0.2",
            "minimum_commitment": "10.00", "quantity": 3,
        },
    ],
    "groups": [
        {"organization": "Globex", "name": "Platform", "kind": "user", "members": ["ada", "bob"],
         "claim": "platform-team"},
        {"organization": "Globex", "name": "Shops", "kind": "tenant", "members": ["Web"]},
        {"organization": "Acme", "name": "Pipelines", "kind": "api_key", "members": [
            {"tenant": {"organization": "Acme", "name": "Web"}, "name": "CI"}]},
        {"organization": "Globex", "name": "Projects", "kind": "project", "members": [0, 7]},
    ],
    "budgets": [
        {
            "organization": "Acme", "name": "Web, a day", "unit": "money", "amount": "12.5",
            "interval": "day", "tenant": "Web", "api_key": "CI", "time_zone": "Europe/Berlin",
            "mode": "audit", "tags": {"feature": "search"}, "carry": {"max": "5", "debt": True},
        },
        {
            "organization": "Globex", "name": "SMS", "unit": "requests", "amount": 500, "interval": "week",
            "service": "sms", "each": "user", "thresholds": [0.25, 1], "on_exhausted": "cut",
            "hold": "maximum", "overrides": [
                {"who": "ada", "amount": 900, "until": "2099-01-01T00:00:00Z", "reason": "a launch"},
                {"who": "group:Platform", "amount": None},
            ],
        },
        {"organization": "Acme", "name": "Of keys", "unit": "money", "amount": "5", "interval": "day",
         "each": "key", "overrides": [
             {"who": {"tenant": {"organization": "Acme", "name": "Web"}, "name": "CI"}, "amount": "7.50"},
             {"who": "group:Pipelines", "amount": "0"}]},
        {"organization": "Globex", "name": "Of tenants", "unit": "tokens", "amount": 5, "interval": "day",
         "each": "tenant", "overrides": [{"who": "Web", "amount": 7}]},
        {"organization": "Globex", "name": "GPT", "unit": "tokens", "amount": 5, "interval": "total",
         "model": "gpt-*"},
        {"organization": "Globex", "name": "Five hours", "unit": "money", "amount": "20", "window": "rolling",
         "length": "5h", "each": "user",
         "steps": [{"at": 0.8, "models": {"gpt-5*": "our-model"}, "session": "switch"}]},
        {"organization": "Globex", "name": "Search", "unit": "requests", "amount": 9, "interval": "day",
         "tool": "search", "server": "github", "group": "Platform"},
    ],
    "prices": [
        {"model": "our-model", "currency": "USD", "input": "2.50", "output": "10",
         "effective_from": "2026-02-03T04:05:06Z"},
        {
            "provider": "Us", "model": "Our-", "match": "prefix", "currency": "EUR", "request": "0.001",
            "effective_from": "2026-02-01T00:00:00Z", "tools": {"web_search": "10"},
            "images": {"1024x1024/high": "0.167"}, "character": "0.000015",
            "context_tiers": [{"above": 200000, "input": "5"}],
            "service_tiers": {
                "batch": "0.5",
                "priority": {"input": "5", "context_tiers": [{"above": 200000, "input": "9"}]},
            },
            "hours": [{"days": [5], "from": "22:00", "to": "06:00", "time_zone": "Europe/Berlin",
                       "factor": "0.5", "except": ["2026-12-25"]}],
            "hours_at": "end",
        },
    ],
    "exchange-rates": [
        {"currency": "EUR", "base": "CHF", "rate": "1.05", "effective_from": "2026-02-01T00:00:00Z"},
    ],
    "subscription-plans": [
        {"name": "Team", "monthly_cost": "20", "annual_cost": "200.00", "feature_access": ["chat", "sms"],
         "token_plan": "Pro"},
        {"name": "Bare", "monthly_cost": "0", "annual_cost": "0", "feature_access": [], "currency": "EUR"},
    ],
    "organization-services": [
        {"organization": "Globex", "service": "sms", "negotiated_credits": 3, "counts_tokens": False, "discount": "0.1"},
        {"organization": "Acme", "service": "sms", "negotiated_credits": 0, "business_model": "Metered",
         "pricing": {"tiers": [{"up_to": 10, "unit_price": "0.5"}, {"up_to": None, "unit_price": "0.25"}]}},
    ],
    "services": [
        {
            "name": "Text messages", "key": "sms", "credits": 5, "service_type": "Pay-As-You-Go",
            "business_model": "Consumption", "upstream": "sms", "paths": ["/v1/sms/*"], "counts_tokens": True,
            "description": "Sent.",
        },
        {
            "name": "Priced", "key": "priced", "credits": 0, "service_type": "Pay-As-You-Go",
            "business_model": "Consumption",
            "pricing": {"per_million": {"*": {"input": 5, "output": 6}}, "markup": "1.20"},
        },
    ],
    "models": [
        {
            "name": "gpt-4o", "targets": [{"upstream": "azure", "model": "prod"}, {"upstream": "openai"}],
            "output_max": 16_384, "context": 128_000,
        },
        {
            "organization": "Acme", "name": "own-*", "prefix": "own-", "fallback": ["429"],
            "targets": [{"upstream": "gpu", "model": "*"}],
        },
    ],
    "shares": [
        {"organization": "Acme", "upstream": "openai", "weight": 3, "priority": "batch"},
        {
            "tenant": {"organization": "Globex", "name": "Web"}, "upstream": "openai", "model": "gpt-4o",
            "guaranteed": {"requests_per_minute": 60, "tokens_per_minute": 9_000},
        },
    ],
    "business-models": [{"name": "Metered", "meter": "pay_per_use", "display_name": "By use"}],
    "api-keys": [
        {
            "tenant": {"organization": "Acme", "name": "Web"}, "name": "CI", "models": ["gpt-4o*"],
            "limits": {"requests_per_minute": 60}, "user_header": "require", "unsettled": "release",
            "priority": "batch", "runs": {"max": "0.50", "required": True}, "tags": {"team": "web"},
            "spent_status": 402, "retry_after_max_s": 3600,
            "expires_at": "2099-01-01T00:00:00Z",
        },
        {"tenant": {"organization": "Globex", "name": "Web"}, "name": "CI", "user": "somebody"},
        {
            "tenant": {"organization": "Globex", "name": "Web"}, "name": "pods",
            "issuer": "https://kubernetes.default.svc", "subject": "prod",
        },
    ],
    "tenants": [
        {"organization": "Acme", "name": "Web", "plan": "Pro", "limits": {"concurrency": 3},
         "models": ["gpt-*"], "runs": {"max_calls": 100}},
        {"organization": "Globex", "name": "Web", "user_limits": {"tokens_per_minute": 900}},
    ],
    "token-plans": [
        {
            "name": "Pro", "total_amount": 1_000_000, "reset_interval": "monthly",
            "time_zone": "Europe/Berlin", "anchor_day": 31, "overage_policy": "bill",
            "overage_unit_price": "0.000001",
            "weights": {"cache_read": "0.10"}, "description": "Billed beyond.",
        },
        {"name": "Endless", "currency": "EUR", "overage_unit_price": "0.5"},
    ],
    "users": [
        {"organization": "Acme", "external_id": "ada", "name": "Ada", "limits": {"concurrency": 1},
         "models": ["gpt-4o"]},
        {"external_id": "staff", "name": "Somebody of ours"},
    ],
    "organizations": [
        {
            "name": "Acme", "credit_limit": 10, "credit_unit_cost": "0.01", "spend_cap": "100.50",
            "limits": {"requests_per_minute": 600, "concurrency": 9}, "due_days": 14, "dunning": False,
            "tax_rate": "0.20", "address": ["1 Road", "Town"], "country": "NO", "tax_number": "X 1",
            "contact": {"name": "Ada", "phone": "+47 123", "email": "ada@example.no"},
            "buyer_reference": "04011000-12345-67", "endpoint_id": "0192:123456789",
            "stripe_customer": "cus_1",
            "time_zone": "Europe/Oslo", "tags": ["team", "feature"],
            "auto_top_up": {"threshold": 1, "credits": 5, "unit_cost": "1.5", "monthly_max": 2},
        },
        {"name": "Globex", "currency": "EUR", "services": "listed",
         "address": {"street": "Main Road 5", "city": "Berlin", "post_code": "10115", "country": "DE"},
         "models": ["claude-*"],
         "runs": {"ttl_s": 3600}, "spent_status": 402, "retry_after_max_s": 60},
    ],
}  # fmt: skip


def world() -> Objects:
    """A copy of it, to be changed."""
    return copy.deepcopy(WORLD)


async def plan(api: Api, objects: Objects, **more: Any) -> Any:
    """What would be done."""
    answer = await api.post("configuration", {"objects": objects, **more})
    assert answer.status == 200, answer.raw
    return answer.json


async def apply(api: Api, objects: Objects, **more: Any) -> Any:
    """Plan, and do it."""
    planned = await plan(api, objects, **more)
    answer = await api.post("configuration", {"objects": objects, "digest": planned["digest"], **more})
    assert answer.status in {200, 202}, answer.raw
    return answer.json


async def refused(api: Api, objects: Objects, **more: Any) -> dict[str, str]:
    """What is wrong with objects, by where it is."""
    answer = await api.post("configuration", {"objects": objects, **more})
    assert answer.status == 422, answer.raw
    return {each["field"]: each["message"] for each in answer.json["errors"]}


async def exported(api: Api) -> Any:
    """All that is configuration."""
    answer = await api.get("configuration")
    assert answer.status == 200, answer.raw
    return answer.json
