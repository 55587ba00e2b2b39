"""Writes that compare stored money: accounts are closed before them, and by a configuration too."""

from __future__ import annotations

import pytest

from gateway.core.accounts.administration import Realm
from tests.admin.conftest import Api


@pytest.fixture
async def ids(api: Api) -> dict[str, int]:
    organization = (await api.make("organizations", name="Acme"))["id"]
    tenant = (await api.make("tenants", name="web", organization_id=organization))["id"]
    return {"organization": organization, "tenant": tenant}


async def test_tenant_or_organization_deletion_and_currency_change_first_settle_the_accounts(
    api: Api, ids: dict[str, int]
) -> None:
    where = f"organizations/{ids['organization']}"
    assert (await api.patch(where, {"name": "Other", "currency": "USD"})).status == 200
    assert api.counters.settled == []
    assert (await api.patch(where, {"currency": "EUR"})).status == 200
    assert (await api.delete(f"tenants/{ids['tenant']}")).status == 204
    assert (await api.delete(where)).status == 204
    organization, tenant = ids["organization"], ids["tenant"]
    assert api.counters.settled == [Realm(organization), Realm(organization, tenant), Realm(organization)]


async def test_deletion_and_currency_change_are_409_and_change_no_row_while_accounts_cannot_settle(
    api: Api, ids: dict[str, int]
) -> None:
    api.counters.behind = True
    where, tenant = f"organizations/{ids['organization']}", f"tenants/{ids['tenant']}"
    for refused in (await api.patch(where, {"currency": "EUR"}), await api.delete(tenant)):
        assert refused.status == 409
        assert refused.headers["Retry-After"] == "1"
        assert "try again" in refused.json["detail"]
    assert (await api.get(where)).json["currency"] == "USD"
    assert (await api.get(tenant)).status == 200


async def test_tenant_or_organization_with_open_calls_cannot_be_deleted_or_change_currency(
    api: Api, ids: dict[str, int]
) -> None:
    tenant, where = Realm(ids["organization"], ids["tenant"]), f"organizations/{ids['organization']}"
    api.counters.calling = {tenant, Realm(ids["organization"])}
    answers = [await api.delete(f"tenants/{ids['tenant']}"), await api.patch(where, {"currency": "EUR"})]
    api.counters.calling.remove(tenant)
    assert (await api.delete(f"tenants/{ids['tenant']}")).status == 204
    answers.append(await api.delete(where))
    for refused in answers:
        assert refused.status == 409
        assert refused.headers["Retry-After"] == "1"
        assert "Calls, holds or jobs are still open" in refused.json["detail"]
    api.counters.calling.clear()
    assert (await api.delete(where)).status == 204


async def test_configuration_apply_that_would_delete_a_tenant_with_open_calls_is_refused(
    api: Api, ids: dict[str, int]
) -> None:
    tenants = [{"name": name, "organization": "Acme"} for name in ("kept", "quiet", "busy")]
    wish = {"objects": {"tenants": tenants}}
    planned = await api.post("configuration", wish)
    assert (await api.post("configuration", {**wish, "digest": planned.json["digest"]})).status == 200
    [busy] = (await api.get("tenants?search=busy")).json["items"]
    api.counters.calling = {Realm(ids["organization"], busy["id"])}
    refused = await api.post(
        "configuration", {"objects": {"tenants": tenants[:1]}, "prune": True, "trial": True}
    )
    assert refused.status == 409
    assert refused.headers["Retry-After"] == "1"
    assert "still open" in refused.json["detail"]
    assert (await api.get(f"tenants/{busy['id']}")).status == 200


async def test_configuration_apply_that_changes_a_currency_first_settles_the_accounts(
    api: Api, ids: dict[str, int]
) -> None:
    wish = {"objects": {"organizations": [{"name": "Acme", "currency": "EUR"}]}}
    planned = await api.post("configuration", wish)
    api.counters.behind = True
    refused = await api.post("configuration", {**wish, "digest": planned.json["digest"]})
    assert refused.status == 409
    api.counters.behind = False
    assert (await api.post("configuration", {**wish, "digest": planned.json["digest"]})).status == 200
    assert api.counters.settled[-1] == Realm(ids["organization"])
    assert (await api.get(f"organizations/{ids['organization']}")).json["currency"] == "EUR"
