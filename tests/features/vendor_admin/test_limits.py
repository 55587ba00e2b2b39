"""Limits of spend in vendors' own shapes are budgets: read, set and taken away by their own SDKs."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import anthropic
import openai
import pytest

from tests.admin.conftest import Api
from tests.admin.two_organizations import World, few

ANTHROPIC, OPENAI = "/v1/organizations/spend_limits", "/v1/organization/spend_limit"


@pytest.fixture
async def world(api: Api) -> World:
    return await few(api)


async def budgets(world: World) -> list[Any]:
    found = (await world.admin.get("budgets")).json["items"]
    names = ("name", "amount", "interval", "tenant_id", "user", "mode")
    return [tuple(one[name] for name in names) for one in found]


async def test_anthropic_client_sets_reads_and_deletes_spend_limits(world: World) -> None:
    url, tenant = str(world.alpha.client.make_url("")), world.alphas["tenants"]

    def ask() -> tuple[Any, ...]:
        with anthropic.Anthropic(base_url=url, api_key=str(world.alpha.token), max_retries=0) as client:
            limits = client.beta.organization.spend_limits
            first = limits.set(amount="50000", scope={"type": "organization"})
            again = limits.set(amount="70000", scope={"type": "organization"})
            of_tenant: Any = {"type": "workspace", "workspace_id": str(tenant)}
            daily = limits.set(amount="150", scope=of_tenant, period="daily")
            listed = [one.id for one in limits.list()]
            gone = limits.delete(first.id)
            return first, again, daily, listed, gone

    first, again, daily, listed, gone = await asyncio.to_thread(ask)
    assert (first.id, first.amount, first.currency, first.period) == (again.id, "50000", "USD", "monthly")
    assert (again.amount, daily.amount, daily.scope.workspace_id) == ("70000", "150", str(tenant))
    assert listed == [daily.id, first.id]
    assert (gone.id, gone.type) == (first.id, "spend_limit_deleted")
    assert await budgets(world) == [
        (f"Spend limit of tenant {tenant}, day", "1.50", "day", tenant, None, "enforce")
    ]


async def test_limits_of_organization_group_and_user_are_each_users_own(world: World) -> None:
    url, of = str(world.alpha.client.make_url("")), world.alphas["organizations"]
    group = await world.alpha.make(
        "groups", name="contractors", kind="user", organization_id=of, members=["ada"]
    )
    theirs = await world.admin.make(
        "groups", name="theirs", kind="user", organization_id=world.bravos["organizations"]
    )

    def ask() -> tuple[Any, ...]:
        with anthropic.Anthropic(base_url=url, api_key=str(world.alpha.token), max_retries=0) as client:
            limits = client.beta.organization.spend_limits
            of_group: Any = {"type": "rbac_group", "rbac_group_id": str(group["id"])}
            of_foreign: Any = {"type": "rbac_group", "rbac_group_id": str(theirs["id"])}
            own = limits.set(amount=None, scope={"type": "user", "user_id": "ann/1"})
            grouped = limits.set(amount="10000", scope=of_group)
            unlimited = [one.amount for one in limits.list()]
            whole = limits.set(amount="50000", scope={"type": "organization"})
            limits.set(amount="0", scope={"type": "user", "user_id": "ann/1"})
            listed = [(one.id, one.amount, one.scope.type) for one in limits.list()]
            with pytest.raises(anthropic.UnprocessableEntityError):
                limits.set(amount="1", scope=of_foreign)
            limits.delete(whole.id)
            after = [(one.amount, one.scope.type) for one in limits.list()]
            assert limits.retrieve(own.id).amount == "0"
            for each in (own, grouped):
                limits.delete(each.id)
            return own, grouped, whole, unlimited, listed, after, limits.list().data

    own, grouped, whole, unlimited, listed, after, none = await asyncio.to_thread(ask)
    assert (own.amount, own.scope.user_id, grouped.amount) == (None, "ann/1", "10000")
    assert sorted(unlimited, key=str) == ["10000", None, None]
    assert sorted(listed) == sorted([
        (whole.id, "50000", "organization"), (own.id, "0", "user"), (grouped.id, "10000", "rbac_group"),
    ])  # fmt: skip
    assert sorted(after, key=str) == [("0", "user"), ("10000", "rbac_group"), (None, "organization")]
    assert (none, await budgets(world)) == ([], [])


async def test_pools_and_other_windows_are_no_limits_of_each_user(world: World) -> None:
    of = world.alphas["organizations"]
    usual = {"organization_id": of, "unit": "money", "amount": "5"}
    for name, more in {
        "pool": {"interval": "month"}, "rolling": {"window": "rolling", "length": "7d"},
        "carries": {"interval": "month", "carry": {"max": "1"}, "each": "user"},
        "keys": {"interval": "month", "each": "key"},
    }.items():  # fmt: skip
        await world.admin.make("budgets", name=name, **usual, **more)
    assert (await world.alpha.get(ANTHROPIC)).json["data"] == []
    assert (await world.alpha.get(OPENAI)).json["threshold_amount"] == 500


async def test_limit_of_a_user_replaces_the_budget_of_that_user_alone(world: World) -> None:
    of = world.alphas["organizations"]
    former = {"organization_id": of, "unit": "money", "amount": "5", "interval": "month", "user": "ann"}
    made = await world.admin.make("budgets", name="ann's", **former)
    [listed] = (await world.alpha.get(ANTHROPIC)).json["data"]
    assert (listed["id"], listed["scope"]) == (f"spl_{made['id']}", {"type": "user", "user_id": "ann"})
    body = {"amount": "700", "scope": {"type": "user", "user_id": "ann"}}
    assert (await world.alpha.call("POST", ANTHROPIC, body)).json["amount"] == "700"
    assert [one[4] for one in await budgets(world)] == [None]


async def test_openai_client_sets_reads_and_deletes_spend_limits(world: World) -> None:
    url, tenant = str(world.alpha.client.make_url("/v1")), world.alphas["tenants"]

    def ask() -> tuple[Any, ...]:
        with openai.OpenAI(
            base_url=url, api_key="none", admin_api_key=str(world.alpha.token), max_retries=0
        ) as client:
            whole = client.admin.organization.spend_limit
            project = client.admin.organization.projects.spend_limit
            made = whole.update(currency="USD", interval="month", threshold_amount=10_000)
            of_project = project.update(str(tenant), currency="USD", interval="month", threshold_amount=1)
            read = whole.retrieve(), project.retrieve(str(tenant))
            return made, of_project, read, whole.delete()

    made, of_project, read, gone = await asyncio.to_thread(ask)
    assert (made.threshold_amount, made.enforcement.status) == (10_000, "inactive")
    assert (of_project.object, of_project.threshold_amount) == ("project.spend_limit", 1)
    assert read == (made, of_project)
    assert (gone.object, gone.deleted) == ("organization.spend_limit.deleted", True)
    assert [one[:3] for one in await budgets(world)] == [
        (f"Spend limit of tenant {tenant}, month", "0.01", "month")
    ]


async def test_organization_token_may_not_read_or_set_spend_limits_of_another_organization(
    world: World,
) -> None:
    of = world.bravos["organizations"]
    made = await world.admin.make(
        "budgets", organization_id=of, name="b", unit="money", amount="5", interval="month"
    )
    theirs, alpha = f"{ANTHROPIC}/spl_{made['id']}", world.alpha
    assert (await alpha.get(ANTHROPIC)).json["data"] == []
    assert [(await alpha.call(method, theirs)).status for method in ("GET", "DELETE")] == [404, 404]
    tenant = world.bravos["tenants"]
    body = {"threshold_amount": 1, "currency": "USD", "interval": "month"}
    path = f"/v1/organization/projects/{tenant}/spend_limit"
    assert (await alpha.call("POST", path, body)).status in {404, 422}
    assert (await world.admin.get(OPENAI)).status == 422  # its token is of none
    assert len(await budgets(world)) == 1


async def test_workspace_has_a_spend_limit_for_each_period(world: World) -> None:
    scope = {"type": "workspace", "workspace_id": str(world.alphas["tenants"])}
    amounts = {"daily": "100", "weekly": "500", "monthly": "900"}
    for period, amount in amounts.items():
        body: Any = {"scope": scope, "amount": amount, "period": period}
        assert (await world.alpha.call("POST", ANTHROPIC, body)).status == 200, period
    listed = (await world.alpha.get(ANTHROPIC)).json["data"]
    assert {one["period"]: one["amount"] for one in listed} == amounts
    body = {"threshold_amount": 800, "currency": "USD", "interval": "month"}
    path = f"/v1/organization/projects/{world.alphas['tenants']}/spend_limit"
    assert (await world.alpha.call("POST", path, body)).status == 200, "the monthly one in OpenAI's shape"
    assert [one[1:3] for one in await budgets(world)] == [
        ("1.00", "day"),
        ("5.00", "week"),
        ("8.00", "month"),
    ]


async def test_budget_that_has_the_name_of_a_spend_limit_is_not_in_its_way(world: World) -> None:
    of = world.alphas["organizations"]
    names = ["Spend limit of each user, month", "Spend limit of each user, month (2)"]
    for name in names:
        await world.admin.make(
            "budgets", name=name, organization_id=of, unit="tokens", amount=5, interval="month"
        )
    for who in ("ann", "bob"):
        body = {"amount": "300", "scope": {"type": "user", "user_id": who}}
        assert (await world.alpha.call("POST", ANTHROPIC, body)).status == 200
    made = [one[0] for one in await budgets(world)]
    assert made == [*names, "Spend limit of each user, month (3)"]
    listed = (await world.alpha.get(ANTHROPIC)).json["data"]
    assert sorted(one["scope"].get("user_id", "") for one in listed) == ["", "ann", "bob"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_tenant_token_gets_403_for_spend_limits_and_changes_no_budget(
    world: World, method: str
) -> None:
    tenant = world.alphas["tenants"]
    limit: Any = {"amount": "700", "scope": {"type": "workspace", "workspace_id": str(tenant)}}
    made = (await world.alpha.call("POST", ANTHROPIC, limit)).json["id"]
    token = await world.admin.make("admin-tokens", name="lead", role="operator", tenant_id=tenant)
    lead, before = world.alpha.acting_as(token["token"]), await budgets(world)
    scopes = [{"type": "organization"}, {"type": "user", "user_id": "zed"}, limit["scope"]]
    bodies: Any = product(scopes, ("daily", "weekly", "monthly")) if method == "POST" else [(None, None)]
    for scope, period in bodies:
        body = {"scope": scope, "amount": "300", "period": period} if scope else None
        path = f"{ANTHROPIC}/{made}" if method == "DELETE" else ANTHROPIC
        assert (await lead.call(method, path, body)).status == 403, (scope, period)
    body = {"threshold_amount": 1, "currency": "USD", "interval": "month"} if method == "POST" else None
    assert (await lead.call(method, OPENAI, body)).status == 403
    assert await budgets(world) == before


async def test_readonly_token_may_read_but_not_set_spend_limits(world: World) -> None:
    of = world.alphas["organizations"]
    made = await world.admin.make("admin-tokens", name="reader", role="readonly", organization_id=of)
    other = world.alpha.acting_as(made["token"])
    body = {"threshold_amount": 1, "currency": "USD", "interval": "month"}
    assert (await other.call("POST", OPENAI, body)).status == 403
    assert (await other.get(ANTHROPIC)).status == 200
    assert await budgets(world) == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (OPENAI, {"threshold_amount": 0, "currency": "USD", "interval": "month"}, "threshold_amount"),
        (OPENAI, {"threshold_amount": 5, "currency": "EUR", "interval": "month"}, "currency"),
        (OPENAI, {"threshold_amount": 5, "currency": "USD", "interval": "day"}, "interval"),
        (OPENAI, {"threshold_amount": 5, "currency": "USD", "interval": "month", "x": 1}, "x"),
        (ANTHROPIC, {"amount": "1.5", "scope": {"type": "organization"}}, "amount"),
        (ANTHROPIC, {"scope": {"type": "organization"}}, "amount"),
        (ANTHROPIC, {"amount": "0", "scope": {"type": "organization"}}, "amount"),
        (ANTHROPIC, {"amount": None, "scope": {"type": "workspace", "workspace_id": "1"}}, "amount"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "user", "user_id": "group:7"}}, "scope"),
        (
            ANTHROPIC,
            {"amount": "1", "scope": {"type": "rbac_group", "rbac_group_id": "contractors"}},
            "scope",
        ),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "rbac_group", "rbac_group_id": "999999"}}, "scope"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "seat_tier"}}, "scope"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "workspace", "workspace_id": "\u00b2"}}, "scope"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "organization"}, "period": "yearly"}, "period"),
    ],
)
async def test_invalid_spend_limit_is_refused_with_the_field_named(
    world: World, path: str, body: dict[str, Any], field: str
) -> None:
    refused = await world.alpha.call("POST", path, body)
    assert refused.status == 422
    assert f"The field {field} " in refused.json["error"]["message"]
    assert await budgets(world) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (ANTHROPIC, {"amount": "1", "scope": {"type": "organization"}, "period": "weekly"}),
        (OPENAI, {"threshold_amount": 5, "currency": "USD", "interval": "month"}),
    ],
)
async def test_spend_limit_that_a_budgets_rule_refuses_says_which(
    world: World, path: str, body: dict[str, Any]
) -> None:
    selectors = product((None, world.alphas["tenants"]), (None, "ada"), (None, 7), (None, "m1"))
    for number, (tenant, user, project, model) in enumerate(selectors):
        await world.alpha.make(
            "budgets", name=f"b{number}", unit="money", amount="5", interval="day", each="key", model=model,
            organization_id=world.alphas["organizations"], tenant_id=tenant, user=user, project_id=project,
        )  # fmt: skip
    refused = await world.alpha.call("POST", path, body)
    assert refused.status == 422
    assert "budgets of more than 16 different selectors, with: b0" in refused.json["error"]["message"]


async def test_spend_limit_request_accepts_the_same_token_in_two_headers_but_not_two_tokens(
    world: World,
) -> None:
    url, token = str(world.alpha.client.make_url("")), str(world.alpha.token)

    def ask(key: str) -> Any:
        fields = {"X-Api-Key": key}
        with anthropic.Anthropic(
            base_url=url, auth_token=token, default_headers=fields, max_retries=0
        ) as client:
            limits = client.beta.organization.spend_limits
            return limits.set(amount="50000", scope={"type": "organization"})

    assert (await asyncio.to_thread(ask, token)).amount == "50000"
    with pytest.raises(anthropic.AuthenticationError) as refused:
        await asyncio.to_thread(ask, "other")
    assert "Authorization and x-api-key have 2 credentials that differ: send one." in str(refused.value)


async def test_vendor_api_route_that_is_not_served_is_404_with_the_error_format_of_the_vendor(
    world: World,
) -> None:
    url, token = str(world.alpha.client.make_url("")), str(world.alpha.token)

    def ask() -> tuple[Any, Any]:
        with (
            anthropic.Anthropic(base_url=url, api_key=token, max_retries=0) as client,
            pytest.raises(anthropic.NotFoundError) as first,
        ):
            client.get(f"{ANTHROPIC.rpartition('/')[0]}/users", cast_to=object)
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", admin_api_key=token, max_retries=0) as other,
            pytest.raises(openai.NotFoundError) as second,
        ):
            other.admin.organization.users.list()
        return first.value.body, second.value.body

    first, second = await asyncio.to_thread(ask)
    said = "GET /v1/organizations/users is not served here: the Admin API has it, at /admin/v1."
    assert first == {"type": "error", "error": {"type": "not_found_error", "message": said}}
    assert second["type"] == "invalid_request_error"
    assert second["message"] == said.replace("organizations", "organization")
