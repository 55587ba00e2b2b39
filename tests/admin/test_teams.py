"""Tokens of one tenant: of everything else, of the same organization or another, nothing is there.

Every operation of the OpenAPI document is walked by each role, so one that is added is walked by itself.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.core.accounts.administration import (
    READ,
    TEAM_ROLES,
    Actor,
    RowScope,
    refused_read,
    refused_write,
)
from tests.admin import two_organizations
from tests.admin.conftest import Answer, Api
from tests.admin.console.conftest import Person
from tests.admin.test_confined import BODIES, CREATES, _writes
from tests.admin.test_roles import app_of, verbs_of
from tests.admin.two_organizations import World, state, traces
from tests.search import cases

# What a token of one tenant may, by hand: r reads, and which verbs each role has besides.
TEAMS: dict[str, dict[str, str]] = {
    "tenants": {"operator": "change"},
    "tenant-quotas": {}, "token-ledger": {}, "services": {}, "prices": {}, "calls": {}, "runs": {},
    "jobs": {},
    "usage": {},
    "api-keys": dict.fromkeys(("operator", "member"), "create change delete rotate revoke"),
    "budgets": {"operator": "create change delete raise reset override remove-override set-overrides"},
    "raise-requests": {"operator": "create delete approve deny", "member": "create"},
}  # fmt: skip


@pytest.fixture
async def world(api: Api) -> World:
    return await two_organizations.make(api)


@pytest.fixture
async def teams(world: World) -> dict[str, Api]:
    """Somebody of each role in a tenant of Bravo that has nothing: all of Bravo's rows are another's."""
    own = await world.admin.make("tenants", name="mine", organization_id=world.bravos["organizations"])
    return {role: await narrowed(world.admin, own["id"], role) for role in TEAM_ROLES}


async def narrowed(api: Api, tenant_id: int, role: str) -> Api:
    made = await api.make("admin-tokens", name=f"the {role}", role=role, tenant_id=tenant_id)
    return api.acting_as(made["token"])


def leaks(world: World, text: str) -> list[str]:
    """What of an answer is another tenant's; its own organization is named in its rows."""
    return traces(re.sub(rf"\b{world.bravos['organizations']}\b", "own", text))


@pytest.mark.parametrize("name", [*RESOURCES, *REPORTS])
def test_tenant_token_may_make_only_the_writes_declared_for_tenants(name: str) -> None:
    one = RESOURCES.get(name) or REPORTS[name]
    stated = TEAMS.get(name)
    for role in (*TEAM_ROLES, "admin", "billing"):
        actor = Actor("t", role, organization_id=7, tenant_id=8)
        may_read = stated is not None and role in TEAM_ROLES
        assert (refused_read(actor, name, one.access) is None) == may_read, role
        verbs = (stated or {}).get(role, "").split()
        assert {verb for verb in verbs_of(one) if refused_write(actor, name, one.access, verb) is None} == {
            *verbs
        }
        assert not {*verbs} & one.access.ours, "what an organization owes is no team's"
    assert one.access.teams.keys() <= {READ, *verbs_of(one)}


async def test_tenant_token_reads_no_row_of_another_tenant(world: World, teams: dict[str, Api]) -> None:
    """As who may most in a tenant: what each role may read is stated above."""
    document = (await world.admin.get("openapi.json")).json
    for role, team in (("operator", teams["operator"]),):
        for path, methods in cases([*document["paths"].items()]):
            if "get" not in methods:
                continue
            name = methods["get"]["tags"][0]
            for asked, status in _asked(world, name, path, methods["get"]):
                answer = await team.call("GET", asked)
                assert answer.status == status or (status == 404 and answer.status == 403), (
                    role,
                    asked,
                    answer.raw,
                )
                assert leaks(world, _without(answer, asked)) == [], (role, asked)


