"""Services, business models, negotiated prices and subscription plans."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.conftest import Answer, Api
from tests.in_turn import in_turn

SERVICE = {"name": "Search", "key": "search", "credits": 3, "service_type": "Pay-As-You-Go"}


async def model(api: Api, name: str = "Consumption") -> int:
    return int((await api.get(f"business-models?name={name}")).json["items"][0]["id"])


async def test_three_business_models_are_always_there(api: Api) -> None:
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


async def test_more_business_models_may_be_added(api: Api) -> None:
    made = await api.make("business-models", name="Prepaid", meter="consumption")
    assert (await api.post("business-models", {"name": "Prepaid", "meter": "consumption"})).status == 409
    service = await api.make("services", **SERVICE, business_model_id=made["id"])
    assert (await api.delete(f"business-models/{made['id']}")).status == 409
    assert (await api.delete(f"services/{service['id']}")).status == 204
    assert (await api.delete(f"business-models/{made['id']}")).status in {204, 409}


async def test_a_service_is_a_new_catalogue(api: Api) -> None:
    made = await api.make("services", **SERVICE, business_model_id=await model(api))
    assert api.counters.pushed == ["catalogue"]
    await api.patch(f"services/{made['id']}", {"name": "Find"})
    assert api.counters.pushed == ["catalogue"]
    await api.patch(f"services/{made['id']}", {"credits": 4})
    assert api.counters.pushed == ["catalogue"] * 2
    assert api.rows("select distinct partition from control_write") == [(None,)]


async def test_what_counts_tokens_is_said_or_left_to_the_business_model(api: Api) -> None:
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


async def test_a_service_key_is_unique_until_its_service_is_deleted(api: Api) -> None:
    sent = {**SERVICE, "business_model_id": await model(api)}
    first = await api.make("services", **sent)
    assert (await api.post("services", sent)).status == 409
    assert (await api.delete(f"services/{first['id']}")).status == 204
    second = await api.make("services", **sent)
    assert second["id"] != first["id"]


@in_turn(
    ("field", "value", "named"),
    [
        ("key", "Has Space", "key"),
        ("key", "a~1", "key"),
        ("credits", -1, "credits"),
        ("credits", 2**53, "credits"),
        ("service_type", "Weekly", "service_type"),
        ("business_model_id", 99, "business_model_id"),
        ("counts_tokens", "yes", "counts_tokens"),
        ("pricing", {}, "pricing"),
        ("pricing", {"tiers": []}, "pricing.tiers"),
        ("pricing", {"tiers": [{"up_to": 5, "unit_price": "1"}]}, "pricing"),
        (
            "pricing",
            {"tiers": [{"up_to": None, "unit_price": "1"}, {"up_to": 5, "unit_price": "1"}]},
            "pricing",
        ),
        ("pricing", {"per_million": {"*": {"input": 1.5}}}, "pricing.per_million.*.input"),
        ("pricing", {"per_million": {"*": {"input": -1}}}, "pricing.per_million.*.input"),
        ("pricing", {"per_million": {"*": {"tokens": 1}}}, "pricing.per_million.*.tokens"),
        ("pricing", {"per_million": {"*": {"cached": 1, "cache_read": 1}}}, "pricing.per_million.*"),
        ("pricing", {"per_million": {"gpt*mini": {"input": 1}}}, "pricing.per_million"),
        ("pricing", {"per_million": {"*": {"input": 1}}, "markup": "0"}, "pricing.markup"),
        ("pricing", {"tiers": [{"up_to": None, "unit_price": "1"}], "markup": "2"}, "pricing"),
        ("pricing", {"per_million": {"*": {"input": 1}}, "at_cost": {}}, "pricing"),
        ("pricing", {"at_cost": None}, "pricing"),
        ("pricing", {"at_cost": {"markup": 1.2}}, "pricing.at_cost.markup"),
        ("pricing", {"at_cost": {"markup": "0"}}, "pricing.at_cost.markup"),
        ("pricing", {"at_cost": {"markup": "-1"}}, "pricing.at_cost.markup"),
        ("pricing", {"at_cost": {"markup": "1000.01"}}, "pricing.at_cost.markup"),
        ("pricing", {"at_cost": {"markup": "1.0000001"}}, "pricing.at_cost.markup"),
        ("pricing", {"at_cost": {"credits_per_unit": "0"}}, "pricing.at_cost.credits_per_unit"),
        ("pricing", {"at_cost": {"credits_per_unit": "1e9"}}, "pricing.at_cost.credits_per_unit"),
        ("pricing", {"at_cost": {"percent": "1"}}, "pricing.at_cost.percent"),
        ("upstream", "two words", "upstream"),
        ("upstream", "", "upstream"),
        ("paths", [], "paths"),
        ("paths", "/v1/*", "paths"),
        ("paths", ["/v1/*", "v1"], "paths.1"),
        ("paths", ["/v1/sms*"], "paths.0"),
        ("paths", ["/v1/../x"], "paths.0"),
        ("paths", ["/x"] * 101, "paths"),
    ],
)
async def test_wrong_fields_of_a_service(api: Api, field: str, value: object, named: str) -> None:
    refused = await api.post("services", {**SERVICE, "business_model_id": await model(api), field: value})
    assert refused.status == 422
    assert [error["field"] for error in refused.json["errors"]] == [named]


@pytest.mark.parametrize(
    "pricing",
    [
        {"tiers": [{"up_to": 1000, "unit_price": "0.001"}, {"up_to": None, "unit_price": "0.50"}]},
        {"per_million": {"*": {"input": 1, "output": 2, "cached": 3}}},
        {"per_million": {"gpt-4o*": {"input": 1, "cache_read": 2, "audio_output": 9}}, "markup": "1.25"},
        {"at_cost": {"markup": "1.20", "credits_per_unit": "250.00"}},
        None,
    ],
)
async def test_pricing_comes_back_as_it_was_sent(api: Api, pricing: dict[str, Any] | None) -> None:
    used_by = "Pay-Per-Use" if pricing and "tiers" in pricing else "Consumption"
    made = await api.make("services", **SERVICE, business_model_id=await model(api, used_by), pricing=pricing)
    assert made["pricing"] == pricing


async def test_a_service_is_bound_to_an_upstream_and_paths(api: Api) -> None:
    plain = await api.make("services", **SERVICE, business_model_id=await model(api))
    assert (plain["upstream"], plain["paths"]) == (None, None)
    where = f"services/{plain['id']}"
    changed = await api.patch(where, {"upstream": "sms-1", "paths": ["/v1/sms/*", "/v1/*/status"]})
    assert (changed.json["upstream"], changed.json["paths"]) == ("sms-1", ["/v1/sms/*", "/v1/*/status"])
    assert api.counters.pushed == ["catalogue"] * 2
    again = await api.patch(where, {"upstream": None, "paths": None})
    assert (again.json["upstream"], again.json["paths"]) == (None, None)


async def test_one_negotiated_price_a_pair(api: Api) -> None:
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


async def test_a_subscription_plan_includes_services_that_are_there(api: Api) -> None:
    sent = {"name": "Gold", "monthly_cost": "10.00", "annual_cost": "99.00", "feature_access": ["chat"]}
    made = await api.make("subscription-plans", **sent)
    assert {name: made[name] for name in sent} == sent
    refused = await api.post("subscription-plans", {**sent, "feature_access": ["chat", "teleport"]})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "feature_access")
    chat = (await api.get("services?key=chat")).json["items"][0]
    assert (await api.delete(f"services/{chat['id']}")).status == 409
    plan = await api.make("token-plans", name="t")
    await api.patch(f"subscription-plans/{made['id']}", {"token_plan_id": plan["id"]})
    assert (await api.delete(f"token-plans/{plan['id']}")).status == 409
    assert (await api.delete(f"subscription-plans/{made['id']}")).status == 204
    assert (await api.delete(f"token-plans/{plan['id']}")).status == 204


async def test_uses_are_read_only_lists(api: Api) -> None:
    for resource in ("credit-transactions", "feature-usage"):
        assert (await api.get(f"{resource}?organization_id=1&project_id=0")).json == {
            "items": [],
            "next_cursor": None,
        }
        assert (await api.post(resource, {})).status == 405


TIERED: dict[str, Any] = {"tiers": [{"up_to": None, "unit_price": "0.50"}]}
BY_TOKEN: dict[str, Any] = {"per_million": {"*": {"input": 1, "output": 2}}}
IN_MONEY: dict[str, Any] = {"at_cost": {"markup": "1.2"}}
IN_CREDITS: dict[str, Any] = {"at_cost": {"markup": "1.2", "credits_per_unit": "250"}}
MISFITS = [
    ("Consumption", IN_MONEY, "pricing.at_cost.credits_per_unit"),
    ("Pay-Per-Use", IN_CREDITS, "pricing.at_cost.credits_per_unit"),
    ("Subscription", IN_MONEY, "pricing"),
    ("Subscription", IN_CREDITS, "pricing"),
    ("Consumption", TIERED, "pricing.tiers"),
    ("Pay-Per-Use", BY_TOKEN, "pricing.per_million"),
    ("Subscription", BY_TOKEN, "pricing"),
    ("Subscription", TIERED, "pricing"),
]


def wrong(answer: Answer) -> tuple[int, list[str]]:
    return answer.status, [error["field"] for error in answer.json["errors"]]


@pytest.mark.parametrize(("name", "pricing", "field"), MISFITS)
async def test_a_price_its_business_model_cannot_use_is_refused(
    api: Api, name: str, pricing: dict[str, Any], field: str
) -> None:
    asked = {**SERVICE, "business_model_id": await model(api, name), "pricing": pricing}
    assert wrong(await api.post("services", asked)) == (422, [field])
    made = await api.make("services", **{**asked, "pricing": None})
    assert wrong(await api.patch(f"services/{made['id']}", {"pricing": pricing})) == (422, [field])
    terms = {
        "organization_id": (await api.make("organizations", name="Buyer"))["id"],
        "service_id": made["id"],
        "negotiated_credits": 3,
    }
    assert wrong(await api.post("organization-services", {**terms, "pricing": pricing})) == (422, [field])
    negotiated = await api.make("organization-services", **terms)
    changed = await api.patch(f"organization-services/{negotiated['id']}", {"pricing": pricing})
    assert wrong(changed) == (422, [field])


async def test_a_business_model_does_not_change_to_one_that_cannot_use_the_price(api: Api) -> None:
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


async def test_an_organization_that_goes_another_way_needs_a_price_of_its_own(api: Api) -> None:
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


async def test_at_cost_follows_no_business_model_that_pays_otherwise(api: Api) -> None:
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


async def test_a_service_does_not_leave_behind_whoever_negotiated_its_price(api: Api) -> None:
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
