"""Organizations, tenants and users: what may be made, changed and deleted, and what follows from it."""

from __future__ import annotations

from asyncio import gather
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, ROLES, Actor, refused_write
from persistence.engine import plain_url
from persistence.ledger.writer import LedgerWriter
from persistence.row_maxima import MOST, TIMES_A_DAY
from tests.admin.configuration.world import plan
from tests.admin.conftest import Api
from tests.admin.test_catalogue import SERVICE, model
from tests.connections import connected
from tests.persistence.scenario import batch_of, settle_in


async def test_created_organization_returns_every_field_that_was_sent(api: Api) -> None:
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
async def test_name_can_be_used_again_only_after_the_row_with_that_name_is_deleted(
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


async def test_organization_created_with_only_a_name_has_the_defaults(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    assert (made["currency"], made["credit_limit"], made["spend_cap"], made["limits"], made["tax_rate"]) == (
        "USD", 0, None, {}, "0.00",
    )  # fmt: skip


async def test_organization_change_touches_only_the_fields_sent(api: Api) -> None:
    made = await api.make("organizations", name="Acme", limits={"concurrency": 2}, spend_cap="5.00")
    changed = await api.patch(f"organizations/{made['id']}", {"spend_cap": None})
    assert changed.status == 200
    assert changed.json == {**made, "spend_cap": None}
    assert (await api.patch(f"organizations/{made['id']}", {})).json == changed.json
    cleared = await api.patch(f"organizations/{made['id']}", {"limits": None})
    assert cleared.json["limits"] == {}


async def test_answer_to_a_create_request_has_the_location_of_the_new_row(api: Api) -> None:
    answer = await api.post("organizations", {"name": "Acme"})
    assert answer.headers["Location"] == f"/admin/v1/organizations/{answer.json['id']}"
    assert (await api.get(answer.headers["Location"])).status == 200


async def test_tenant_without_an_organization_gets_a_new_organization_of_the_same_name(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    organization = (await api.get(f"organizations/{tenant['organization_id']}")).json
    assert organization["name"] == "web"
    assert api.counters.pushed == [f"organization:{organization['id']}", f"tenant:{tenant['id']}"]


async def test_deleted_organization_accepts_no_new_tenant(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    await api.delete(f"organizations/{made['id']}")
    assert (await api.post("tenants", {"name": "web", "organization_id": made["id"]})).status == 422


async def test_tenant_with_unrevoked_keys_cannot_be_deleted(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    key = await api.make("api-keys", tenant_id=tenant["id"], name="k")
    assert (await api.delete(f"tenants/{tenant['id']}")).status == 409
    await api.post(f"api-keys/{key['id']}/revoke")
    assert (await api.delete(f"tenants/{tenant['id']}")).status == 204
    assert (await api.get(f"tenant-quotas/{tenant['id']}")).status == 404


async def test_tenant_limits_are_sent_to_redis_only_when_changed(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.pushed.clear()
    await api.patch(f"tenants/{tenant['id']}", {"name": "www"})
    refused = await api.patch(f"tenants/{tenant['id']}", {"organization_id": 1})
    assert refused.json["errors"] == [{"field": "organization_id", "message": "cannot be set here"}]
    assert api.counters.pushed == []
    await api.patch(f"tenants/{tenant['id']}", {"user_limits": {"concurrency": 1}})
    assert api.counters.pushed == [f"tenant:{tenant['id']}"]


async def test_user_external_id_is_unique_within_an_organization(api: Api) -> None:
    one = await api.make("organizations", name="One")
    two = await api.make("organizations", name="Two")
    await api.make("users", external_id="ann", organization_id=one["id"])
    await api.make("users", external_id="ann", organization_id=two["id"])
    await api.make("users", external_id="ann")
    for organization_id in (one["id"], None):
        refused = await api.post("users", {"external_id": "ann", "organization_id": organization_id})
        assert refused.status == 409


async def test_deleted_user_created_again_has_the_old_id_but_no_old_name_or_limits(api: Api) -> None:
    organization = await api.make("organizations", name="One")
    sent = {"external_id": "ann", "organization_id": organization["id"]}
    made = await api.make("users", **sent, limits={"concurrency": 4}, name="Ann")
    assert (await api.delete(f"users/{made['id']}")).status == 204
    again = await api.make("users", **sent)
    assert (again["id"], again["limits"], again["name"]) == (made["id"], {}, None)


async def test_built_in_staff_user_cannot_be_deleted(api: Api) -> None:
    [built_in] = (await api.get("users?external_id=built-in")).json["items"]
    assert (await api.delete(f"users/{built_in['id']}")).status == 409
    assert (await api.get(f"users/{built_in['id']}")).status == 200


async def test_changed_user_limits_are_sent_to_redis_for_each_tenant_of_the_organization(api: Api) -> None:
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


async def test_organization_currency_may_change_while_no_money_is_recorded(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    where = f"organizations/{made['id']}"
    await api.make("tenants", name="web", organization_id=made["id"])
    assert (await api.patch(where, {"currency": "EUR", "spend_cap": "5"})).json["currency"] == "EUR"
    await api.make("credit-additions", organization_id=made["id"], credits_added=5, category="promotional")
    assert (await api.patch(where, {"currency": "GBP"})).json["currency"] == "GBP"


@pytest.mark.parametrize("money", ["use", "subscription", "invoice", "overage", "sold"])
async def test_organization_currency_cannot_change_once_money_is_recorded(api: Api, money: str) -> None:
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


async def test_organization_stores_credit_unit_cost_and_auto_top_up_terms(api: Api) -> None:
    terms = {"threshold": 0, "credits": 10, "unit_cost": "0.5000", "invoicing": "prepaid", "monthly_max": 3}
    made = await api.make("organizations", name="Acme", credit_unit_cost="0.02", auto_top_up=terms)
    assert (made["credit_unit_cost"], made["auto_top_up"]) == ("0.02", terms | {"unit_cost": "0.50"})
    off = await api.patch(f"organizations/{made['id']}", {"auto_top_up": None, "credit_unit_cost": None})
    assert (off.json["credit_unit_cost"], off.json["auto_top_up"]) == (None, None)


# --- most of own ------------------------------------------------------------------------
# What an organization's own people make has an end; staff may make more.


def test_every_resource_an_organization_may_create_has_a_maximum_count() -> None:
    actors = [Actor("somebody", role, organization_id=1) for role in ROLES]
    made = {
        name
        for name, resource in RESOURCES.items()
        if resource.create is not None
        and any(refused_write(actor, name, resource.access, CREATE) is None for actor in actors)
    }
    assert made == MOST.keys()


@dataclass(frozen=True)
class Kind:
    """How rows of a kind are made: many in its table, and one by the Admin API. `owner` is whose they are."""

    table: str
    rows: str
    one: str
    more: dict[str, Any] = field(default_factory=dict)
    owner: str = "organization_id"
    gone: str = "deleted_at"


KINDS = {
    "webhooks": Kind("webhook (organization_id, url, secret)", "'https://x.example/' || n, 's'", "url"),
    "tenants": Kind("tenant (organization_id, name)", "'k' || n", "name"),
    "users": Kind("app_user (organization_id, external_id)", "'k' || n", "external_id"),
    "api-keys": Kind(
        "api_key (tenant_id, name, digest, prefix)", "'k' || n, lpad(to_hex(n), 64, '0'), 'tk_'", "name",
        owner="tenant_id", gone="revoked_at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_organization_at_the_maximum_cannot_create_more_until_a_row_ends_but_staff_can(
    api: Api, kind: str
) -> None:
    how = KINDS[kind]
    acme = (await api.make("organizations", name="Acme"))["id"]
    globex = (await api.make("organizations", name="Globex"))["id"]
    await api.make("tenants", organization_id=globex, name="Others count for nothing")
    web = (await api.make("tenants", organization_id=acme, name="Web"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    owner = web if how.owner == "tenant_id" else acme
    numbers = "generate_series(1, %s) as n returning id"
    rows = api.rows(
        f"insert into {how.table} select %s, {how.rows} from {numbers}",
        owner,
        MOST[kind] - (kind == "tenants"),
    )

    def one(name: str) -> dict[str, Any]:
        return {how.owner: owner, how.one: f"https://hooks.example.com/{name}" if how.one == "url" else name}

    refused = await theirs.post(kind, one("one"))
    assert refused.status == 409
    assert f"at most {MOST[kind]} {kind.replace('-', ' ')}" in refused.json["detail"]
    table = how.table.split()[0]
    api.rows(f"update {table} set {how.gone} = now() where id = %s", rows[0][0])
    await theirs.make(kind, **one("one"))
    assert (await theirs.post(kind, one("two"))).status == 409
    await api.make(kind, **one("two"))


async def test_concurrent_creations_never_exceed_the_maximum_count_of_an_organization(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    api.rows(
        "insert into webhook (organization_id, url, secret) select %s, 'https://x.example/' || n, 's'"
        " from generate_series(1, %s) as n returning id", acme, MOST["webhooks"] - 2,
    )  # fmt: skip
    answers = await gather(
        *(theirs.post("webhooks", {"url": f"https://hooks.example.com/{number}"}) for number in range(6))
    )
    assert sorted(answer.status for answer in answers) == [201, 201, 409, 409, 409, 409]


async def test_creation_waiting_too_long_for_another_creation_of_the_organization_is_503(
    api: Api, admin_database: str
) -> None:
    acme, globex = [(await api.make("organizations", name=name))["id"] for name in ("Acme", "Globex")]
    theirs, others = [
        api.acting_as((await api.make("admin-tokens", name="t", role="admin", organization_id=one))["token"])
        for one in (acme, globex)
    ]
    with connected(plain_url(admin_database)) as other:
        other.execute("SELECT pg_advisory_xact_lock(7812, hashint8(%s))", (acme,))
        refused = await theirs.post("tenants", {"organization_id": acme, "name": "Web"})
        assert (refused.status, refused.json["detail"]) == (
            503, "Others of this organization make some as well, and take long: try again in a while.",
        )  # fmt: skip
        await others.make("tenants", organization_id=globex, name="Web")
        await api.make("tenants", organization_id=acme, name="Of staff")
    await theirs.make("tenants", organization_id=acme, name="Web")


async def test_number_of_keys_created_in_a_day_is_limited_even_if_revoked(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    web = (await api.make("tenants", organization_id=acme, name="Web"))["id"]
    token = await api.make("admin-tokens", name="t", role="member", organization_id=acme)
    theirs = api.acting_as(token["token"])
    most = TIMES_A_DAY * MOST["api-keys"]
    api.rows(
        "insert into api_key (tenant_id, name, digest, prefix, revoked_at)"
        " select %s, 'k', lpad(to_hex(n), 64, '0'), 'tk_', now() from generate_series(1, %s) as n"
        " returning id",
        web, most,
    )  # fmt: skip
    refused = await theirs.post("api-keys", {"tenant_id": web, "name": "one"})
    assert refused.status == 409
    assert f"at most {most} api keys within 24 hours" in refused.json["detail"]
    await api.make("api-keys", tenant_id=web, name="of staff")
    api.rows(
        "update api_key set created_at = created_at - interval '25 hours' where id ="
        " (select min(id) from api_key where tenant_id = %s) returning id", web,
    )  # fmt: skip
    assert (await theirs.post("api-keys", {"tenant_id": web, "name": "two"})).status == 409
    api.rows(
        "update api_key set created_at = created_at - interval '25 hours' where id in"
        " (select id from api_key where tenant_id = %s and name = 'k' limit 2) returning id", web,
    )  # fmt: skip
    await theirs.make("api-keys", tenant_id=web, name="three")


async def test_configuration_exceeding_the_maximum_of_an_organization_creates_no_row(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    token = await api.make("admin-tokens", name="t", role="admin", organization_id=acme)
    theirs = api.acting_as(token["token"])
    more: dict[str, list[dict[str, Any]]] = {
        "webhooks": [{"url": f"https://hooks.example.com/{number}"} for number in range(2)],
        "tenants": [{"name": f"t{number}"} for number in range(2)],
    }
    for kind, some in more.items():  # the first of both would fit
        numbers = "generate_series(1, %s) as n returning id"
        api.rows(
            f"insert into {KINDS[kind].table} select %s, {KINDS[kind].rows} from {numbers}",
            acme,
            MOST[kind] - 1,
        )
        digest = (await plan(theirs, {kind: some}))["digest"]
        refused = await theirs.post("configuration", {"objects": {kind: some}, "digest": digest})
        assert refused.status == 409
        field = KINDS[kind].one
        names = {row[field] for row in (await theirs.get(f"{kind}?limit=1000")).json["items"]}
        assert names.isdisjoint(one[field] for one in some)


# --- references -------------------------------------------------------------------------
# What something still refers to is not deleted, and says what has to go first.


async def kept_by(api: Api, kept: str, said: str) -> None:
    """Refused while it is referred to, with the sentence that says why."""
    refused = await api.delete(kept)
    assert (refused.status, refused.json["detail"]) == (409, said)


async def test_key_service_user_or_tenant_still_referenced_cannot_be_deleted(api: Api) -> None:
    acme = (await api.make("organizations", name="Acme"))["id"]
    web = (await api.make("tenants", name="web", organization_id=acme))["id"]
    user = (await api.make("users", external_id="ann", organization_id=acme))["id"]
    service = (await api.make("services", **SERVICE, business_model_id=await model(api)))["id"]
    key = (await api.make("api-keys", tenant_id=web, name="k"))["id"]
    of_acme = {"organization_id": acme, "name": "b"}
    budget = of_acme | {"unit": "requests", "amount": 1, "interval": "total"}
    token = of_acme | {"role": "member"}
    await kept_by(api, f"tenants/{web}", "The tenant still has API keys that are not revoked.")
    for kept, kind, sent, said in (
        (f"api-keys/{key}", "budgets", budget | {"api_key_id": key}, "A budget is of this key"),
        (f"services/{service}", "budgets", budget | {"service_id": service}, "A budget is of this"),
        (f"users/{user}", "admin-tokens", token | {"user_id": user}, "Admin tokens still belong to"),
        (f"tenants/{web}", "budgets", budget | {"tenant_id": web}, "A budget is of this tenant"),
        (f"tenants/{web}", "shares", {"upstream": "up", "tenant_id": web}, "A share is of this tenant"),
        (f"tenants/{web}", "admin-tokens", token | {"tenant_id": web}, "Admin tokens are of this tenant"),
    ):
        made = await api.make(kind, **sent)
        refused = await api.delete(kept)
        assert (refused.status, refused.json["detail"].startswith(said)) == (409, True)
        assert (await api.delete(f"{kind}/{made['id']}")).status == 204
        if kept.startswith("api-keys"):
            assert (await api.delete(kept)).status == 204
    for kept in (f"tenants/{web}", f"users/{user}", f"services/{service}"):
        assert (await api.delete(kept)).status == 204


async def test_service_included_in_a_subscription_plan_cannot_be_deleted(api: Api) -> None:
    service = await api.make("services", **SERVICE, business_model_id=await model(api))
    other = await api.make("services", **{**SERVICE, "key": "sear"}, business_model_id=await model(api))
    plan = await api.make(
        "subscription-plans", name="Pro", monthly_cost="1", annual_cost="10", feature_access=["search"]
    )
    await kept_by(api, f"services/{service['id']}", "Subscription plans still include this service.")
    assert (await api.delete(f"services/{other['id']}")).status == 204
    assert (await api.delete(f"subscription-plans/{plan['id']}")).status == 204
    assert (await api.delete(f"services/{service['id']}")).status == 204


async def test_token_plan_used_by_a_tenant_or_subscription_plan_cannot_be_deleted(api: Api) -> None:
    plan = await api.make("token-plans", name="Small", total_amount=10)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    await kept_by(api, f"token-plans/{plan['id']}", "Tenants still follow this plan; move them first.")
    await api.patch(f"tenants/{tenant['id']}", {"plan_id": None})
    sold = await api.make(
        "subscription-plans",
        name="Pro",
        monthly_cost="1",
        annual_cost="10",
        feature_access=[],
        token_plan_id=plan["id"],
    )
    await kept_by(api, f"token-plans/{plan['id']}", "Subscription plans still name this plan.")
    assert (await api.delete(f"subscription-plans/{sold['id']}")).status == 204
    assert (await api.delete(f"token-plans/{plan['id']}")).status == 204


async def test_organization_with_tenants_or_users_cannot_be_deleted(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    here = f"organizations/{made['id']}"
    user = await api.make("users", external_id="ann", organization_id=made["id"])
    tenant = await api.make("tenants", name="web", organization_id=made["id"])
    await kept_by(api, here, "The organization still has tenants; delete them first.")
    await api.delete(f"tenants/{tenant['id']}")
    await kept_by(api, here, "The organization still has users; delete them first.")
    await api.delete(f"users/{user['id']}")
    assert (await api.delete(here)).status == 204
    assert (await api.get(here)).status == 404
    assert (await api.delete(here)).status == 404
    assert (await api.patch(here, {"name": "x"})).status == 404
    assert (await api.get("organizations")).json["items"] == []


async def test_organization_with_a_subscription_or_unbilled_money_cannot_be_deleted(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    plan = await api.make(
        "subscription-plans", name="Pro", monthly_cost="1", annual_cost="10", feature_access=[]
    )
    subscription = await api.make(
        "organization-subscriptions", organization_id=made["id"], plan_id=plan["id"],
        start_date="2020-01-01", end_date="2999-01-01",
    )  # fmt: skip
    invoice = await api.make(
        "invoices", organization_id=made["id"], period_start="2020-01-01", period_end="2020-02-01"
    )
    here = f"organizations/{made['id']}"
    await kept_by(api, here, "The organization's subscription is not over; cancel it first.")
    await kept_by(api, f"subscription-plans/{plan['id']}", "Organizations still subscribe to this plan.")
    await api.post(f"organization-subscriptions/{subscription['id']}/cancel", {"when": "now"})
    await kept_by(api, here, "The organization has invoices that are not finalized.")
    assert (await api.delete(f"invoices/{invoice['id']}")).status == 204
    refused = await api.delete(here)
    assert (refused.status, "is billed: USD " in refused.json["detail"]) == (409, True)
    today = datetime.now(UTC).date()
    last = await api.make(
        "invoices", organization_id=made["id"], period_start=str(today), period_end=str(today + timedelta(2))
    )
    await api.post(f"invoices/{last['id']}/finalize")
    assert (await api.delete(here)).status == 204


async def test_user_with_unrevoked_admin_tokens_cannot_be_deleted(api: Api) -> None:
    user = await api.make("users", external_id="ann")
    token = await api.make("admin-tokens", name="t", role="admin", user_id=user["id"])
    await kept_by(api, f"users/{user['id']}", "Admin tokens still belong to this user; delete them first.")
    await api.post(f"admin-tokens/{token['id']}/revoke")
    assert (await api.delete(f"users/{user['id']}")).status == 204