def _asked(world: World, name: str, path: str, operation: Any) -> list[tuple[str, int]]:
    """Addresses that an operation is asked at, and what is answered."""
    one = RESOURCES.get(name) or REPORTS[name]
    allowed = 200 if READ in one.access.teams else 403
    if "schema.json" in path:
        return []  # everybody's
    if "{id}" in path:
        if one.access.reach is not RowScope.OWNED:
            return [(path.replace("{id}", str(world.shared[name])), allowed)]
        rows = (world.bravos[name], world.alphas.get(name, two_organizations.UNKNOWN))
        return [(path.replace("{id}", str(row)), 404) for row in rows]
    if name == "prices" and path.endswith("quote"):
        return []
    found = [(path, allowed)]
    if allowed == 200:
        ids = {"tenant_id": "tenants", "api_key_id": "api-keys", "budget_id": "budgets", "user_id": "users"}
        parameters = {each["name"] for each in operation.get("parameters", ()) if "name" in each}
        for field, target in ids.items():
            if field in parameters:
                found += [(f"{path}?{field}={of[target]}", 200) for of in (world.bravos, world.alphas)]
    return found


def _without(answer: Answer, asked: str) -> str:
    """An answer without the address that was asked, which a refusal names."""
    text = answer.raw.decode(errors="replace")
    for number in re.findall(r"\d+", asked):
        text = re.sub(rf"\b{number}\b", "N", text) if answer.status != 200 else text
    return text


async def _state(world: World, teams: dict[str, Api]) -> list[tuple[Any, ...]]:
    """Everything there is of Bravo, once its tokens' last use is noted."""
    for team in teams.values():
        await team.get("tenants")
    return state(world.admin)


async def test_tenant_token_changes_no_row_of_another_tenant(world: World, teams: dict[str, Api]) -> None:
    before = await _state(world, teams)
    for role, (name, operation, method, path, spec) in cases([*product(teams, await _writes(world.admin))]):
        if operation == "api-keys.create":
            continue  # it needs to name nothing
        body = BODIES.get(operation, {}) if "requestBody" in spec else None
        rows = [world.bravos.get(name), world.alphas.get(name)] if "{id}" in path else [None]
        for row in rows:
            asked = path.replace("{id}", str(row or two_organizations.UNKNOWN))
            answer = await teams[role].call(method, asked, body if row else {})
            expected = {403, 404} if "{id}" in path else {403, 422}
            assert answer.status in expected, (role, asked, answer.raw)
            verb = operation.partition(".")[2]
            may = verb in TEAMS.get(name, {}).get(role, "").split()
            if "{id}" in path and row:
                assert answer.status == (404 if may else 403) or (may and answer.status == 403), operation
    assert await _state(world, teams) == before


async def test_tenant_operator_naming_a_row_of_another_tenant_gets_the_error_for_an_unknown_row(
    world: World, teams: dict[str, Api]
) -> None:
    before, lead = await _state(world, teams), teams["operator"]
    for of in (world.bravos, world.alphas):
        for name, field, target in (
            ("api-keys", "tenant_id", "tenants"), ("budgets", "tenant_id", "tenants"),
            ("budgets", "api_key_id", "api-keys"), ("raise-requests", "budget_id", "budgets"),
        ):  # fmt: skip
            foreign = await lead.post(name, {**CREATES[name], field: of[target]})
            nobodys = await lead.post(name, {**CREATES[name], field: two_organizations.UNKNOWN})
            assert (foreign.status, nobodys.status) == (422, 422), (name, field, foreign.raw)
            told = [re.sub(r"\d+", "N", str(each.json["errors"])) for each in (foreign, nobodys)]
            assert told[0] == told[1]
    for nobodys in ({"tenant_id": None}, {"organization_id": world.alphas["organizations"]}):
        assert (await lead.post("budgets", {**CREATES["budgets"], **nobodys})).status == 422
    assert await _state(world, teams) == before


async def test_console_shows_a_tenant_operator_no_row_of_another_tenant(
    world: World, teams: dict[str, Api]
) -> None:
    for role, team in (("operator", teams["operator"]),):
        person = Person(team.client)
        assert (await person.sign_in(team.token)).headers["Location"] == "/"
        for route in cases([*app_of(team.client).router.routes()]):
            path = route.resource.canonical
            if path in {"/readyz", "/livez", "/metrics"}:
                continue  # everybody's
            if (
                route.method != "GET"
                or path.startswith(("/admin", "/v1/"))
                or path in {"/sign-in", "/static/{mark}/{name}"}
            ):
                continue
            name = path.split("/")[1].removesuffix(".csv")
            if "{id" in path:
                path = re.sub(r"\{id[^}]*\}", str(world.bravos.get(name) or world.shared[name]), path)
            path = path.replace("{resource}", "tenants")
            asked = {"/search": "?q=bravo%20tenant", "/find/tenants": "?name=bravo"}.get(path, "")
            page = await person.open(path + asked)
            assert page.status < 500, path
            found = page.text.replace(path, "").replace("bravo tenant", "")
            assert leaks(world, found) == [], (role, path)


