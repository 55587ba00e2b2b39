"""Services, business models, negotiated prices and subscription plans."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

from gateway.core.billing.money import read_pricing
from gateway.core.calls.tariff import misfit
from tests.admin.conftest import Answer, Api
from tests.connections import connected

SERVICE = {"name": "Search", "key": "search", "credits": 3, "service_type": "Pay-As-You-Go"}


async def model(api: Api, name: str = "Consumption") -> int:
    return int((await api.get(f"business-models?name={name}")).json["items"][0]["id"])


async def test_three_built_in_business_models_cannot_be_deleted_or_given_another_meter(api: Api) -> None:
    found = (await api.get("business-models")).json["items"]
    assert [(row["name"], row["meter"]) for row in found] == [
        ("Consumption", "consumption"),
        ("Subscription", "subscription"),
        ("Pay-Per-Use", "pay_per_use"),
    ]
    for row in found:
        assert (await api.delete(f"business-models/{row['id']}")).status == 409
        assert (await api.patch(f"business-models/{row['id']}", {"meter": "consumption"})).status == 409
        assert (await api.patch(f"business-models/{row['id']}", {"description": "x"})).status == 200


async def test_business_model_in_use_by_a_service_cannot_be_deleted(api: Api) -> None:
    made = await api.make("business-models", name="Prepaid", meter="consumption")
    assert (await api.post("business-models", {"name": "Prepaid", "meter": "consumption"})).status == 409
    service = await api.make("services", **SERVICE, business_model_id=made["id"])
    assert (await api.delete(f"business-models/{made['id']}")).status == 409
    assert (await api.delete(f"services/{service['id']}")).status == 204
    assert (await api.delete(f"business-models/{made['id']}")).status in {204, 409}


async def test_new_service_and_new_price_update_gateways_but_a_renamed_service_does_not(api: Api) -> None:
    made = await api.make("services", **SERVICE, business_model_id=await model(api))
    assert api.counters.pushed == ["catalogue"]
    await api.patch(f"services/{made['id']}", {"name": "Find"})
    assert api.counters.pushed == ["catalogue"]
    await api.patch(f"services/{made['id']}", {"credits": 4})
    assert api.counters.pushed == ["catalogue"] * 2
    assert api.rows("select distinct partition from control_write") == [(None,)]


async def test_counts_tokens_setting_of_a_service_or_negotiated_price_may_be_left_unset(api: Api) -> None:
    built_in = (await api.get("services?key=chat")).json["items"][0]
    assert built_in["counts_tokens"] is None
    organization = await api.make("organizations", name="Acme")
    made = await api.make("services", **SERVICE, business_model_id=await model(api))
    price = await api.make(
        "organization-services", organization_id=organization["id"], service_id=made["id"],
        negotiated_credits=1,
    )  # fmt: skip
    assert (made["counts_tokens"], price["counts_tokens"]) == (None, None)
    for path in f"services/{made['id']}", f"organization-services/{price['id']}":
        for said in True, None, False, None, False, True:
            pushed = len(api.counters.pushed)
            assert (await api.patch(path, {"counts_tokens": said})).json["counts_tokens"] is said
            assert (await api.get(path)).json["counts_tokens"] is said
            assert len(api.counters.pushed) == pushed + 1
        # What is not named stays.
        assert (await api.patch(path, {"pricing": None})).json["counts_tokens"] is True
    said_at_once = {**SERVICE, "key": "free", "counts_tokens": False, "business_model_id": await model(api)}
    assert (await api.make("services", **said_at_once))["counts_tokens"] is False


async def test_service_key_cannot_be_reused_until_the_service_is_deleted(api: Api) -> None:
    sent = {**SERVICE, "business_model_id": await model(api)}
    first = await api.make("services", **sent)
    assert (await api.post("services", sent)).status == 409
    assert (await api.delete(f"services/{first['id']}")).status == 204
    second = await api.make("services", **sent)
    assert second["id"] != first["id"]


async def test_a_service_is_bound_to_an_upstream_and_paths(api: Api) -> None:
    plain = await api.make("services", **SERVICE, business_model_id=await model(api))
    assert (plain["upstream"], plain["paths"]) == (None, None)
    where = f"services/{plain['id']}"
    changed = await api.patch(where, {"upstream": "sms-1", "paths": ["/v1/sms/*", "/v1/*/status"]})
    assert (changed.json["upstream"], changed.json["paths"]) == ("sms-1", ["/v1/sms/*", "/v1/*/status"])
    assert api.counters.pushed == ["catalogue"] * 2
    again = await api.patch(where, {"upstream": None, "paths": None})
    assert (again.json["upstream"], again.json["paths"]) == (None, None)


async def test_second_negotiated_price_of_an_organization_for_the_same_service_is_refused(api: Api) -> None:
    organization = await api.make("organizations", name="Acme")
    service = await api.make("services", **SERVICE, business_model_id=await model(api))
    sent = {"organization_id": organization["id"], "service_id": service["id"], "negotiated_credits": 1}
    made = await api.make("organization-services", **sent)
    assert (await api.post("organization-services", sent)).status == 409
    assert (await api.delete(f"services/{service['id']}")).status == 409
    changed = await api.patch(f"organization-services/{made['id']}", {"negotiated_credits": 0})
    assert changed.json["negotiated_credits"] == 0
    assert (await api.patch(f"organization-services/{made['id']}", {"service_id": 1})).status == 422
    assert (await api.delete(f"organization-services/{made['id']}")).status == 204
    assert (await api.delete(f"services/{service['id']}")).status == 204


async def test_discount_of_a_negotiated_price_is_a_fraction(api: Api) -> None:
    organization = await api.make("organizations", name="Acme")
    service = await api.make("services", **SERVICE, business_model_id=await model(api))
    sent = {"organization_id": organization["id"], "service_id": service["id"], "negotiated_credits": 1}
    refused = await api.post("organization-services", sent | {"discount": "1.1"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "discount")
    made = await api.make("organization-services", **sent, discount="0.10")
    assert made["discount"] == "0.10"
    where = f"organization-services/{made['id']}"
    assert (await api.patch(where, {"negotiated_credits": 2})).json["discount"] == "0.10"
    assert (await api.patch(where, {"discount": None})).json["discount"] is None


async def test_subscription_plan_that_includes_an_unknown_service_is_refused(api: Api) -> None:
    sent = {"name": "Gold", "monthly_cost": "10.00", "annual_cost": "99.00", "feature_access": ["chat"]}
    made = await api.make("subscription-plans", **sent)
    assert {name: made[name] for name in sent} == sent
    refused = await api.post("subscription-plans", {**sent, "feature_access": ["chat", "teleport"]})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "feature_access")


TIERED: dict[str, Any] = {"tiers": [{"up_to": None, "unit_price": "0.50"}]}
BY_TOKEN: dict[str, Any] = {"per_million": {"*": {"input": 1, "output": 2}}}
IN_MONEY: dict[str, Any] = {"at_cost": {"markup": "1.2"}}
IN_CREDITS: dict[str, Any] = {"at_cost": {"markup": "1.2", "credits_per_unit": "250"}}
MISFITS = [
    ("consumption", IN_MONEY, "pricing.at_cost.credits_per_unit"),
    ("pay_per_use", IN_CREDITS, "pricing.at_cost.credits_per_unit"),
    ("subscription", IN_MONEY, "pricing"), ("subscription", IN_CREDITS, "pricing"),
    ("consumption", TIERED, "pricing.tiers"), ("pay_per_use", BY_TOKEN, "pricing.per_million"),
    ("subscription", BY_TOKEN, "pricing"), ("subscription", TIERED, "pricing"),
]  # fmt: skip


def wrong(answer: Answer) -> tuple[int, list[str]]:
    return answer.status, [error["field"] for error in answer.json["errors"]]


def test_pricing_check_names_the_pricing_field_that_does_not_suit_the_business_model() -> None:
    found = [misfit(meter, False, read_pricing(pricing)) for meter, pricing, _ in MISFITS]
    assert [one and one[0] for one in found] == [field for *_, field in MISFITS]
    right = (("consumption", IN_CREDITS), ("pay_per_use", IN_MONEY), ("pay_per_use", TIERED))
    assert [misfit(meter, False, read_pricing(pricing)) for meter, pricing in right] == [None] * 3


async def test_service_price_that_does_not_suit_the_business_model_is_refused(api: Api) -> None:
    asked = {**SERVICE, "business_model_id": await model(api), "pricing": TIERED}
    assert wrong(await api.post("services", asked)) == (422, ["pricing.tiers"])
    made = await api.make("services", **{**asked, "pricing": IN_CREDITS})
    assert made["pricing"] == {"at_cost": {"markup": "1.20", "credits_per_unit": "250"}}
    assert wrong(await api.patch(f"services/{made['id']}", {"pricing": TIERED})) == (422, ["pricing.tiers"])
    terms = {
        "organization_id": (await api.make("organizations", name="Buyer"))["id"],
        "service_id": made["id"],
        "negotiated_credits": 3,
    }
    refused = await api.post("organization-services", {**terms, "pricing": TIERED})
    assert wrong(refused) == (422, ["pricing.tiers"])
    negotiated = await api.make("organization-services", **terms, pricing=BY_TOKEN)
    assert negotiated["pricing"] == BY_TOKEN
    changed = await api.patch(f"organization-services/{negotiated['id']}", {"pricing": TIERED})
    assert wrong(changed) == (422, ["pricing.tiers"])


async def test_service_may_not_change_to_a_business_model_that_the_price_does_not_suit(api: Api) -> None:
    models = {name: await model(api, name) for name in ("Consumption", "Subscription", "Pay-Per-Use")}
    made = await api.make("services", **SERVICE, business_model_id=models["Consumption"], pricing=BY_TOKEN)
    for name in ("Subscription", "Pay-Per-Use"):
        changed = await api.patch(f"services/{made['id']}", {"business_model_id": models[name]})
        assert changed.status == 422
    assert wrong(await api.patch(f"services/{made['id']}", {"service_type": "One-Time"})) == (
        422, ["pricing.per_million"],
    )  # fmt: skip
    whole = {"business_model_id": models["Pay-Per-Use"], "pricing": TIERED}
    assert (await api.patch(f"services/{made['id']}", whole)).status == 200


async def test_negotiated_business_model_is_refused_without_a_negotiated_price_that_suits_the_model(
    api: Api,
) -> None:
    by_token = await api.make(
        "services", **SERVICE, business_model_id=await model(api, "Consumption"), pricing=BY_TOKEN
    )
    terms = {
        "organization_id": (await api.make("organizations", name="Buyer"))["id"],
        "service_id": by_token["id"],
        "negotiated_credits": 3,
        "business_model_id": await model(api, "Pay-Per-Use"),
    }
    assert wrong(await api.post("organization-services", terms)) == (422, ["pricing"])
    made = await api.make("organization-services", **terms, pricing=TIERED)
    back = await api.patch(f"organization-services/{made['id']}", {"business_model_id": None})
    assert wrong(back) == (422, ["pricing.tiers"])
    assert wrong(await api.patch(f"organization-services/{made['id']}", {"pricing": None})) == (
        422,
        ["pricing"],
    )


async def test_at_cost_price_in_money_is_refused_for_a_business_model_paid_in_credits(api: Api) -> None:
    models = {name: await model(api, name) for name in ("Consumption", "Subscription", "Pay-Per-Use")}
    made = await api.make("services", **SERVICE, business_model_id=models["Pay-Per-Use"], pricing=IN_MONEY)
    where = f"services/{made['id']}"
    changed = await api.patch(where, {"business_model_id": models["Consumption"]})
    assert wrong(changed) == (422, ["pricing.at_cost.credits_per_unit"])
    assert wrong(await api.patch(where, {"service_type": "One-Time"})) == (422, ["pricing.at_cost"])
    terms = {
        "organization_id": (await api.make("organizations", name="Buyer"))["id"],
        "service_id": made["id"],
        "negotiated_credits": 3,
        "business_model_id": models["Consumption"],
    }
    assert wrong(await api.post("organization-services", terms)) == (422, ["pricing"])
    negotiated = await api.make("organization-services", **terms, pricing=IN_CREDITS)
    there = f"organization-services/{negotiated['id']}"
    back = await api.patch(there, {"business_model_id": None})
    assert wrong(back) == (422, ["pricing.at_cost.credits_per_unit"])
    whole = {"business_model_id": models["Consumption"], "pricing": IN_CREDITS}
    assert (await api.patch(where, whole)).status == 200
    assert (await api.patch(there, {"pricing": None})).status == 200
    assert (await api.patch(where, {"pricing": IN_MONEY})).status == 422


async def test_service_may_not_change_business_model_while_a_negotiated_price_would_not_suit(
    api: Api,
) -> None:
    made = await api.make("services", **SERVICE, business_model_id=await model(api, "Consumption"))
    buyer = (await api.make("organizations", name="Buyer"))["id"]
    await api.make(
        "organization-services", organization_id=buyer, service_id=made["id"], negotiated_credits=3,
        pricing=BY_TOKEN,
    )  # fmt: skip
    to = {"business_model_id": await model(api, "Pay-Per-Use")}
    assert (await api.patch(f"services/{made['id']}", to)).status == 409


async def test_a_business_model_in_use_keeps_a_meter_that_can_use_the_prices(api: Api) -> None:
    mine = await api.make("business-models", name="By token", meter="consumption")
    await api.make("services", **SERVICE, business_model_id=mine["id"], pricing=BY_TOKEN)
    changed = await api.patch(f"business-models/{mine['id']}", {"meter": "pay_per_use"})
    assert changed.status == 409
    assert (await api.patch(f"business-models/{mine['id']}", {"display_name": "Tokens"})).status == 200


# --- subscriptions ----------------------------------------------------------------------
# Subscriptions: one each, changed now or at the period's end, cancelled, kept; tenants follow their plan.


def day(offset: int) -> str:
    """So many days from today, which may be another one than when the tests began."""
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


async def plan(api: Api, name: str, monthly: str = "29.00", tokens: int | None = None) -> dict[str, Any]:
    token_plan = None
    if tokens is not None:
        token_plan = (await api.make("token-plans", name=name, total_amount=tokens))["id"]
    return await api.make(
        "subscription-plans", name=name, monthly_cost=monthly, annual_cost="290.00",
        feature_access=["chat"], token_plan_id=token_plan,
    )  # fmt: skip


async def subscribed(api: Api, **more: Any) -> tuple[int, dict[str, Any]]:
    organization = await api.make("organizations", name="Acme")
    starter = await plan(api, "Starter", tokens=2_000_000)
    sent = {
        "organization_id": organization["id"], "plan_id": starter["id"], "start_date": day(-10),
        "end_date": day(400),
    }  # fmt: skip
    return organization["id"], await api.make("organization-subscriptions", **sent | more)


async def test_new_subscription_has_a_single_segment_with_plan_cost_and_dates(api: Api) -> None:
    organization_id, made = await subscribed(api)
    assert (made["status"], made["billing_interval"], made["cancel_at"]) == ("active", "monthly", None)
    [segment] = made["segments"]
    assert segment == {
        "plan_id": made["plan_id"], "billing_interval": "monthly", "cost": "29.00",
        "start_date": day(-10), "end_date": day(400),
    }  # fmt: skip
    assert f"organization:{organization_id}" in api.counters.pushed


async def test_second_subscription_is_refused_until_cancellation_and_then_renews_the_first(api: Api) -> None:
    organization_id, made = await subscribed(api)
    whose = {"organization_id": organization_id, "plan_id": made["plan_id"]}
    sent = whose | {"start_date": day(0), "end_date": day(9)}
    assert (await api.post("organization-subscriptions", sent)).status == 409
    await api.post(f"organization-subscriptions/{made['id']}/cancel", {"when": "now"})
    again = await api.make("organization-subscriptions", **sent)
    assert (again["id"], len(again["segments"])) == (made["id"], 2)


async def test_concurrent_subscription_requests_of_an_organization_create_a_single_subscription(
    api: Api,
) -> None:
    organization = await api.make("organizations", name="Acme")
    sent = {
        "organization_id": organization["id"], "plan_id": (await plan(api, "Starter"))["id"],
        "start_date": day(-10), "end_date": day(400),
    }  # fmt: skip
    answers = await asyncio.gather(*(api.post("organization-subscriptions", sent) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201, *[409] * 7]


async def test_immediate_subscription_upgrade_starts_a_new_segment_today(api: Api) -> None:
    _, made = await subscribed(api)
    pro = await plan(api, "Pro", "99.00")
    changed = await api.post(
        f"organization-subscriptions/{made['id']}/change", {"plan_id": pro["id"], "when": "now"}
    )
    assert changed.status == 200
    assert [(s["cost"], s["start_date"], s["end_date"]) for s in changed.json["segments"]] == [
        ("29.00", day(-10), day(0)),
        ("99.00", day(0), day(400)),
    ]
    assert changed.json["plan_id"] == pro["id"]
    again = await api.post(f"organization-subscriptions/{made['id']}/change", {"plan_id": pro["id"]})
    assert again.status == 409


async def test_subscription_downgrade_takes_effect_at_the_end_of_the_billing_period(api: Api) -> None:
    _, made = await subscribed(api)
    small = await plan(api, "Small", "9.00")
    where = f"organization-subscriptions/{made['id']}"
    changed = await api.post(f"{where}/change", {"plan_id": small["id"], "when": "period_end"})
    assert changed.json["plan_id"] == made["plan_id"]
    assert changed.json["next_plan_id"] == small["id"]
    found = (await api.get(f"organization-subscriptions?next_plan_id={small['id']}")).json["items"]
    assert [row["id"] for row in found] == [changed.json["id"]]
    assert changed.json["change_at"] > day(0)
    assert (await api.delete(f"subscription-plans/{small['id']}")).status == 409


async def test_subscription_cancelled_at_period_end_may_be_extended_but_not_after_cancellation_now(
    api: Api,
) -> None:
    _, made = await subscribed(api)
    where = f"organization-subscriptions/{made['id']}"
    ending = await api.post(f"{where}/cancel")
    assert ending.json["cancel_at"] == ending.json["end_date"] > day(0)
    back = await api.patch(where, {"end_date": day(800)})
    assert (back.json["end_date"], back.json["cancel_at"]) == (day(800), None)
    assert (await api.patch(where, {"end_date": day(0)})).status == 409
    assert (await api.patch(where, {"plan_id": 1})).status == 422
    over = await api.post(f"{where}/cancel", {"when": "now"})
    assert (over.json["status"], over.json["end_date"]) == ("over", day(0))
    assert (await api.post(f"{where}/cancel", {"when": "now"})).status == 409
    assert (await api.post(f"{where}/change", {"plan_id": made["plan_id"]})).status == 409


async def test_tenant_without_a_plan_gets_the_token_plan_of_the_subscription(api: Api) -> None:
    organization_id, made = await subscribed(api)
    own = await api.make("token-plans", name="Own", total_amount=5)
    follows = await api.make("tenants", name="follows", organization_id=organization_id)
    keeps = await api.make("tenants", name="keeps", organization_id=organization_id, plan_id=own["id"])
    quotas = {row["tenant_id"]: row for row in (await api.get("tenant-quotas")).json["items"]}
    assert quotas[follows["id"]]["tokens_remaining"] == 2_000_000
    assert quotas[keeps["id"]]["tokens_remaining"] == 5
    anchor = date.fromisoformat(day(-10)).day
    assert api.rows(
        "select payload->>'anchor' from control_write where account = %s and verb = 'plan'",
        f"tenant:{follows['id']}",
    ) == [(str(anchor),)]

    pro = await plan(api, "Pro", "99.00", tokens=10_000_000)
    await api.post(f"organization-subscriptions/{made['id']}/change", {"plan_id": pro["id"]})
    quota = (await api.get(f"tenant-quotas/{follows['id']}")).json
    assert (quota["tokens_remaining"], quota["plan_id"]) == (10_000_000, pro["token_plan_id"])
    assert (await api.get(f"tenants/{follows['id']}")).json["plan_id"] is None
    assert (await api.delete(f"token-plans/{pro['token_plan_id']}")).status == 409

    await api.patch(f"tenants/{keeps['id']}", {"plan_id": None})
    assert (await api.get(f"tenant-quotas/{keeps['id']}")).json["tokens_remaining"] == 10_000_000
    await api.post(f"organization-subscriptions/{made['id']}/cancel", {"when": "now"})
    assert (await api.get(f"tenant-quotas/{keeps['id']}")).json["plan_id"] is None


async def test_tenant_created_during_a_subscription_change_gets_the_new_token_plan(api: Api) -> None:
    organization_id, made = await subscribed(api)
    pro = await plan(api, "Pro", "99.00", tokens=10_000_000)
    with connected(api.url) as making:
        making.execute("select id from organization where id = %s for share", (organization_id,))
        adding = "insert into tenant (organization_id, name) values (%s, 'late') returning id"
        [tenant_id] = making.execute(adding, (organization_id,)).fetchone() or [0]
        making.execute("insert into tenant_quota (tenant_id) values (%s)", (tenant_id,))
        where = f"organization-subscriptions/{made['id']}/change"
        changing = asyncio.create_task(api.post(where, {"plan_id": pro["id"]}))
        async with asyncio.timeout(30):
            await api.until_locked()
    assert (await changing).status == 200
    assert (await api.get(f"tenant-quotas/{tenant_id}")).json["plan_id"] == pro["token_plan_id"]


async def test_new_token_plan_of_a_subscription_plan_changes_the_quota_of_subscribed_tenants(
    api: Api,
) -> None:
    organization_id, made = await subscribed(api)
    tenant = await api.make("tenants", name="web", organization_id=organization_id)
    more = await api.make("token-plans", name="More", total_amount=7)
    await api.patch(f"subscription-plans/{made['plan_id']}", {"token_plan_id": more["id"]})
    assert (await api.get(f"tenant-quotas/{tenant['id']}")).json["tokens_remaining"] == 7
    pushed = len(api.counters.pushed)
    await api.patch(f"subscription-plans/{made['plan_id']}", {"feature_access": ["chat", "embeddings"]})
    assert api.counters.pushed[pushed:] == [f"organization:{organization_id}"]


async def test_subscription_cancelled_before_the_start_lets_the_plan_and_organization_be_deleted(
    api: Api,
) -> None:
    organization_id, made = await subscribed(api, start_date=day(10))
    where = f"organization-subscriptions/{made['id']}"
    assert (await api.post(f"{where}/cancel", {"when": "now"})).json["status"] == "over"
    back = await api.patch(where, {"end_date": day(20)})
    assert (back.json["status"], back.json["cancel_at"]) == ("future", None)
    await api.post(f"{where}/cancel", {"when": "now"})
    assert (await api.delete(f"subscription-plans/{made['plan_id']}")).status == 204
    assert (await api.delete(f"organizations/{organization_id}")).status == 204


async def test_subscription_terms_and_plan_prices_can_change_from_a_given_day(api: Api) -> None:
    _, made = await subscribed(api)
    terms, price = (
        f"organization-subscriptions/{made['id']}/terms",
        f"subscription-plans/{made['plan_id']}/reprice",
    )
    told = await api.post(
        terms, {"from": day(0), "quantity": 3, "discount": "0.10", "negotiated_cost": "20.00"}
    )
    assert (told.status, told.json["quantity"], told.json["negotiated_cost"]) == (200, 3, "20")
    told = await api.post(price, {"from": day(5), "monthly_cost": "33.00"})
    changed = told.json["prices"][-1]
    assert (changed["from"], changed["monthly_cost"], changed["waits"]) == (day(5), "33", True)
    for path, sent, fields in (
        (terms, {"from": day(1)}, {"discount", "minimum", "negotiated_cost", "quantity"}),
        (terms, {"from": day(-11), "quantity": 2}, {"from"}),
        (price, {"from": day(1)}, {"monthly_cost", "annual_cost"}),
    ):
        refused = await api.post(path, sent)
        assert refused.status == 422
        assert {each["field"] for each in refused.json["errors"]} == fields
