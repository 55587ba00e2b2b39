"""Whatever names a currency names one of ISO 4217, and nothing is billed in another than it was said in."""

from __future__ import annotations

import pytest

from tests.admin.conftest import Api

PLAN = {"name": "Starter", "monthly_cost": "29.00", "annual_cost": "290.00", "feature_access": []}
TERM = {"start_date": "2026-04-01", "end_date": "2027-04-01"}


@pytest.mark.parametrize("code", ["QQQ", "XAU", "XTS", "usd", "US", "\u0405DR", 5, None])
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
