"""What something still refers to is not deleted, and says what has to go first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.admin.conftest import Api
from tests.admin.test_catalogue import SERVICE, model


async def kept_by(api: Api, kept: str, said: str) -> None:
    """Refused while it is referred to, with the sentence that says why."""
    refused = await api.delete(kept)
    assert (refused.status, refused.json["detail"]) == (409, said)


async def test_a_service_that_plans_include_stays(api: Api) -> None:
    service = await api.make("services", **SERVICE, business_model_id=await model(api))
    other = await api.make("services", **{**SERVICE, "key": "sear"}, business_model_id=await model(api))
    plan = await api.make(
        "subscription-plans", name="Pro", monthly_cost="1", annual_cost="10", feature_access=["search"]
    )
    await kept_by(api, f"services/{service['id']}", "Subscription plans still include this service.")
    assert (await api.delete(f"services/{other['id']}")).status == 204
    assert (await api.delete(f"subscription-plans/{plan['id']}")).status == 204
    assert (await api.delete(f"services/{service['id']}")).status == 204


async def test_a_token_plan_that_is_followed_or_sold_stays(api: Api) -> None:
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


async def test_an_organization_with_tenants_or_users_stays(api: Api) -> None:
    made = await api.make("organizations", name="Acme")
    here = f"organizations/{made['id']}"
    user = await api.make("users", external_id="ann", organization_id=made["id"])
    tenant = await api.make("tenants", name="web", organization_id=made["id"])
    await kept_by(api, here, "The organization still has tenants; delete them first.")
    await api.delete(f"tenants/{tenant['id']}")
    await kept_by(api, here, "The organization still has users; delete them first.")
    await api.delete(f"users/{user['id']}")
    assert (await api.delete(here)).status == 204


async def test_an_organization_with_a_subscription_or_a_draft_stays(api: Api) -> None:
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


async def test_a_user_with_admin_tokens_stays(api: Api) -> None:
    user = await api.make("users", external_id="ann")
    token = await api.make("admin-tokens", name="t", role="admin", user_id=user["id"])
    await kept_by(api, f"users/{user['id']}", "Admin tokens still belong to this user; delete them first.")
    await api.post(f"admin-tokens/{token['id']}/revoke")
    assert (await api.delete(f"users/{user['id']}")).status == 204
