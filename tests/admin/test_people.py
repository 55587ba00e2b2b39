"""Organizations, tenants and users: what may be made, changed and deleted, and what follows from it."""

from __future__ import annotations

import pytest

from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import Api
from tests.in_turn import in_turn
from tests.persistence.scenario import batch_of, settle_in


async def test_an_organization_answers_as_it_was_made(api: Api) -> None:
    sent = {
        "name": "Acme",
        "currency": "EUR",
        "credit_limit": 500,
        "spend_cap": "100.50",
        "limits": {"requests_per_minute": 10, "concurrency": 2},
        "tax_rate": "0.20",
    }
    made = await api.make("organizations", **sent)
    assert {name: made[name] for name in sent} == sent
    assert made["credit_balance"] == 0
    assert (await api.get(f"organizations/{made['id']}")).json == made


@pytest.mark.parametrize(
    ("resource", "more"),
    [
        ("organizations", {}),
        ("tenants", {}),
        ("token-plans", {}),
        ("subscription-plans", {"monthly_cost": "1", "annual_cost": "9", "feature_access": []}),
    ],
)
async def test_a_name_is_its_owners_own_until_its_row_is_deleted(
    api: Api, resource: str, more: dict[str, object]
) -> None:
    made = await api.make(resource, name="Acme", **more)
    again = await api.post(resource, {"name": "Acme", **more})
    assert (again.status, "(name)" in again.json["detail"]) == (409, True)
    other = await api.make(resource, name="Ajax", **more)
    taken = await api.patch(f"{resource}/{other['id']}", {"name": "Acme"})
    if resource == "tenants":  # each organization has names of its own
        assert taken.status == 200
        return
    assert taken.status == 409
    assert (await api.call("DELETE", f"{resource}/{made['id']}")).status == 204
    await api.make(resource, name="Acme", **more)


