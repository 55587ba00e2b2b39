"""Writes that compare stored money: accounts are closed before them, and by a configuration too."""

from __future__ import annotations

import pytest

from tests.admin.conftest import Api


@pytest.fixture
async def ids(api: Api) -> dict[str, int]:
    organization = (await api.make("organizations", name="Acme"))["id"]
    tenant = (await api.make("tenants", name="web", organization_id=organization))["id"]
    return {"organization": organization, "tenant": tenant}


async def test_deletions_and_a_currency_close_the_accounts_first(api: Api, ids: dict[str, int]) -> None:
    where = f"organizations/{ids['organization']}"
    assert (await api.patch(where, {"name": "Other", "currency": "USD"})).status == 200
    assert api.counters.settled == []
    assert (await api.patch(where, {"currency": "EUR"})).status == 200
    assert (await api.delete(f"tenants/{ids['tenant']}")).status == 204
    assert (await api.delete(where)).status == 204
    assert api.counters.settled == [ids["organization"]] * 3


async def test_writes_that_cannot_close_the_accounts_in_time_change_nothing(
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


async def test_a_configuration_closes_the_accounts_first(api: Api, ids: dict[str, int]) -> None:
    wish = {"objects": {"organizations": [{"name": "Acme", "currency": "EUR"}]}}
    planned = await api.post("configuration", wish)
    api.counters.behind = True
    refused = await api.post("configuration", {**wish, "digest": planned.json["digest"]})
    assert refused.status == 409
    api.counters.behind = False
    assert (await api.post("configuration", {**wish, "digest": planned.json["digest"]})).status == 200
    assert api.counters.settled[-1] == ids["organization"]
    assert (await api.get(f"organizations/{ids['organization']}")).json["currency"] == "EUR"
