"""Members ask for more of a budget, and who may raise it decides, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.conftest import READONLY, Answer, Api
from tests.admin.console.test_own_pages import signed_in

SOON = (datetime.now(UTC) + timedelta(hours=3)).replace(microsecond=0).isoformat().replace("+00:00", "Z")


async def budget(api: Api, **more: Any) -> dict[str, Any]:
    tenant = (await api.post("tenants", {"name": f"acme {more}"})).json
    asked = {"organization_id": tenant["organization_id"], "name": "mine", "unit": "money", "amount": "3",
             "interval": "day"}  # fmt: skip
    made = await api.post("budgets", asked | more)
    assert made.status == 201, made.json
    found: dict[str, Any] = made.json
    return found


async def token(api: Api, role: str, organization_id: int) -> Api:
    made = await api.post("admin-tokens", {"name": role, "role": role, "organization_id": organization_id})
    assert made.status == 201, made.json
    return api.acting_as(made.json["token"])


async def asked(api: Api, of: dict[str, Any], amount: object = "20", **more: Any) -> Answer:
    return await api.post(
        "raise-requests", {"budget_id": of["id"], "amount": amount, "reason": "release"} | more
    )


async def test_approving_a_raise_request_raises_the_budget_and_a_second_decision_is_refused(api: Api) -> None:
    """A member asks, and may not decide; who decides for the organization does it once."""
    here = await budget(api)
    member = await token(api, "member", here["organization_id"])
    made = await asked(member, here, until=SOON)
    assert (made.status, made.json["status"], made.json["amount"]) == (201, "open", "20")
    assert made.json["requested_by"].startswith("token:")
    path = f"raise-requests/{made.json['id']}"
    assert (await member.post(f"{path}/approve")).status == 403
    billing = await token(api, "billing", here["organization_id"])
    done = await billing.post(f"{path}/approve")
    assert (done.status, done.json["status"]) == (200, "approved")
    raised = (await api.get(f"budgets/{here['id']}")).json
    assert (raised["raised_to"], raised["raised_until"], raised["raise_reason"]) == ("20", SOON, "release")
    for verb in ("approve", "deny"):
        assert (await billing.post(f"{path}/{verb}")).status == 409
    assert (await member.get("raise-requests?status=approved")).json["items"][0]["decided_by"] is not None


async def of_user(api: Api, user: str, organization_id: int) -> Api:
    """A member's token of a user."""
    made = await api.make("users", organization_id=organization_id, external_id=user)
    body = {"name": user, "role": "member", "organization_id": organization_id, "user_id": made["id"]}
    return api.acting_as((await api.make("admin-tokens", **body))["token"])


def raises(api: Api) -> list[tuple[Any, ...]]:
    return api.rows("SELECT name, amount, reason FROM budget_raise ORDER BY name")


async def test_approving_a_raise_request_of_a_user_raises_only_the_limit_of_that_user(api: Api) -> None:
    here = await budget(api, each="user")
    ada = await of_user(api, "ada", here["organization_id"])
    made = await asked(ada, here)
    assert (made.status, made.json["who"]) == (201, "ada")
    done = await api.post(f"raise-requests/{made.json['id']}/approve")
    assert (done.status, done.json["status"]) == (200, "approved")
    assert raises(api) == [("ada", 20, "release")]
    assert (await api.get(f"budgets/{here['id']}")).json["raised_to"] is None


@pytest.mark.parametrize("who", ["eve", None])
async def test_raise_request_below_an_amount_already_raised_to_cannot_be_approved(
    api: Api, who: str | None
) -> None:
    """Of three, raised to eight: six are more than the budget's own, and less than there is by now."""
    here = await budget(api, each="user" if who else None)
    of = {"who": who} if who else {}
    made = await asked(api, here, "6", **of)
    raised = {"amount": "8", "until": SOON, "reason": "more", **of}
    assert (await api.post(f"budgets/{here['id']}/raise", raised)).status == 200
    assert (await api.post(f"raise-requests/{made.json['id']}/approve")).status == 409
    there = (await api.get(f"budgets/{here['id']}")).json["raised_to"]
    assert (there, raises(api)) == ((None, [("eve", 8, "more")]) if who else ("8", []))
    below = await asked(api, here, "6", **of)
    assert (below.status, [one["field"] for one in below.json["errors"]]) == (422, ["amount"])
    assert (await asked(api, here, "8", **of)).status == 201


async def test_raise_request_of_a_user_with_an_override_is_measured_by_the_override(api: Api) -> None:
    """Everybody has three, Ada two: a request of hers may be for less than everybody's, and not for less than two."""
    here = await budget(api, each="user")
    assert (await api.call("PUT", f"budgets/{here['id']}/overrides/ada", {"amount": "2"})).status == 200
    below = await asked(api, here, "1.99", who="ada")
    assert (below.status, [one["field"] for one in below.json["errors"]]) == (422, ["amount"])
    made = await asked(api, here, "2.50", who="ada")
    assert (await api.post(f"raise-requests/{made.json['id']}/approve")).status == 200
    assert raises(api) == [("ada", Decimal("2.50"), "release")]
    assert (await api.call("PUT", f"budgets/{here['id']}/overrides/bob", {"amount": None})).status == 200
    assert (await asked(api, here, "1000", who="bob")).status == 422


