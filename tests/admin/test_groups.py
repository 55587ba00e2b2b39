"""Groups by the Admin API: members one by one, other organizations', and what a budget of one keeps."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from gateway.core.accounts.administration import Row
from tests.admin.conftest import Api

BUDGET = {"name": "pool", "unit": "requests", "amount": 5, "interval": "day"}


async def make(api: Api, kind: str = "user", **over: object) -> tuple[int, Row]:
    """An organization's id, and a group of it."""
    tenant = await api.make("tenants", name="web")
    owner = tenant["organization_id"]
    return owner, await api.make("groups", organization_id=owner, name="Platform", kind=kind, **over)


async def members(api: Api, group: Row) -> list[object]:
    found: list[object] = (await api.get(f"groups/{group['id']}")).json["members"]
    return found


@pytest.mark.parametrize("name", ["ada", "a/b c", "100%2F", "ü?#", "." * 3])
async def test_group_has_a_member_by_an_encoded_name_until_a_delete(api: Api, name: str) -> None:
    _, group = await make(api, members=["eve"])
    place = f"groups/{group['id']}/members/{quote(name, safe='')}"
    for method, wanted in (("PUT", ["eve", name]), ("DELETE", ["eve"])):
        for _ in range(2):
            answer = await api.call(method, place)
            assert (answer.status, answer.raw) == (204, b"")
            assert await members(api, group) == wanted


async def test_group_of_tenants_has_members_by_id(api: Api) -> None:
    owner, group = await make(api, "tenant")
    other = await api.make("tenants", name="other")
    mine = (await api.get(f"tenants?organization_id={owner}")).json["items"][0]["id"]
    assert (await api.call("PUT", f"groups/{group['id']}/members/{mine}")).status == 204
    refused = await api.call("PUT", f"groups/{group['id']}/members/{other['id']}")
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "members")
    refused = await api.call("PUT", f"groups/{group['id']}/members/web")
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "member")
    assert await members(api, group) == [mine]


async def test_group_refuses_more_than_ten_thousand_members_with_the_field(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    values = {"organization_id": tenant["organization_id"], "name": "a", "kind": "project"}
    refused = await api.post("groups", {**values, "members": [7] * 10_001})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "members")


@pytest.mark.parametrize("member", ["", "a\u202eb", -1, True, None])
async def test_member_that_no_call_can_name_is_refused_once_by_its_place(api: Api, member: object) -> None:
    tenant = await api.make("tenants", name="web")
    values = {"organization_id": tenant["organization_id"], "name": "a", "kind": "user"}
    refused = await api.post("groups", {**values, "members": ["ada", member]})
    assert (refused.status, [error["field"] for error in refused.json["errors"]]) == (422, ["members.1"])


@pytest.mark.parametrize("field", ["organization_id", "kind"])
async def test_group_keeps_its_organization_and_kind(api: Api, field: str) -> None:
    _, group = await make(api)
    refused = await api.patch(f"groups/{group['id']}", {field: group[field]})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, field)


async def test_group_of_another_organization_is_404_at_its_address_and_422_in_a_body(api: Api) -> None:
    _, group = await make(api)
    other = await api.make("organizations", name="Other")
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=other["id"])
    theirs = api.acting_as(token["token"])
    assert (await theirs.get(f"groups/{group['id']}")).status == 404
    for method in ("PUT", "DELETE"):
        assert (await theirs.call(method, f"groups/{group['id']}/members/ada")).status == 404
    for of in (theirs, api):
        refused = await of.post(
            "budgets", {**BUDGET, "organization_id": other["id"], "group_id": group["id"]}
        )
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "group_id")


async def test_group_of_a_budget_is_409_with_the_name_and_the_budget_keeps_its_group(api: Api) -> None:
    owner, group = await make(api)
    budget = await api.make("budgets", **BUDGET, organization_id=owner, group_id=group["id"])
    refused = await api.call("DELETE", f"groups/{group['id']}")
    assert (refused.status, refused.json["detail"].rpartition(": ")[2]) == (409, "pool.")
    refused = await api.patch(f"budgets/{budget['id']}", {"group_id": None})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "group_id")
    assert (await api.call("DELETE", f"budgets/{budget['id']}")).status == 204
    assert (await api.call("DELETE", f"groups/{group['id']}")).status == 204


async def test_audit_log_has_a_member_alone_of_a_member_put_or_removed(api: Api) -> None:
    _, group = await make(api, members=["eve"])
    for method in ("PUT", "DELETE"):
        await api.call(method, f"groups/{group['id']}/members/ada")
    entries = api.rows(
        "select action, before, after from audit_log where resource = 'groups' and action <> 'create' order by id"
    )
    assert entries == [("put-member", None, {"member": "ada"}), ("remove-member", None, {"member": "ada"})]


async def test_token_of_a_tenant_neither_reads_nor_makes_groups(api: Api) -> None:
    owner, group = await make(api)
    tenant = (await api.get(f"tenants?organization_id={owner}")).json["items"][0]["id"]
    token = await api.make(
        "admin-tokens", name="lead", role="operator", organization_id=owner, tenant_id=tenant
    )
    lead = api.acting_as(token["token"])
    assert (await lead.get("groups")).status == 403
    assert (await lead.call("PUT", f"groups/{group['id']}/members/ada")).status == 403
