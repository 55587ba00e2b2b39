"""Whatever names a currency names one of ISO 4217, and nothing is billed in another than it was said in."""

from __future__ import annotations

from tests.admin.conftest import Api
from tests.in_turn import in_turn

PLAN = {"name": "Starter", "monthly_cost": "29.00", "annual_cost": "290.00", "feature_access": []}
TERM = {"start_date": "2026-04-01", "end_date": "2027-04-01"}


@in_turn("code", ["QQQ", "XAU", "XTS", "usd", "US", "\u0405DR", 5, None])
async def test_what_is_no_currency_is_refused(api: Api, code: object) -> None:
    for where, body in (
        ("organizations", {"name": "Acme"}),
        ("subscription-plans", PLAN),
        ("prices", {"model": "m", "input": "1", "effective_from": "2026-01-01T00:00:00Z"}),
    ):
        refused = await api.post(where, {**body, "currency": code})
        assert (refused.status, [error["field"] for error in refused.json["errors"]]) == (422, ["currency"])


async def test_a_plan_is_in_its_own_currency(api: Api) -> None:
    plan = await api.make("subscription-plans", **PLAN)
    assert plan["currency"] == "USD"
    yen = await api.make("subscription-plans", **PLAN | {"name": "Yen"}, currency="JPY")
    acme = await api.make("organizations", name="Acme", currency="JPY")
    sent = {"organization_id": acme["id"], **TERM}
    refused = await api.post("organization-subscriptions", {**sent, "plan_id": plan["id"]})
    assert (refused.status, refused.json["errors"]) == (
        422, [{"field": "plan_id", "message": "costs USD, and the organization pays in JPY"}],
    )  # fmt: skip
    made = await api.make("organization-subscriptions", **sent, plan_id=yen["id"])
    for when in ("now", "period_end"):
        refused = await api.post(
            f"organization-subscriptions/{made['id']}/change", {"plan_id": plan["id"], "when": when}
        )
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "plan_id")
    assert (await api.patch(f"subscription-plans/{yen['id']}", {"currency": "USD"})).status == 422


TIERS = [{"up_to": None, "unit_price": "29"}]


async def test_units_are_in_the_currency_of_their_price(api: Api) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    service = {
        "name": "Maps", "key": "maps-in-yen", "credits": 0, "service_type": "Pay-As-You-Go",
        "business_model_id": pay["id"], "pricing": {"tiers": TIERS, "currency": "JPY"},
    }  # fmt: skip
    for wrong in ("yen", "QQQ"):
        priced = {"tiers": TIERS, "currency": wrong}
        refused = await api.post("services", service | {"pricing": priced})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing.currency")
    refused = await api.post("services", service | {"pricing": {"at_cost": {}, "currency": "JPY"}})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing")
    made = await api.make("services", **service)
    assert made["pricing"]["currency"] == "JPY"
    acme = await api.make("organizations", name="Acme", currency="USD")
    given = {"organization_id": acme["id"], "service_id": made["id"], "negotiated_credits": 0}
    refused = await api.post("organization-services", given)
    assert (refused.status, refused.json["errors"]) == (
        422, [{"field": "service_id", "message": "costs JPY, and the organization pays in USD"}],
    )  # fmt: skip
    dear = {"pricing": {"tiers": TIERS, "currency": "EUR"}}
    refused = await api.post("organization-services", given | dear)
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "pricing.currency")
    own = await api.make("organization-services", **given, pricing={"tiers": TIERS, "currency": "USD"})
    # What it negotiated is in its currency, which stays then; the service may be in any.
    assert (await api.patch(f"organizations/{acme['id']}", {"currency": "JPY"})).status == 409
    euro = {"pricing": {"tiers": TIERS, "currency": "EUR"}}
    assert (await api.patch(f"services/{made['id']}", euro)).status == 200
    refused = await api.patch(f"organization-services/{own['id']}", {"pricing": None})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "service_id")


async def test_a_price_without_a_currency_is_in_what_is_paid(api: Api) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    made = await api.make(
        "services", name="Maps", key="maps-in-any", credits=0, service_type="Pay-As-You-Go",
        business_model_id=pay["id"], pricing={"tiers": TIERS},
    )  # fmt: skip
    for currency in ("USD", "JPY"):
        acme = await api.make("organizations", name=currency, currency=currency)
        await api.make(
            "organization-services", organization_id=acme["id"], service_id=made["id"], negotiated_credits=0
        )
    # Then it cannot be in one that somebody it was given does not pay in.
    yen = {"pricing": {"tiers": TIERS, "currency": "JPY"}}
    refused = await api.patch(f"services/{made['id']}", yen)
    assert (refused.status, "costs JPY" in refused.json["detail"]) == (409, True)


async def test_tokens_beyond_a_plan_are_in_its_currency(api: Api) -> None:
    bills = {
        "name": "Yen", "total_amount": 1_000, "overage_policy": "bill", "overage_unit_price": "0.1",
        "currency": "JPY",
    }  # fmt: skip
    refused = await api.post("token-plans", bills | {"overage_unit_price": None, "overage_policy": "block"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "currency")
    yen = await api.make("token-plans", **bills)
    acme = await api.make("organizations", name="Acme", currency="USD")
    tenant = {"name": "Main", "organization_id": acme["id"]}
    refused = await api.post("tenants", tenant | {"plan_id": yen["id"]})
    wrong = [{"field": "plan_id", "message": "costs JPY, and the organization pays in USD"}]
    assert (refused.status, refused.json["errors"]) == (422, wrong)
    any_ = await api.make("token-plans", **bills | {"name": "Any", "currency": None})
    made = await api.make("tenants", **tenant, plan_id=any_["id"])
    refused = await api.patch(f"tenant-quotas/{made['id']}", {"plan_id": yen["id"]})
    assert (refused.status, refused.json["errors"]) == (422, wrong)
    for resource, body, field in (
        (f"token-plans/{any_['id']}", {"currency": "JPY"}, "currency"),
        (f"token-plans/{any_['id']}", {"currency": "EUR"}, "currency"),
    ):
        refused = await api.patch(resource, body)
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, field)
    assert (await api.patch(f"token-plans/{any_['id']}", {"currency": "USD"})).status == 200
    refused = await api.post("subscription-plans", PLAN | {"token_plan_id": yen["id"]})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "token_plan_id")
    sold = await api.make("subscription-plans", **PLAN | {"token_plan_id": yen["id"]}, currency="JPY")
    assert sold["token_plan_id"] == yen["id"]
    refused = await api.patch(f"token-plans/{yen['id']}", {"currency": "USD"})
    assert (refused.status, refused.json["errors"][0]["message"]) == (
        422, "cannot be USD: who is on this plan pays in JPY",
    )  # fmt: skip


async def test_no_event_is_charged_in_another_currency(api: Api) -> None:
    [pay] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    await api.make(
        "services", name="Maps", key="maps-by-event", credits=0, service_type="Pay-As-You-Go",
        business_model_id=pay["id"], pricing={"tiers": TIERS, "currency": "JPY"},
    )  # fmt: skip
    acme = await api.make("organizations", name="Acme", currency="USD")
    tenant = await api.make("tenants", name="Main", organization_id=acme["id"])
    told = await api.post(
        "events",
        {
            "specversion": "1.0", "type": "use", "source": "t", "id": "1",
            "subject": f"tenant:{tenant['id']}",
            "data": {"service": "maps-by-event", "units": 3},
        },
    )  # fmt: skip
    assert (told.json["accepted"], told.json["rejected"][0]["field"]) == (0, "data.service")
    assert "costs JPY" in told.json["rejected"][0]["reason"]