async def test_raise_request_by_a_key_names_the_tenant_of_the_key_by_default(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    team = await api.make("tenants", name="ops", organization_id=tenant["organization_id"])
    here = await api.make(
        "budgets", organization_id=tenant["organization_id"], name="teams", unit="money", amount="3",
        interval="day", each="tenant",
    )  # fmt: skip
    key = (await api.make("api-keys", tenant_id=team["id"], name="laptop"))["key"]
    page = await signed_in(api, key)
    form = {"form_token": (await page.open("/me")).form_token, "reason": "more", "amount": "5"}
    assert (await page.post(f"/me/budgets/{here['id']}/ask", form)).status == 303
    [made] = (await api.get("raise-requests")).json["items"]
    assert made["who"] == str(team["id"])
    assert (await api.post(f"raise-requests/{made['id']}/approve")).status == 200
    assert raises(api) == [(str(team["id"]), 5, "more")]
    shown = (await (await signed_in(api, key)).open("/me")).text
    assert '$0.00</span> <span class="muted">of $5.00' in shown


async def test_raise_request_may_name_the_session_that_gets_the_raise(api: Api) -> None:
    here = await budget(api, each="session")
    made = await asked(api, here, who="night-run")
    assert made.json["who"] == "night-run"
    assert (await api.post(f"raise-requests/{made.json['id']}/approve")).status == 200
    assert raises(api) == [("night-run", 20, "release")]


@pytest.mark.parametrize("each", ["user", "key", "project", "session", "tenant"])
async def test_raise_request_must_name_a_target_when_the_requester_has_no_own_account_in_the_budget(
    api: Api, each: str
) -> None:
    here = await budget(api, each=each)
    member = await token(api, "member", here["organization_id"])
    refused = await asked(member, here)
    assert (refused.status, [one["field"] for one in refused.json["errors"]]) == (422, ["who"])


async def test_raise_request_by_a_staff_user_must_name_the_user_that_gets_the_raise(api: Api) -> None:
    here = await budget(api, each="user")
    user = await api.make("users", external_id="ops")
    made = await api.make("admin-tokens", name="ops", role="admin", user_id=user["id"])
    refused = await asked(api.acting_as(made["token"]), here)
    assert (refused.status, [one["field"] for one in refused.json["errors"]]) == (422, ["who"])


@pytest.mark.parametrize(
    ("each", "who"),
    [(None, "ada"), ("key", "999"), ("key", "laptop"), ("project", "one"), ("tenant", "999")],
)
async def test_raise_request_for_an_unknown_target_is_refused(api: Api, each: str | None, who: str) -> None:
    refused = await asked(api, await budget(api, each=each), who=who)
    assert (refused.status, [one["field"] for one in refused.json["errors"]]) == (422, ["who"])


async def test_old_raise_request_stored_without_a_target_cannot_be_approved(api: Api) -> None:
    """A keeper of an earlier version stored it, by which everybody would be raised."""
    here = await budget(api, each="user")
    made = (await asked(api, here, who="ada")).json
    api.rows(f"UPDATE raise_request SET who = NULL WHERE id = {made['id']} RETURNING 1")
    refused = await api.post(f"raise-requests/{made['id']}/approve")
    assert (refused.status, "whom to raise" in refused.json["detail"]) == (409, True)
    assert raises(api) == []


async def test_denied_raise_request_leaves_the_budget_unchanged(api: Api) -> None:
    here = await budget(api, unit="tokens", amount=100)
    made = await asked(api, here, 500)
    assert made.json["amount"] == 500
    assert (await api.post(f"raise-requests/{made.json['id']}/deny")).json["status"] == "denied"
    assert (await api.get(f"budgets/{here['id']}")).json["raised_to"] is None


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"amount": "1"}, "amount"), ({"amount": 5}, "amount"), ({"until": "2020-01-01T00:00:00Z"}, "until"),
        ({"reason": ""}, "reason"), ({"budget_id": 10**9}, "budget_id"),
    ],
)  # fmt: skip
async def test_invalid_raise_request_is_refused_with_the_field_named(
    api: Api, more: dict[str, Any], field: str
) -> None:
    refused = await asked(api, await budget(api), **more)
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])


async def test_raise_requested_without_an_end_time_lasts_until_the_budget_interval_ends(api: Api) -> None:
    here = await budget(api)
    made = await asked(api, here)
    assert made.json["until"] == here["resets_at"]
    rolling: dict[str, Any] = {"interval": None, "window": "rolling", "length": "7d"}
    for name, more in (("ever", {"interval": "total"}), ("rolling", rolling)):
        refused = await asked(api, await budget(api, name=name, **more))
        assert [each["field"] for each in refused.json["errors"]] == ["until"]


async def test_raise_requests_of_another_organization_are_not_visible(api: Api) -> None:
    here, there = await budget(api), await budget(api, name="theirs")
    made = await asked(api, there)
    other = await token(api, "admin", here["organization_id"])
    assert (await other.post(f"raise-requests/{made.json['id']}/approve")).status == 404
    assert (await asked(other, there)).status == 422
    assert (await other.get("raise-requests")).json["items"] == []
    assert (await asked(api.acting_as(READONLY), here)).status == 403


async def test_raise_request_for_a_changed_or_deleted_budget_can_be_denied_but_not_approved(api: Api) -> None:
    here = await budget(api)
    made = await asked(api, here, "5")
    await api.call("PATCH", f"budgets/{here['id']}", {"amount": "9"})
    refused = await api.post(f"raise-requests/{made.json['id']}/approve")
    assert (refused.status, "amount" in refused.json["detail"]) == (409, True)
    assert (await api.call("DELETE", f"budgets/{here['id']}", None)).status == 204
    refused = await api.post(f"raise-requests/{made.json['id']}/approve")
    assert (refused.status, "deleted" in refused.json["detail"]) == (409, True)
    assert (await api.post(f"raise-requests/{made.json['id']}/deny")).json["status"] == "denied"
