"""What a file means stays what it means, whatever other people name theirs."""

from __future__ import annotations

from typing import Any

from tests.admin.configuration.world import Objects, apply, exported, plan, refused
from tests.admin.conftest import Api

ACME: Objects = {
    "organizations": [{"name": "Acme"}, {"name": "Globex"}],
    "tenants": [{"name": "Web", "organization": "Acme"}],
    "api-keys": [{"name": "CI", "tenant": {"organization": "Acme", "name": "Web"}}],
}


async def person(api: Api, role: str, organization: str) -> tuple[Api, int]:
    """Somebody of an organization, and its id."""
    [found] = (await api.get(f"organizations?name={organization}")).json["items"]
    token = await api.make("admin-tokens", name=role, role=role, organization_id=found["id"])
    return api.acting_as(token["token"]), found["id"]


async def only(api: Api, path: str) -> Any:
    [found] = (await api.get(path)).json["items"]
    return found


async def test_a_key_that_a_member_gives_the_name_of_an_applied_one_stops_nobody(api: Api) -> None:
    await apply(api, ACME)
    made = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    await member.make("api-keys", tenant_id=made["tenant_id"], name="CI")
    again = await plan(api, ACME)
    assert (again["changes"], again["noted"]) == ([], 0)
    objects = {**ACME, "organizations": [{"name": "Acme"}, {"name": "Globex", "due_days": 3}]}
    limited = {**ACME["api-keys"][0], "limits": {"concurrency": 2}}
    done = await apply(api, {**objects, "api-keys": [limited]})
    assert [(each["resource"], each["id"]) for each in done["changes"] if each["resource"] == "api-keys"] == [
        ("api-keys", made["id"])
    ]
    assert (await api.get(f"api-keys/{made['id']}")).json["limits"] == {"concurrency": 2}


async def test_what_was_taken_for_the_files_own_stays_the_one_that_is_meant(api: Api) -> None:
    await apply(api, {"organizations": ACME["organizations"], "tenants": ACME["tenants"]})
    web = await only(api, "tenants")
    there = await api.make("api-keys", tenant_id=web["id"], name="CI")
    assert (await apply(api, ACME))["noted"] == 1
    await api.make("api-keys", tenant_id=web["id"], name="CI")
    assert (await plan(api, ACME))["changes"] == []
    limited = {**ACME, "api-keys": [{**ACME["api-keys"][0], "limits": {"concurrency": 2}}]}
    [change] = (await plan(api, limited))["changes"]
    assert change["id"] == there["id"]
    # Under a name that nothing was applied under, nothing says which is meant: neither is taken.
    planned = await plan(api, ACME, name="other")
    assert [(each["change"], each["resource"]) for each in planned["changes"]] == [("create", "api-keys")]


async def test_what_is_exported_and_pruned_deletes_no_key_that_shares_its_name(api: Api) -> None:
    await apply(api, ACME)
    made = await only(api, "api-keys")
    member, _ = await person(api, "member", "Acme")
    other = await member.make("api-keys", tenant_id=made["tenant_id"], name="CI")
    written = await exported(api)
    assert [one["name"] for one in written["objects"]["api-keys"]] == ["CI"]
    assert [line.partition(":")[0] for line in written["left_out"]] == [f"api-keys {other['id']} (CI)"]
    assert (await plan(api, written["objects"], prune=True))["changes"] == []
    without = {kind: some for kind, some in ACME.items() if kind != "api-keys"}
    [change] = (await apply(api, without, prune=True))["changes"]
    assert (change["change"], change["id"], "others have its name" in change["stays"]) == (
        "delete", made["id"], True,
    )  # fmt: skip
    assert (await api.get(f"api-keys/{made['id']}")).json["revoked_at"] is None
    await api.post(f"api-keys/{other['id']}/revoke")
    await apply(api, without, prune=True)
    assert (await api.get(f"api-keys/{made['id']}")).json["revoked_at"] is not None


async def test_a_tenant_of_the_files_is_meant_whatever_another_organization_names_its_own(api: Api) -> None:
    await apply(api, {"organizations": ACME["organizations"]})
    operator, globex = await person(api, "operator", "Globex")
    await operator.make("tenants", organization_id=globex, name="Web")
    key = {"name": "CI", "tenant": "Web"}
    await apply(api, {**ACME, "api-keys": [key]})
    made = await only(api, "api-keys")
    [acme] = (await api.get("organizations?name=Acme")).json["items"]
    [mine] = [one for one in (await api.get("tenants")).json["items"] if one["organization_id"] == acme["id"]]
    assert made["tenant_id"] == mine["id"]


async def test_whom_part_of_a_name_stood_for_is_remembered(api: Api) -> None:
    await apply(api, {"organizations": ACME["organizations"]})
    [acme] = (await api.get("organizations?name=Acme")).json["items"]
    web = await api.make("tenants", organization_id=acme["id"], name="Web")
    keys: Objects = {"api-keys": [{"name": "CI", "tenant": "Web"}]}
    await apply(api, keys)
    assert (await plan(api, keys))["noted"] == 0
    operator, globex = await person(api, "operator", "Globex")
    await operator.make("tenants", organization_id=globex, name="Web")
    more: Objects = {"api-keys": [*keys["api-keys"], {"name": "CD", "tenant": "Web"}]}
    await apply(api, more)
    found = (await api.get("api-keys")).json["items"]
    assert {one["tenant_id"] for one in found} == {web["id"]}
    message = (await refused(api, keys, name="other"))["api-keys.0.tenant"]
    assert message == "there are 2 tenants named 'Web': say {organization, name}"
    pruned = {each["resource"] for each in (await plan(api, more, prune=True))["changes"]}
    assert pruned == {"organizations"}, "what is only spoken of is never pruned"