async def test_tenant_operator_can_see_and_limit_only_the_own_tenant(api: Api) -> None:
    of = (await api.make("organizations", name="acme"))["id"]
    tenant, other = [(await api.make("tenants", name=name, organization_id=of))["id"] for name in "ab"]
    lead, engineer, reader = [await narrowed(api, tenant, role) for role in TEAM_ROLES]
    assert [row["id"] for row in (await lead.get("tenants")).json["items"]] == [tenant]
    await lead.patch(f"tenants/{tenant}", {"user_limits": {"concurrency": 2}})
    assert (await api.get(f"tenants/{tenant}")).json["user_limits"]["concurrency"] == 2
    for field, value in (("limits", None), ("plan_id", None), ("name", "mine")):
        assert (await lead.patch(f"tenants/{tenant}", {field: value})).status == 403, field
    key = await engineer.make("api-keys", name="mine", user="ann")
    assert key["tenant_id"] == tenant
    assert (await engineer.patch(f"api-keys/{key['id']}", {"limits": None})).status == 403
    assert (await lead.patch(f"api-keys/{key['id']}", {"limits": {"concurrency": 1}})).status == 200
    assert (await engineer.post(f"api-keys/{key['id']}/rotate")).status == 200
    assert (await reader.post(f"api-keys/{key['id']}/revoke")).status == 403
    theirs = await api.make("budgets", name="b", organization_id=of, tenant_id=other, **BUDGET)
    whole = await api.make("budgets", name="all", organization_id=of, **BUDGET)
    given = await api.make("budgets", name="given", organization_id=of, tenant_id=tenant, **BUDGET)
    own = await lead.make("budgets", name="each", each="user", **BUDGET)
    assert (own["tenant_id"], own["of_team"], given["of_team"]) == (tenant, True, False)
    seen = {row["id"] for row in (await engineer.get("budgets")).json["items"]}
    assert seen == {given["id"], own["id"]}
    for one in (theirs, whole):
        assert (await lead.get(f"budgets/{one['id']}")).status == 404
    assert (await lead.patch(f"budgets/{own['id']}", {"amount": 7})).json["amount"] == 7
    assert (await engineer.patch(f"budgets/{own['id']}", {"amount": 9})).status == 403
    for method, path, body in (
        ("PATCH", "", {"amount": 999}), ("POST", "/reset", {}), ("DELETE", "", None),
        ("POST", "/raise", {"amount": 999, "until": "2099-01-01T00:00:00Z", "reason": "more"}),
    ):  # fmt: skip
        refused = await lead.call(method, f"budgets/{given['id']}{path}", body)
        assert (refused.status, "raise request" in refused.json["detail"]) == (403, True), method
    asked = [
        await engineer.make("raise-requests", budget_id=budget["id"], amount=99, reason="release", who=who)
        for budget, who in ((given, None), (own, "ann"))
    ]
    assert (await engineer.post(f"raise-requests/{asked[1]['id']}/approve")).status == 403
    assert (await lead.post(f"raise-requests/{asked[0]['id']}/approve")).status == 403
    approved = await lead.post(f"raise-requests/{asked[1]['id']}/approve")
    assert approved.json["status"] == "approved", approved.raw
    assert api.rows("SELECT budget_id, name, amount FROM budget_raise") == [(own["id"], "ann", 99)]
    assert (await lead.get(f"budgets/{own['id']}")).json["raised_to"] is None
    assert (await api.post(f"raise-requests/{asked[0]['id']}/approve")).status == 200


