"""Many objects are applied in one transaction: one of them that is wrong is named, and none is applied."""

from __future__ import annotations

from typing import Any

from gateway.core.accounts.budgets import WINDOWS_MAX
from tests.admin.configuration.world import Objects, apply, refused
from tests.admin.conftest import Api

FEW, SOME = 3, 4


async def test_an_organization_is_told_once_of_all_its_changes_and_each_has_an_entry(api: Api) -> None:
    api.counters.away = True
    budgets = [
        {"organization": "Acme", "name": f"b{n}", "unit": "tokens", "amount": 9, "interval": "day"}
        for n in range(FEW)
    ]
    acme = {"name": "Acme", "limits": {"concurrency": 4}}
    done = await apply(api, {"organizations": [acme], "budgets": budgets})
    assert len(done["changes"]) == 1 + FEW
    [(acme_id,)] = api.rows("select id from organization")
    told = api.rows("select verb from control_write where account = %s", f"organization:{acme_id}")
    assert told == [("define",)]
    entries = "select resource, count(*) from audit_log group by resource order by resource"
    assert api.rows(entries) == [("budgets", FEW), ("organizations", 1)]


async def test_one_of_many_that_is_refused_is_named_and_nothing_is_applied(api: Api) -> None:
    budgets = [
        {"organization": "Acme", "name": f"b{n}", "unit": "tokens", "amount": 1 + n, "interval": "day"}
        for n in range(WINDOWS_MAX + 1)
    ]
    objects: Objects = {"organizations": [{"name": "Acme"}], "budgets": budgets}
    wrong = await refused(api, objects, trial=True)
    assert wrong == {
        f"budgets.{WINDOWS_MAX}.name": f"there are {WINDOWS_MAX} budgets of just these calls: "
        "there cannot be more"
    }
    tenants = [{"organization": "Acme", "name": name} for name in ("one", "two", "three")]
    tenants[1]["plan"] = "Dear"
    plans = [{"name": "Dear", "currency": "EUR", "overage_unit_price": "1", "overage_policy": "bill"}]
    objects = {"organizations": [{"name": "Acme"}], "token-plans": plans, "tenants": tenants}
    assert await refused(api, objects, trial=True) == {
        "tenants.1.plan_id": "costs EUR, and the organization pays in USD"
    }
    keys = [
        {"tenant": "Web", "name": name, "issuer": "https://issuer.example", "subject": "same"}
        for name in ("one", "two")
    ]
    tenants = [{"organization": "Acme", "name": "Web"}]
    planned = await api.post(
        "configuration",
        {
            "objects": {"organizations": [{"name": "Acme"}], "tenants": tenants, "api-keys": keys},
            "trial": True,
        },
    )
    assert planned.status == 409, planned.raw
    assert planned.json["detail"].startswith("api-keys.1: There is a key of this subject")
    assert (await api.get("organizations")).json["items"] == []


async def test_a_deleted_user_comes_back_among_many_that_are_new(api: Api) -> None:
    users: list[dict[str, Any]] = [{"organization": "Acme", "external_id": f"u{n}"} for n in range(FEW)]
    objects: Objects = {"organizations": [{"name": "Acme"}], "users": users[:1]}
    await apply(api, objects)
    [user] = [one for one in (await api.get("users")).json["items"] if one["external_id"] == "u0"]
    assert (await api.delete(f"users/{user['id']}")).status == 204
    users[0]["limits"] = {"concurrency": 2}
    done = await apply(api, {**objects, "users": users})
    assert [each["change"] for each in done["changes"]] == ["create"] * FEW
    there = {one["external_id"]: one for one in (await api.get("users")).json["items"]}
    assert (there["u0"]["id"], there["u0"]["limits"]) == (user["id"], {"concurrency": 2})
    assert {"u0", "u1", "u2"} <= there.keys()


async def test_the_ones_that_must_stay_are_found_among_those_that_go(api: Api) -> None:
    names = [f"o{n}" for n in range(40)]
    objects: Objects = {
        "token-plans": [{"name": "Pro"}],
        "organizations": [{"name": name} for name in names],
        "tenants": [{"organization": name, "name": "Web"} for name in names],
    }
    await apply(api, objects)
    owners = {one["name"]: one["id"] for one in (await api.get("organizations?limit=100")).json["items"]}
    webs = {one["organization_id"]: one["id"] for one in (await api.get("tenants?limit=100")).json["items"]}
    # What people made by hand is of theirs.
    await api.make("tenants", organization_id=owners["o3"], name="By hand")
    await api.make("users", organization_id=owners["o17"], external_id="by-hand")
    await api.make("admin-tokens", organization_id=owners["o18"], name="by hand", role="operator")
    day = {"name": "A day", "unit": "tokens", "amount": 9, "interval": "day"}
    await api.make("budgets", organization_id=owners["o30"], tenant_id=webs[owners["o30"]], **day)
    done = await apply(api, {"token-plans": objects["token-plans"]}, prune=True)
    assert {each["name"]: each["stays"] for each in done["changes"] if each["stays"]} == {
        "o3": "The organization still has tenants; delete them first.",
        "o17": "The organization still has users; delete them first.",
        "o18": "Admin tokens are still of this organization; revoke them first.",
        "o30 / Web": "A budget is of this tenant; delete it first.",
        "o30": "The organization still has tenants; delete them first.",
    }
    there = {one["name"] for one in (await api.get("organizations?limit=100")).json["items"]}
    assert there & {*names} == {"o3", "o17", "o18", "o30"}
    [[deleted]] = api.rows(
        "select count(*) from audit_log where action = 'delete' and resource = 'organizations'"
    )
    assert deleted == len(names) - 4


async def test_one_change_of_many_that_is_wrong_is_named_and_none_is_done(api: Api) -> None:
    names = [f"o{n}" for n in range(20)]
    objects: Objects = {
        "organizations": [{"name": name, "credit_unit_cost": "1000000"} for name in names],
    }
    await apply(api, objects)
    for one in objects["organizations"]:
        one["credit_limit"] = 5
    objects["organizations"][13]["credit_limit"] = 10**12
    wrong = await refused(api, objects, trial=True)
    assert list(wrong) == ["organizations.13.credit_limit"]
    limits = {one["credit_limit"] for one in (await api.get("organizations?limit=100")).json["items"]}
    assert limits == {0}


async def test_a_token_of_one_organization_changes_and_prunes_its_own_together(api: Api) -> None:
    owner = await api.make("organizations", name="Mine")
    await api.make("organizations", name="Theirs")
    token = await api.make("admin-tokens", name="t", role="operator", organization_id=owner["id"])
    mine = api.acting_as(token["token"])
    tenants: list[dict[str, Any]] = [{"name": f"t{n}"} for n in range(SOME)]
    await apply(mine, {"tenants": tenants})
    for one in tenants:
        one["limits"] = {"concurrency": 2}
    done = await apply(mine, {"tenants": tenants})
    assert [each["change"] for each in done["changes"]] == ["change"] * SOME
    done = await apply(mine, {"tenants": tenants[:2]}, prune=True)
    assert [each["change"] for each in done["changes"]] == ["delete"] * (SOME - 2)
    limits = [one["limits"] for one in (await mine.get("tenants")).json["items"]]
    assert limits == [{"concurrency": 2}] * 2