async def test_defaults_of_an_organization(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    assert (made["currency"], made["credit_limit"], made["spend_cap"], made["limits"], made["tax_rate"]) == (
        "USD", 0, None, {}, "0.00",
    )  # fmt: skip


async def test_a_change_touches_only_the_fields_sent(api: Api) -> None:
    made = await api.make("organizations", name="Acme", limits={"concurrency": 2}, spend_cap="5.00")
    changed = await api.patch(f"organizations/{made['id']}", {"spend_cap": None})
    assert changed.status == 200
    assert changed.json == {**made, "spend_cap": None}
    assert (await api.patch(f"organizations/{made['id']}", {})).json == changed.json
    cleared = await api.patch(f"organizations/{made['id']}", {"limits": None})
    assert cleared.json["limits"] == {}


async def test_a_created_row_says_where_it_is(api: Api) -> None:
    answer = await api.post("organizations", {"name": "Acme"})
    assert answer.headers["Location"] == f"/admin/v1/organizations/{answer.json['id']}"
    assert (await api.get(answer.headers["Location"])).status == 200


async def test_an_organization_with_tenants_or_users_stays(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name="web", organization_id=made["id"])
    user = await api.make("users", external_id="ann", organization_id=made["id"])
    where = f"organizations/{made['id']}"
    assert (await api.delete(where)).status == 409
    assert (await api.delete(f"tenants/{tenant['id']}")).status == 204
    assert (await api.delete(where)).status == 409
    assert (await api.delete(f"users/{user['id']}")).status == 204
    assert (await api.delete(where)).status == 204
    assert (await api.get(where)).status == 404
    assert (await api.delete(where)).status == 404
    assert (await api.patch(where, {"name": "x"})).status == 404
    assert (await api.get("organizations")).json["items"] == []


async def test_a_tenant_without_organization_gets_one_of_its_name(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    organization = (await api.get(f"organizations/{tenant['organization_id']}")).json
    assert organization["name"] == "web"
    assert api.counters.pushed == [f"organization:{organization['id']}", f"tenant:{tenant['id']}"]


async def test_a_tenant_never_changes_organization(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    other = await api.make("organizations", name="Other")
    refused = await api.patch(f"tenants/{tenant['id']}", {"organization_id": other["id"]})
    assert refused.status == 422
    assert refused.json["errors"] == [{"field": "organization_id", "message": "cannot be set here"}]


@in_turn("field", ["organization_id", "plan_id"])
async def test_a_tenant_refers_only_to_what_is_there(api: Api, field: str) -> None:
    refused = await api.post("tenants", {"name": "web", field: 99})
    assert refused.status == 422
    assert refused.json["errors"][0]["field"] == field
    assert (await api.get("tenants")).json["items"] == []
    assert api.rows("select * from control_write") == []


async def test_a_deleted_organization_takes_no_tenants(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    await api.delete(f"organizations/{made['id']}")
    assert (await api.post("tenants", {"name": "web", "organization_id": made["id"]})).status == 422


async def test_a_tenant_with_working_keys_stays(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    key = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    assert (await api.delete(f"tenants/{tenant['id']}")).status == 409
    await api.post(f"api-keys/{key['id']}/revoke")
    assert (await api.delete(f"tenants/{tenant['id']}")).status == 204
    assert (await api.get(f"tenant-quotas/{tenant['id']}")).status == 404


async def test_limits_are_loaded_anew_when_they_change_and_only_then(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.pushed.clear()
    await api.patch(f"tenants/{tenant['id']}", {"name": "www"})
    assert api.counters.pushed == []
    await api.patch(f"tenants/{tenant['id']}", {"user_limits": {"concurrency": 1}})
    assert api.counters.pushed == [f"tenant:{tenant['id']}"]


async def test_users_are_unique_within_their_organization(api: Api) -> None:
    one = await api.make("organizations", name="One")
    two = await api.make("organizations", name="Two")
    await api.make("users", external_id="ann", organization_id=one["id"])
    await api.make("users", external_id="ann", organization_id=two["id"])
    await api.make("users", external_id="ann")
    for organization_id in (one["id"], None):
        refused = await api.post("users", {"external_id": "ann", "organization_id": organization_id})
        assert refused.status == 409


async def test_a_deleted_user_can_come_back(api: Api) -> None:
    organization = await api.make("organizations", name="One")
    sent = {"external_id": "ann", "organization_id": organization["id"]}
    made = await api.make("users", **sent, limits={"concurrency": 4}, name="Ann")
    assert (await api.delete(f"users/{made['id']}")).status == 204
    again = await api.make("users", **sent)
    assert (again["id"], again["limits"], again["name"]) == (made["id"], {}, None)


async def test_the_built_in_staff_user_stays(api: Api) -> None:
    [built_in] = (await api.get("users?external_id=built-in")).json["items"]
    assert (await api.delete(f"users/{built_in['id']}")).status == 409
    assert (await api.get(f"users/{built_in['id']}")).status == 200


async def test_a_users_limits_reach_each_tenant_of_the_organization(api: Api) -> None:
    organization = await api.make("organizations", name="One")
    tenants = [await api.make("tenants", name=name, organization_id=organization["id"]) for name in "ab"]
    api.counters.pushed.clear()
    user = await api.make(
        "users", external_id="a:b", organization_id=organization["id"], limits={"concurrency": 1}
    )
    expected = [f"user:{tenant['id']}:a:b" for tenant in tenants]
    assert api.counters.pushed == expected
    await api.patch(f"users/{user['id']}", {"limits": {"concurrency": 2}})
    assert api.counters.pushed == expected * 2


async def test_a_currency_is_changed_while_there_is_no_money_in_it(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    where = f"organizations/{made['id']}"
    await api.make("tenants", name="web", organization_id=made["id"])
    assert (await api.patch(where, {"currency": "EUR", "spend_cap": "5"})).json["currency"] == "EUR"
    await api.make("credit-additions", organization_id=made["id"], credits_added=5, category="promotional")
    assert (await api.patch(where, {"currency": "GBP"})).json["currency"] == "GBP"


@pytest.mark.parametrize("money", ["use", "subscription", "invoice", "overage", "sold"])
async def test_what_was_in_one_currency_is_never_in_another(api: Api, money: str) -> None:
    made = await api.make("organizations", name="Acme")
    where = f"organizations/{made['id']}"
    match money:
        case "use":
            [account] = settle_in(api.url, 1000)
            account.reset()
            account.consume(1, units=3, spend=4)
            writer = LedgerWriter(api.url)
            await writer.write(batch_of(account))
            writer.close()
            where = f"organizations/{account.organization_id}"
        case "subscription":
            plan = await api.make("subscription-plans", name="pro", monthly_cost="10", annual_cost="100",
                                  feature_access=[])  # fmt: skip
            sent = {"start_date": "2026-01-01", "end_date": "2100-01-01"}
            await api.make(
                "organization-subscriptions", organization_id=made["id"], plan_id=plan["id"], **sent
            )
        case "invoice":
            period = {"period_start": "2026-01-01", "period_end": "2026-02-01"}
            await api.make("invoices", organization_id=made["id"], **period)
        case "overage":
            [account] = settle_in(api.url, 1000)
            account.reset()
            account.consume(1)
            writer = LedgerWriter(api.url)
            await writer.write(batch_of(account))
            writer.close()
            plan = await api.make(
                "token-plans", name="bill", overage_policy="bill", overage_unit_price="0.01"
            )
            api.rows(
                "UPDATE tenant SET plan_id = %s WHERE id = %s RETURNING id", plan["id"], account.tenant_id
            )
            where = f"organizations/{account.organization_id}"
        case _:
            sold = {"credits_added": 5, "category": "paid", "unit_cost": "0.01"}
            await api.make("credit-additions", organization_id=made["id"], **sold)
    before = (await api.get(where)).json
    refused = await api.patch(where, {"currency": "JPY", "name": "other"})
    assert refused.status == 409
    assert "Make another organization in JPY" in refused.json["detail"]
    assert (await api.get(where)).json == before
    assert (await api.patch(where, {"currency": before["currency"], "name": "other"})).status == 200


@in_turn(
    ("sent", "field"),
    [
        ({"credit_unit_cost": "0"}, "credit_unit_cost"),
        ({"credit_unit_cost": "-1"}, "credit_unit_cost"),
        ({"credit_unit_cost": 1}, "credit_unit_cost"),
        ({"auto_top_up": {"threshold": -1, "credits": 10, "unit_cost": "1"}}, "auto_top_up.threshold"),
        ({"auto_top_up": {"threshold": 1, "credits": 0, "unit_cost": "1"}}, "auto_top_up.credits"),
        ({"auto_top_up": {"threshold": 1, "credits": 10, "unit_cost": "0"}}, "auto_top_up.unit_cost"),
        ({"auto_top_up": {"threshold": 1, "credits": 10, "unit_cost": "0.0001"}}, "auto_top_up.unit_cost"),
        ({"auto_top_up": {"threshold": 1, "credits": 10}}, "auto_top_up.unit_cost"),
        (
            {"auto_top_up": {"threshold": 1, "credits": 10, "unit_cost": "1", "monthly_max": 101}},
            "auto_top_up.monthly_max",
        ),
        (
            {"auto_top_up": {"threshold": 1, "credits": 10, "unit_cost": "1", "invoicing": "next"}},
            "auto_top_up.invoicing",
        ),
    ],
)
async def test_what_is_no_price_for_credits_is_refused_by_its_field(
    api: Api, sent: dict[str, object], field: str
) -> None:
    refused = await api.post("organizations", {"name": "Acme", **sent})
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])


async def test_an_organization_says_what_credits_cost_it(api: Api) -> None:
    terms = {"threshold": 0, "credits": 10, "unit_cost": "0.5000", "invoicing": "prepaid", "monthly_max": 3}
    made = await api.make("organizations", name="Acme", credit_unit_cost="0.02", auto_top_up=terms)
    assert (made["credit_unit_cost"], made["auto_top_up"]) == ("0.02", terms | {"unit_cost": "0.50"})
    off = await api.patch(f"organizations/{made['id']}", {"auto_top_up": None, "credit_unit_cost": None})
    assert (off.json["credit_unit_cost"], off.json["auto_top_up"]) == (None, None)
