"""Writes that earlier programs do not understand are refused while these may run."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.layout import EARLIER, LAYOUT
from gateway.core.processes import Program
from tests.admin.conftest import Api

OLD_GATEWAY = Program("g", "gateway", "1.0.0", EARLIER, "web-7", 0.0)
OLD_KEEPER = Program("k", "keeper", "1.0.0", EARLIER, "db-7", 0.0, "0114")
BUDGET = {"name": "all", "unit": "money", "interval": "month"}
PRICE = {"model": "m", "currency": "USD", "input": "1.00", "effective_from": "2026-01-01T00:00:00Z"}


async def writes(api: Api) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """A write of each capability: method, path and body."""
    tenant = await api.make("tenants", name="web")
    owner = {"organization_id": tenant["organization_id"]}
    each = await api.make("budgets", **BUDGET | {"name": "each"}, **owner, amount="5", each="user")
    price = await api.make("prices", **PRICE)
    raised = {"amount": "9", "until": "2999-01-01T00:00:00Z", "reason": "fair", "who": "ada"}
    return {
        "large_budgets": ("POST", "budgets", {**BUDGET, **owner, "amount": "9000001"}),
        "personal_raises": ("POST", f"budgets/{each['id']}/raise", raised),
        "overrides": ("PUT", f"budgets/{each['id']}/overrides/ada", {"amount": None}),
        "tenant_budgets": ("POST", "budgets", {**BUDGET, **owner, "amount": "5", "each": "tenant"}),
        "budget_webhooks": ("POST", "webhooks", {"url": "https://hooks.example.com/x", "events": []}),
        "amended_prices": ("POST", f"prices/{price['id']}/amend", {"input": "2.00", "reason": "typo"}),
        "cache_prices": ("POST", "prices", {**PRICE, "model": "other", "cache_hour": "1.00"}),
        "groups": ("POST", "groups", {**owner, "name": "a", "kind": "user"}),
        "windows": (
            "POST",
            "budgets",
            {**BUDGET, **owner, "amount": "5", "interval": None, "window": "rolling", "length": "5h"},
        ),
        "carry": ("PATCH", f"budgets/{each['id']}", {"carry": {"max": "5"}}),
        "steps": ("PATCH", f"budgets/{each['id']}", {"steps": [{"at": 0.8, "models": {"a": "m"}}]}),
        "run_policies": ("PATCH", f"tenants/{tenant['id']}", {"runs": {"required": True}}),
    }


@pytest.mark.parametrize(
    "name",
    [
        "large_budgets",
        "personal_raises",
        "overrides",
        "tenant_budgets",
        "budget_webhooks",
        "amended_prices",
        "cache_prices",
        "groups",
        "windows",
        "carry",
        "steps",
        "run_policies",
    ],
)
async def test_write_of_a_capability_is_409_with_the_programs_to_replace_and_changes_no_row(
    api: Api, name: str
) -> None:
    method, path, body = (await writes(api))[name]
    before = api.rows("select count(*) from audit_log")
    api.counters.earlier = [OLD_KEEPER]
    refused = await api.call(method, path, body)
    assert (refused.status, refused.json["detail"].rpartition(": ")[2]) == (409, "keeper 1.0.0 on db-7.")
    assert api.rows("select count(*) from audit_log") == before
    api.counters.earlier = []
    assert (await api.call(method, path, body)).status in {200, 201}


async def test_write_of_a_capability_waits_until_its_layout_is_taken_up(api: Api) -> None:
    method, path, body = (await writes(api))["large_budgets"]
    api.counters.written = EARLIER
    refused = await api.call(method, path, body)
    assert (refused.status, f"layout {LAYOUT} is taken up" in refused.json["detail"]) == (409, True)
    usual = await api.call(method, path, {**body, "amount": "9000000"})
    assert usual.status == 201
    raised = {"amount": "9000001", "until": "2999-01-01T00:00:00Z", "reason": "fair"}
    assert (await api.post(f"budgets/{usual.json['id']}/raise", raised)).status == 409
    assert (await api.call("PATCH", f"budgets/{usual.json['id']}", {"amount": "9000001"})).status == 409
    assert (await api.call("PATCH", f"budgets/{usual.json['id']}", {"name": "other"})).status == 200


async def test_write_of_a_capability_is_503_while_redis_is_away(api: Api) -> None:
    method, path, body = (await writes(api))["large_budgets"]
    api.counters.away = True
    assert (await api.call(method, path, body)).status == 503


async def test_approval_of_a_large_raise_request_waits_for_earlier_programs(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    budget = await api.make("budgets", **BUDGET, organization_id=tenant["organization_id"], amount="5")
    wanted = {"amount": "9000001", "until": "2999-01-01T00:00:00Z", "reason": "fair"}
    request = await api.make("raise-requests", budget_id=budget["id"], **wanted)
    api.counters.earlier = [OLD_GATEWAY]
    refused = await api.post(f"raise-requests/{request['id']}/approve")
    assert (refused.status, "gateway 1.0.0 on web-7" in refused.json["detail"]) == (409, True)
    assert (await api.get(f"raise-requests/{request['id']}")).json["status"] == "open"
    api.counters.earlier = []
    assert (await api.post(f"raise-requests/{request['id']}/approve")).status == 200


async def test_people_of_an_organization_do_not_learn_which_programs_run(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    owner = {"organization_id": tenant["organization_id"]}
    token = (await api.make("admin-tokens", name="theirs", role="billing", **owner))["token"]
    api.counters.earlier = [OLD_GATEWAY]
    refused = await api.acting_as(token).post("budgets", {**BUDGET, **owner, "amount": "9000001"})
    assert (refused.status, refused.json["detail"]) == (
        409,
        "Budget amounts above 9000000 wait for the end of an upgrade of this installation: try again later.",
    )


async def test_apply_of_a_configuration_with_a_capability_is_409(api: Api) -> None:
    await api.make("tenants", name="web")
    [(organization,)] = api.rows("select name from organization")
    wish = {"objects": {"budgets": [{**BUDGET, "organization": organization, "amount": "9000001"}]}}
    plan = (await api.post("configuration", wish)).json
    api.counters.earlier = [OLD_GATEWAY]
    refused = await api.post("configuration", {**wish, "digest": plan["digest"]})
    assert (refused.status, "gateway 1.0.0 on web-7" in refused.json["detail"]) == (409, True)
    assert api.rows("select count(*) from budget") == [(0,)]
    api.counters.earlier = []
    assert (await api.post("configuration", {**wish, "digest": plan["digest"]})).status == 200
