"""`tollkeeper explain`: the steps of a call, made of rows of the journal and of what the call met."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.conftest import Api
from tests.admin.console.usage_rows import call
from tests.admin.test_cli import Run, from_json, run

__all__ = ["run"]  # a fixture

ADMITTED = "00000000-0000-4000-8000-000000000001"
REFUSED = "00000000-0000-4000-8000-000000000002"
RUN_SPENT = "00000000-0000-4000-8000-000000000003"


@pytest.fixture
async def ids(api: Api) -> dict[str, Any]:
    """A key of Acme's tenant Search, two budgets of it and one of another tenant; calls of the key."""
    owner = await api.make("organizations", name="Acme", currency="USD")
    tenant = await api.make("tenants", name="Search", organization_id=owner["id"])
    other = await api.make("tenants", name="Shop", organization_id=owner["id"])
    key = await api.make(
        "api-keys", tenant_id=tenant["id"], name="laptop", limits={"requests_per_minute": 60}
    )
    price = await api.make(
        "prices", model="gpt-4o", currency="USD", effective_from="2026-01-01T00:00:00Z", input="2.50",
        output="10",
    )  # fmt: skip
    money = {"organization_id": owner["id"], "unit": "money", "interval": "month"}
    await api.make("budgets", **money, name="search", tenant_id=tenant["id"], amount="20")
    await api.make("budgets", **money, name="keys", each="key", amount="5", mode="audit")
    await api.make("budgets", **money, name="shop", tenant_id=other["id"], amount="7")
    chat = await api.make(
        "services", name="Talk", key="talk", credits=0, service_type="Pay-As-You-Go", business_model_id=1
    )
    who = {
        "organization": owner["id"],
        "tenant": tenant["id"],
        "api_key_id": key["id"],
        "route": "/v1/chat/completions",
        "service_id": chat["id"],
    }
    call(
        api, ADMITTED, **who, model="gpt-4o", response_model="gpt-4o-2024", input=1000, output=200,
        tokens=1200, cost=4_500_000, currency="USD", price_id=price["id"],
    )  # fmt: skip
    call(api, REFUSED, **who, model="gpt-4o", status=429, reason="budget_exceeded", refused=True)
    call(api, RUN_SPENT, **who, model="gpt-4o", status=429, reason="run_exceeded", refused=True)
    return {"organization": owner["id"], "price": price["id"]}


def step(found: Any, name: str) -> dict[str, Any]:
    [one] = [each for each in found["steps"] if each["step"] == name]
    return dict(one)


async def test_cli_explain_shows_the_cost_of_a_call_line_by_line(run: Run, ids: dict[str, Any]) -> None:
    found = await from_json(run, "explain", ADMITTED)
    assert "organization Acme" in step(found, "caller")["says"]
    assert "key laptop" in step(found, "caller")["says"]
    assert step(found, "service")["says"].startswith("talk, sold as ")
    assert step(found, "limits")["facts"] == ["key: requests per minute 60"]
    assert "answered by gpt-4o-2024" in step(found, "request")["says"]
    assert step(found, "price")["says"].startswith(f"0.0045 USD by price {ids['price']} of gpt-4o")
    assert step(found, "price")["facts"] == [
        "input: 1,000 at 2.5 per million = 0.0025", "output: 200 at 10 per million = 0.002",
    ]  # fmt: skip
    assert not any(each["refused"] for each in found["steps"])
    shown = (await run("explain", ADMITTED)).stdout
    assert "input: 1,000 at 2.5 per million = 0.0025" in shown
    assert "REFUSED" not in shown


async def test_cli_explain_marks_the_step_that_refused_the_call_and_shows_the_budget_left(
    run: Run, ids: dict[str, Any]
) -> None:
    found = await from_json(run, "explain", REFUSED)
    assert [each["step"] for each in found["steps"] if each["refused"]] == ["budgets"]
    search, keys = step(found, "budgets")["facts"]
    assert search.startswith('"search": 20 of 20 USD a month are left (0 used), resets at ')
    assert keys.startswith('"keys", key ')
    assert "5 of 5 USD" in keys
    assert "raise" not in keys
    assert keys.endswith("It only counts: it refuses nothing.")
    assert step(found, "outcome")["says"] == "Refused: budget_exceeded. A budget's amount is used up."
    shown = (await run("explain", REFUSED)).stdout
    assert [line for line in shown.splitlines() if "Budgets" in line and "REFUSED HERE" in line]


async def test_cli_explain_shows_a_budget_limit_raised_for_a_single_api_key(
    run: Run, api: Api, ids: dict[str, Any]
) -> None:
    [key] = (await api.get("api-keys")).json["items"]
    [budget] = (await api.get("budgets?name=keys")).json["items"]
    said = {"amount": "9", "until": "2999-01-31T00:00:00Z", "reason": "a fair", "who": str(key["id"])}
    assert (await api.post(f"budgets/{budget['id']}/raise", said)).status == 200
    _, keys = step(await from_json(run, "explain", REFUSED), "budgets")["facts"]
    assert "9 of 9 USD a month are left" in keys
    assert ", by a raise until 2999-01-31 00:00:00 UTC." in keys


async def test_cli_explain_marks_only_the_outcome_as_refused_if_no_step_refused_the_call(
    run: Run, ids: dict[str, Any]
) -> None:
    found = await from_json(run, "explain", RUN_SPENT)
    assert [each["step"] for each in found["steps"] if each["refused"]] == ["outcome"]


async def test_cli_explain_refuses_calls_of_another_organization_and_malformed_ids(
    run: Run, api: Api, ids: dict[str, Any]
) -> None:
    other = await api.make("organizations", name="Other")
    token = await api.make("admin-tokens", name="o", role="readonly", organization_id=other["id"])
    result = await run("explain", ADMITTED, TOLLKEEPER_ADMIN_TOKEN=token["token"])
    assert (result.exit_code, f"The journal has no call {ADMITTED}" in result.stderr) == (1, True)
    assert "Acme" not in result.output
    own = await api.make("admin-tokens", name="own", role="readonly", organization_id=ids["organization"])
    result = await run("explain", ADMITTED, TOLLKEEPER_ADMIN_TOKEN=own["token"])
    assert (result.exit_code, "= 0.0025" in result.stdout) == (0, True)
    result = await run("explain", "that one")
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
