"""Credits given and taken back: one posting each, live in the balance, refused whole or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.core.model import INTEGER_MAX
from tests.admin.conftest import Api
from tests.in_turn import in_turn

SOON = (datetime.now(UTC) + timedelta(days=30)).isoformat()
PAST = (datetime.now(UTC) - timedelta(days=30)).isoformat()


async def organization(api: Api, name: str = "Acme") -> int:
    return int((await api.make("organizations", name=name))["id"])


async def balance(api: Api, organization_id: int) -> int:
    return int((await api.get(f"organizations/{organization_id}")).json["credit_balance"])


async def test_credits_are_given_and_taken_back(api: Api) -> None:
    owner = await organization(api)
    paid = await api.make("credit-additions", organization_id=owner, credits_added=8_000, unit_cost="0.01")
    assert (paid["category"], paid["priority"], paid["unit_cost"]) == ("paid", 100, "0.01")
    gift = await api.make(
        "credit-additions", organization_id=owner, credits_added=2_000, category="promotional",
        expires_at=SOON, remark="Welcome", priority=5,
    )  # fmt: skip
    assert (gift["category"], gift["priority"], gift["remark"]) == ("promotional", 5, "Welcome")
    back = await api.make("credit-additions", organization_id=owner, credits_added=-500)
    assert back["category"] == "correction"
    assert await balance(api, owner) == 9_500
    assert [row["credits_added"] for row in (await api.get("credit-additions")).json["items"]] == [
        8_000, 2_000, -500
    ]  # fmt: skip
    promotional = await api.get(f"credit-additions?organization_id={owner}&category=promotional")
    assert [row["id"] for row in promotional.json["items"]] == [gift["id"]]
    assert api.rows(
        "select count(*) from credit_addition as a join control_write as w on w.id = a.control_write_id"
        " where w.verb = 'credits' and (w.payload->>'amount')::bigint = a.credits_added"
    ) == [(3,)]


async def test_users_are_named_for_their_own_organization_alone(api: Api) -> None:
    owner, other = await organization(api), await organization(api, "Globex")
    ann = (await api.make("users", external_id="ann", organization_id=owner))["id"]
    staff = (await api.make("users", external_id="ada"))["id"]
    for giver in (ann, staff):
        sent = {"organization_id": owner, "credits_added": 1, "added_by_id": giver}
        assert (await api.post("credit-additions", sent)).json["added_by_id"] == giver
    wrong = await api.post(
        "credit-additions", {"organization_id": other, "credits_added": 1, "added_by_id": ann}
    )
    assert (wrong.status, wrong.json["errors"][0]["field"]) == (422, "added_by_id")
    assert await balance(api, other) == 0


async def test_who_added_them_is_the_caller(api: Api) -> None:
    owner = await organization(api)
    staff = await api.make("users", external_id="ada")
    token = await api.make("admin-tokens", name="ada", role="admin", user_id=staff["id"])
    ada = api.acting_as(token["token"])
    assert (await ada.make("credit-additions", organization_id=owner, credits_added=1))[
        "added_by_id"
    ] == staff["id"]
    by_settings = await api.make("credit-additions", organization_id=owner, credits_added=1)
    built_in = (await api.get(f"users/{by_settings['added_by_id']}")).json
    assert (built_in["external_id"], built_in["organization_id"]) == ("built-in", None)
    nobodys = await api.make("admin-tokens", name="robot", role="admin")
    by_robot = await api.acting_as(nobodys["token"]).make(
        "credit-additions", organization_id=owner, credits_added=1
    )
    assert by_robot["added_by_id"] is None


async def test_the_same_key_gives_credits_once(api: Api) -> None:
    owner = await organization(api)
    sent = {"organization_id": owner, "credits_added": 100}
    first = await api.post("credit-additions", sent, key="one")
    again = await api.post("credit-additions", sent, key="one")
    assert (again.status, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert await balance(api, owner) == 100


async def test_credits_wait_while_the_counters_are_away(api: Api) -> None:
    owner = await organization(api)
    api.counters.away = True
    assert (
        await api.post("credit-additions", {"organization_id": owner, "credits_added": 100})
    ).status == 202
    assert await balance(api, owner) == 0
    api.counters.away = False
    await api.counters.push([f"organization:{owner}"])
    assert await balance(api, owner) == 100


async def test_what_the_counters_refuse_was_never_added(api: Api) -> None:
    owner = await organization(api)
    api.counters.refuses = "out of range"
    refused = await api.post("credit-additions", {"organization_id": owner, "credits_added": INTEGER_MAX})
    assert refused.status == 409
    assert (await api.get("credit-additions")).json["items"] == []


@pytest.fixture
async def buyer(api: Api) -> int:
    return await organization(api)


@in_turn(
    ("fields", "named"),
    [
        ({"credits_added": 0}, "credits_added"),
        ({"credits_added": INTEGER_MAX + 1}, "credits_added"),
        ({"credits_added": -INTEGER_MAX - 1}, "credits_added"),
        ({"credits_added": "5"}, "credits_added"),
        ({"credits_added": 1.5}, "credits_added"),
        ({"organization_id": 999}, "organization_id"),
        ({"added_by_id": 999}, "added_by_id"),
        ({"category": "gift"}, "category"),
        ({"expires_at": PAST}, "expires_at"),
        ({"credits_added": -1, "expires_at": SOON}, "expires_at"),
        ({"timestamp": SOON}, "timestamp"),
        ({"unit_cost": "-1"}, "unit_cost"),
        ({"unit_cost": 0.01}, "unit_cost"),
        ({"balance_after": 1}, "balance_after"),
    ],
)
async def test_wrong_fields(api: Api, buyer: int, fields: dict[str, Any], named: str) -> None:
    sent = {"organization_id": buyer, "credits_added": 5} | fields
    refused = await api.post("credit-additions", sent)
    assert refused.status == 422, refused.raw
    assert [error["field"] for error in refused.json["errors"]] == [named]
    assert api.rows("select count(*) from credit_addition") == [(0,)]


async def test_additions_are_never_changed(api: Api) -> None:
    made = await api.make("credit-additions", organization_id=await organization(api), credits_added=5)
    assert (await api.patch(f"credit-additions/{made['id']}", {"remark": "x"})).status == 405
    assert (await api.delete(f"credit-additions/{made['id']}")).status == 405


async def test_prepaid_credits_wait_for_their_invoice(api: Api) -> None:
    owner = await organization(api)
    sold = await api.make(
        "credit-additions", organization_id=owner, credits_added=1_000, unit_cost="0.01", invoicing="prepaid"
    )
    assert (sold["in_force"], sold["invoice_id"], sold["credits_remaining"]) == (False, None, 0)
    assert await balance(api, owner) == 0
    for wrong in ({"invoicing": "later"}, {"invoicing": "now", "unit_cost": None}):
        sent = {"organization_id": owner, "credits_added": 1_000, "unit_cost": "0.01"} | wrong
        refused = await api.post("credit-additions", sent)
        assert refused.status == 422
        assert refused.json["errors"][0]["field"] == ("unit_cost" if "unit_cost" in wrong else "invoicing")
