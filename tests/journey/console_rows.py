"""A row of everything that the console shows, and the pages with a field or a filter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.admin.console.screens import PAGES, SCREENS
from tests.journey.stack import Stack

# People have these pages of their own.
OWN_PAGES = frozenset({"/me", "/team", "/account"})


def furnish(stack: Stack) -> dict[str, Any]:
    """Make rows for the screens: two tenants are called Twin; answers with ids."""
    acme = stack.make("organizations", name="Acme Robotics")["id"]
    other = stack.make("organizations", name="Bolt")["id"]
    plan = stack.make("token-plans", name="Screens, open", total_amount=10**9)["id"]
    tenants = [
        stack.make("tenants", name="Twin", organization_id=each, plan_id=plan)["id"] for each in (acme, other)
    ]
    search = stack.make("tenants", name="Search", organization_id=acme, plan_id=plan)["id"]
    key = stack.make("api-keys", tenant_id=search, name="laptop", user="ada")
    stack.make("users", organization_id=acme, external_id="ada", name="Ada")
    budget = stack.make(
        "budgets", organization_id=acme, tenant_id=search, name="search, a day", unit="requests", amount=1,
        interval="day",
    )["id"]  # fmt: skip
    answers = [stack.chat(key["key"]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    service = stack.make(
        "services", name="Scan", key="scan", credits=1, service_type="Pay-As-You-Go", business_model_id=1
    )["id"]
    stack.make("organization-services", organization_id=acme, service_id=service, negotiated_credits=2)
    gold = stack.make(
        "subscription-plans", name="Gold", monthly_cost="29.00", annual_cost="290", feature_access=["chat"]
    )["id"]
    this = datetime.now(UTC).date().replace(day=1)
    last = (this - timedelta(days=1)).replace(day=1)
    before = (last - timedelta(days=1)).replace(day=1)
    stack.make(
        "organization-subscriptions", organization_id=acme, plan_id=gold,
        start_date=str(before),
    )  # fmt: skip
    stack.make("credit-additions", organization_id=acme, credits_added=500, unit_cost="0.01")
    stack.make("tax-rates", organization_id=acme, rate="0.19", effective_from=str(before))
    since = (datetime.now(UTC) - timedelta(days=90)).isoformat()
    stack.make("prices", model="screen-model", currency="USD", input="1", output="2", effective_from=since)
    stack.make("models", name="fast", targets=[{"upstream": "openai", "model": "gpt-4o-mini"}])
    stack.make("shares", upstream="openai", organization_id=acme, weight=1)
    stack.make("exchange-rates", currency="EUR", base="USD", rate="0.92", effective_from=since)
    stack.make(
        "accounting-rates", currency="USD", accounting_currency="EUR", rate="0.92", source="ECB",
        published_on=str(before), effective_from=str(before),
    )  # fmt: skip
    stack.make("webhooks", url="https://hooks.example/x")
    stack.make("admin-tokens", name="lead", role="operator", tenant_id=search)
    period = {"period_start": str(before), "period_end": str(last)}
    invoice = stack.make("invoices", organization_id=acme, **period)["id"]
    assert stack.admin("POST", f"/invoices/{invoice}/finalize")[0] == 200
    paid = {"amount": "5.00", "reference": "bank-1"}
    assert stack.admin("POST", f"/invoices/{invoice}/payments", paid)[0] == 200
    draft = stack.make("invoices", organization_id=other, **period)["id"]
    return {
        "organization": acme, "search": search, "twins": tenants, "budget": budget, "invoice": invoice,
        "draft": draft, "key": key["key"], "refused": answers[1].headers["x-request-id"],
    }  # fmt: skip


def pages_of(stack: Stack) -> list[str]:
    """The addresses of every screen of staff: its list, the form of a new row, and the page of one row."""
    found = [page.address for page in PAGES if page.address not in OWN_PAGES]
    found.append("/invoices/month")
    for name, screen in SCREENS.items():
        status, answer = stack.admin("GET", f"/{name}?limit=1")
        assert status == 200, (name, answer)
        found.append(f"/{name}")
        found += [f"/{name}/new"] if screen.resource.create is not None else []
        found += [f"/{name}/{row['id']}" for row in answer["items"] if screen.has_page]
    return found