async def test_lead_overrides_in_budgets_of_the_own_tenant_alone(api: Api) -> None:
    of = (await api.make("organizations", name="acme"))["id"]
    tenant, other = [(await api.make("tenants", name=name, organization_id=of))["id"] for name in "ab"]
    elsewhere = await api.make("tenants", name="elsewhere")
    lead, engineer, reader = [await narrowed(api, tenant, role) for role in TEAM_ROLES]
    whose = {"given": (of, tenant), "theirs": (of, other), "all": (of, None)}
    whose["foreign"] = elsewhere["organization_id"], None
    budgets = {
        name: await api.make(
            "budgets", name=name, organization_id=owner, tenant_id=team, each="user", **BUDGET
        )
        for name, (owner, team) in whose.items()
    }

    async def statuses(method: str, by: Api) -> dict[str, int]:
        body = {"amount": 5} if method == "PUT" else None
        return {
            name: (await by.call(method, f"budgets/{one['id']}/overrides/ann", body)).status
            for name, one in budgets.items()
        }

    assert await statuses("PUT", lead) == {"given": 200, "theirs": 403, "all": 403, "foreign": 404}
    assert set((await statuses("PUT", engineer)).values()) == {403}
    assert set((await statuses("DELETE", reader)).values()) == {403}
    assert api.rows("SELECT budget_id, name FROM budget_override") == [(budgets["given"]["id"], "ann")]
    # Whoever may not change them may not see others' either.
    shown = {name: (await lead.get(f"budgets/{one['id']}/overrides")).status for name, one in budgets.items()}
    assert shown == {"given": 200, "theirs": 404, "all": 404, "foreign": 404}
    assert await statuses("DELETE", lead) == {"given": 204, "theirs": 403, "all": 403, "foreign": 404}


async def test_team_sets_no_tags_of_keys(api: Api) -> None:
    of = (await api.make("organizations", name="acme", tags=["team"]))["id"]
    tenant = (await api.make("tenants", name="a", organization_id=of))["id"]
    key = await api.make("api-keys", tenant_id=tenant, name="k", tags={"team": "red"})
    for role in ("operator", "member"):
        by = await narrowed(api, tenant, role)
        assert (await by.patch(f"api-keys/{key['id']}", {"tags": {}})).status == 403
        refused = await by.post("api-keys", {"tenant_id": tenant, "tags": {"team": "blue"}})
        assert (refused.status, "tags" in refused.json["detail"]) == (403, True)
        assert (await by.post("api-keys", {"tenant_id": tenant, "name": role})).status == 201
    assert (await api.get(f"api-keys/{key['id']}")).json["tags"] == {"team": "red"}


BUDGET: dict[str, Any] = {"unit": "tokens", "amount": 50, "interval": "day"}


async def test_tenant_token_belongs_to_the_organization_and_cannot_have_role_admin_or_billing(
    api: Api,
) -> None:
    ones = [await api.make("tenants", name=name) for name in ("one", "two")]
    [one, two] = [each["organization_id"] for each in ones]
    good = {"name": "lead", "role": "operator", "tenant_id": ones[0]["id"]}
    made = await api.make("admin-tokens", **good)
    assert (made["organization_id"], made["tenant_id"]) == (one, ones[0]["id"])
    for wrong, field in (
        ({"role": "admin"}, "role"), ({"role": "billing"}, "role"), ({"ours": True}, "ours"),
        ({"organization_id": two}, "tenant_id"), ({"tenant_id": 999_999}, "tenant_id"),
    ):  # fmt: skip
        refused = await api.post("admin-tokens", {**good, **wrong})
        assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])
    assert (await api.patch(f"admin-tokens/{made['id']}", {"ours": True})).status == 422
    assert (await api.patch(f"admin-tokens/{made['id']}", {"tenant_id": None})).status == 422
    own = api.acting_as(
        (await api.make("admin-tokens", name="a", role="admin", organization_id=one))["token"]
    )
    assert (await own.post("admin-tokens", {**good, "tenant_id": ones[1]["id"]})).status == 422
    assert (await own.post("admin-tokens", good)).status == 201
    [kept] = (await api.get(f"admin-tokens?tenant_id={ones[0]['id']}&limit=1")).json["items"]
    assert kept["id"] == made["id"]


async def test_tenant_with_tokens_cannot_be_deleted_and_a_token_of_a_deleted_tenant_is_401(api: Api) -> None:
    tenant = await api.make("tenants", name="t")
    lead = await narrowed(api, tenant["id"], "operator")
    assert (await lead.get("tenants")).status == 200
    refused = await api.delete(f"tenants/{tenant['id']}")
    assert (refused.status, "Admin tokens" in refused.json["detail"]) == (409, True)
    api.rows("update tenant set deleted_at = now() where id = %s", tenant["id"])
    assert (await lead.get("tenants")).status == 401
