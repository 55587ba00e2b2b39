"""Shares of the Admin API: who may make them, what they may say, and whose they are."""

from __future__ import annotations

from tests.admin.conftest import Api


async def test_upstream_share_can_be_given_to_an_organization_or_a_tenant(api: Api) -> None:
    organization = (await api.make("organizations", name="Acme"))["id"]
    tenant = (await api.make("tenants", name="Web", organization_id=organization))["id"]
    whole = await api.make("shares", upstream="openai", organization_id=organization)
    assert {name: whole[name] for name in ("model", "tenant_id", "weight", "guaranteed", "priority")} == {
        "model": None, "tenant_id": None, "weight": 1, "guaranteed": None, "priority": "interactive",
    }  # fmt: skip
    part = {"tokens_per_minute": 500}
    own = await api.make(
        "shares", upstream="openai", model="gpt-4o", tenant_id=tenant, weight=3, guaranteed=part
    )
    assert (own["organization_id"], own["tenant_id"], own["guaranteed"]) == (None, tenant, part)
    again = {"upstream": "openai", "model": "gpt-4o", "tenant_id": tenant}
    assert (await api.post("shares", again)).status == 409
    changed = await api.patch(f"shares/{own['id']}", {"guaranteed": None, "priority": "batch"})
    assert (changed.json["guaranteed"], changed.json["priority"]) == (None, "batch")
    assert (await api.delete(f"tenants/{tenant}")).status == 409
    assert (await api.delete(f"shares/{own['id']}")).status == 204


async def test_organization_admin_can_read_own_upstream_shares_but_not_change_shares(api: Api) -> None:
    here, there = [(await api.make("organizations", name=name))["id"] for name in ("Acme", "Globex")]
    tenant = (await api.make("tenants", name="Web", organization_id=here))["id"]
    mine = await api.make("shares", upstream="openai", tenant_id=tenant)
    await api.make("shares", upstream="openai", organization_id=there)
    token = await api.make("admin-tokens", name="a", role="admin", organization_id=here)
    people = api.acting_as(token["token"])
    assert [row["id"] for row in (await people.get("shares")).json["items"]] == [mine["id"]]
    assert (await people.patch(f"shares/{mine['id']}", {"weight": 9})).status == 403
    assert (await people.post("shares", {"upstream": "openai", "organization_id": here})).status == 403
