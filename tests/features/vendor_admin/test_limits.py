"""Limits of spend in vendors' own shapes are budgets: read, set and taken away by their own SDKs."""

from __future__ import annotations

import asyncio
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
        (f"Spend limit of tenant {tenant}", "1.50", "day", tenant, None, "enforce")
    ]


async def test_spend_limits_of_organization_group_and_user_are_a_budget_of_each_user(world: World) -> None:
    own = world.alphas["organizations"]
    group = await world.admin.make("groups", organization_id=own, name="p", kind="user", members=["ada"])
    other = await world.admin.make("groups", organization_id=own, name="t", kind="tenant")
    theirs = await world.admin.make(
        "groups", organization_id=world.bravos["organizations"], name="p", kind="user"
    )

    def scoped(kind: str, value: object) -> dict[str, Any]:
        return {"type": kind, f"{kind}_id": str(value)}

    async def set_limit(amount: str | None, scope: dict[str, Any], status: int = 200) -> Any:
        answer = await world.alpha.call("POST", ANTHROPIC, {"amount": amount, "scope": scope})
        assert answer.status == status, answer.raw
        return answer.json

    of_group = await set_limit("0", scoped("rbac_group", group["id"]))
    of_user = await set_limit(None, scoped("user", "ada"))
    whole = await set_limit("50000", {"type": "organization"})
    assert (whole["amount"], of_group["amount"], of_user["amount"]) == ("50000", "0", None)
    for wrong in (other["id"], theirs["id"], 999):
        refused = await set_limit("1", scoped("rbac_group", wrong), 422)
        assert "The field scope " in refused["error"]["message"]
    assert await set_limit("700", scoped("user", "ada")) == {**of_user, "amount": "700"}
    [budget] = (await world.admin.get("budgets")).json["items"]
    assert (budget["each"], budget["amount"], budget["interval"]) == ("user", "500.00", "month")
    items = (await world.admin.get(f"budgets/{budget['id']}/overrides")).json["items"]
    assert [(own["who"], own["amount"]) for own in items] == [
        ("ada", "7.00"),
        (f"group:{group['id']}", "0.00"),
    ]
    listed = (await world.alpha.get(f"{ANTHROPIC}?limit=2")).json
    rest = (await world.alpha.get(f"{ANTHROPIC}?limit=2&page={listed['next_page']}")).json
    assert [limit["scope"]["type"] for limit in listed["data"] + rest["data"]] == [
        "organization", "user", "rbac_group",
    ]  # fmt: skip
    assert (rest["next_page"], rest["data"]) == (None, [of_group])
    for limit, left in (
        (whole, [(None, None), ("700", "ada"), ("0", None)]),
        (of_user, [(None, None), ("0", None)]),
    ):
        assert (await world.alpha.call("DELETE", f"{ANTHROPIC}/{limit['id']}")).status == 200
        data = (await world.alpha.get(ANTHROPIC)).json["data"]
        assert [(one["amount"], one["scope"].get("user_id")) for one in data] == left
    assert (await world.alpha.call("DELETE", f"{ANTHROPIC}/{of_group['id']}")).status == 200
    assert await budgets(world) == []


async def test_spend_limit_with_a_budget_of_a_user_becomes_an_override_when_set_again(world: World) -> None:
    own = world.alphas["organizations"]
    said = {
        "organization_id": own,
        "name": "b",
        "unit": "money",
        "amount": "5",
        "interval": "month",
        "user": "ada",
    }
    await world.admin.make("budgets", **said)
    [limit] = (await world.alpha.get(ANTHROPIC)).json["data"]
    assert (limit["amount"], limit["scope"]) == ("500", {"type": "user", "user_id": "ada"})
    body = {"amount": "900", "scope": {"type": "user", "user_id": "ada"}}
    assert (await world.alpha.call("POST", ANTHROPIC, body)).status == 200
    [budget] = (await world.admin.get("budgets")).json["items"]
    assert (budget["each"], budget["user"]) == ("user", None)


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
    assert [one[:3] for one in await budgets(world)] == [(f"Spend limit of tenant {tenant}", "0.01", "month")]


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
        (ANTHROPIC, {"amount": None, "scope": {"type": "workspace", "workspace_id": "1"}}, "amount"),
        (ANTHROPIC, {"amount": "0", "scope": {"type": "organization"}}, "amount"),
        (ANTHROPIC, {"scope": {"type": "organization"}}, "amount"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "rbac_group", "rbac_group_id": "x"}}, "scope"),
        (ANTHROPIC, {"amount": "1", "scope": {"type": "user", "user_id": "group:7"}}, "scope"),
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
