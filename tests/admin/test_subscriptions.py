"""Subscriptions: one each, changed now or at the period's end, cancelled, kept; tenants follow their plan."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.admin.conftest import Api
from tests.in_turn import in_turn


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


async def test_a_subscription_begins_with_one_segment(api: Api) -> None:
    organization_id, made = await subscribed(api)
    assert (made["status"], made["billing_interval"], made["cancel_at"]) == ("active", "monthly", None)
    [segment] = made["segments"]
    assert segment == {
        "plan_id": made["plan_id"], "billing_interval": "monthly", "cost": "29.00",
        "start_date": day(-10), "end_date": day(400),
    }  # fmt: skip
    assert f"organization:{organization_id}" in api.counters.pushed


async def test_an_organization_has_one_subscription(api: Api) -> None:
    organization_id, made = await subscribed(api)
    whose = {"organization_id": organization_id, "plan_id": made["plan_id"]}
    sent = whose | {"start_date": day(0), "end_date": day(9)}
    assert (await api.post("organization-subscriptions", sent)).status == 409
    await api.post(f"organization-subscriptions/{made['id']}/cancel", {"when": "now"})
    again = await api.make("organization-subscriptions", **sent)
    assert (again["id"], len(again["segments"])) == (made["id"], 2)


async def test_of_many_at_once_one_begins_and_the_others_are_told(api: Api) -> None:
    organization = await api.make("organizations", name="Acme")
    sent = {
        "organization_id": organization["id"], "plan_id": (await plan(api, "Starter"))["id"],
        "start_date": day(-10), "end_date": day(400),
    }  # fmt: skip
    answers = await asyncio.gather(*(api.post("organization-subscriptions", sent) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201, *[409] * 7]


@pytest.fixture
async def asked(api: Api) -> dict[str, object]:
    """What an organization would subscribe to."""
    organization = await api.make("organizations", name="Acme")
    return {
        "organization_id": organization["id"], "plan_id": (await plan(api, "Starter"))["id"],
        "start_date": day(-10), "end_date": day(10),
    }  # fmt: skip


@in_turn(
    ("field", "value", "status"),
    [
        ("organization_id", 999, 422),
        ("plan_id", 999, 422),
        ("end_date", day(-10), 422),
        ("start_date", "2026-01-01T05:00:00Z", 422),
        ("start_date", "01.04.2026", 422),
        ("start_date", "1970-01-01", 422),
        ("start_date", "2999-12-31", 422),
        ("billing_interval", "weekly", 422),
        ("start_date", f"{day(-10)}T00:00:00Z", 201),
    ],
)
async def test_wrong_fields(
    api: Api, asked: dict[str, object], field: str, value: object, status: int
) -> None:
    answer = await api.post("organization-subscriptions", asked | {field: value})
    assert answer.status == status, answer.raw
    if status == 422:
        assert [error["field"] for error in answer.json["errors"]] == [field]


async def test_an_upgrade_now_splits_the_segment_today(api: Api) -> None:
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


async def test_a_price_changed_later_changes_no_segment(api: Api) -> None:
    _, made = await subscribed(api)
    await api.patch(f"subscription-plans/{made['plan_id']}", {"monthly_cost": "31.00"})
    [segment] = (await api.get(f"organization-subscriptions/{made['id']}")).json["segments"]
    assert segment["cost"] == "29.00"


async def test_a_downgrade_waits_for_the_period_end(api: Api) -> None:
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


async def test_cancelling_and_taking_it_back(api: Api) -> None:
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


async def test_tenants_without_a_plan_get_the_subscriptions(api: Api) -> None:
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


async def test_a_tenant_made_while_the_plan_changes_gets_the_new_one(api: Api) -> None:
    organization_id, made = await subscribed(api)
    pro = await plan(api, "Pro", "99.00", tokens=10_000_000)
    with psycopg.connect(api.url) as making:
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


async def test_a_plan_that_gets_another_token_plan_moves_its_tenants(api: Api) -> None:
    organization_id, made = await subscribed(api)
    tenant = await api.make("tenants", name="web", organization_id=organization_id)
    more = await api.make("token-plans", name="More", total_amount=7)
    await api.patch(f"subscription-plans/{made['plan_id']}", {"token_plan_id": more["id"]})
    assert (await api.get(f"tenant-quotas/{tenant['id']}")).json["tokens_remaining"] == 7
    pushed = len(api.counters.pushed)
    await api.patch(f"subscription-plans/{made['plan_id']}", {"feature_access": ["chat", "embeddings"]})
    assert api.counters.pushed[pushed:] == [f"organization:{organization_id}"]


async def test_an_organization_with_a_subscription_is_kept(api: Api) -> None:
    organization_id, made = await subscribed(api)
    assert (await api.delete(f"organizations/{organization_id}")).status == 409
    await api.post(f"organization-subscriptions/{made['id']}/cancel", {"when": "now"})
    refused = await api.delete(f"organizations/{organization_id}")
    assert (refused.status, "of subscription. Invoice it first." in refused.json["detail"]) == (409, True)
    [owed] = (await api.get(f"organizations/{organization_id}/unbilled")).json["items"]
    assert (owed["kind"], owed["currency"], owed["charges"]) == ("subscription", "USD", 10)
    last = await api.make(
        "invoices", organization_id=organization_id, period_start=day(-10), period_end=day(2)
    )
    await api.post(f"invoices/{last['id']}/finalize")
    charges = (await api.get(f"charges?organization_id={organization_id}&billed=true")).json["items"]
    assert {charge["invoice_id"] for charge in charges} == {last["id"]}
    assert (await api.get(f"organizations/{organization_id}/unbilled")).json["items"] == []
    assert (await api.delete(f"organizations/{organization_id}")).status == 204


async def test_one_cancelled_before_it_began_stands_in_nobodys_way(api: Api) -> None:
    organization_id, made = await subscribed(api, start_date=day(10))
    where = f"organization-subscriptions/{made['id']}"
    assert (await api.post(f"{where}/cancel", {"when": "now"})).json["status"] == "over"
    back = await api.patch(where, {"end_date": day(20)})
    assert (back.json["status"], back.json["cancel_at"]) == ("future", None)
    await api.post(f"{where}/cancel", {"when": "now"})
    assert (await api.delete(f"subscription-plans/{made['plan_id']}")).status == 204
    assert (await api.delete(f"organizations/{organization_id}")).status == 204


async def test_terms_and_prices_change_from_a_day_on_and_refusals_name_the_field(api: Api) -> None:
    _, made = await subscribed(api)
    terms, price = (
        f"organization-subscriptions/{made['id']}/terms",
        f"subscription-plans/{made['plan_id']}/reprice",
    )
    told = await api.post(
        terms, {"from": day(0), "quantity": 3, "discount": "0.10", "negotiated_cost": "20.00"}
    )
    assert (told.status, told.json["quantity"], told.json["negotiated_cost"]) == (200, 3, "20")
    assert [each["cost"] for each in told.json["segments"]] == ["29.00", "60.00"]
    told = await api.post(terms, {"from": day(30), "minimum": None, "negotiated_cost": None})
    assert [(each["from"], each["waits"]) for each in told.json["terms"]] == [
        (day(0), False),
        (day(30), True),
    ]
    told = await api.post(price, {"from": day(5), "monthly_cost": "33.00"})
    assert (told.status, told.json["monthly_cost"]) == (200, "29.00")
    assert [(each["from"], each["monthly_cost"], each["waits"]) for each in told.json["prices"]][1:] == [
        (day(5), "33", True)
    ]
    for path, sent, fields in (
        (terms, {"quantity": 2}, {"from"}),
        (terms, {"from": day(1)}, {"discount", "minimum", "negotiated_cost", "quantity"}),
        (terms, {"from": day(-11), "quantity": 2}, {"from"}),
        (terms, {"from": day(1), "quantity": 0}, {"quantity"}),
        (price, {"from": day(-1), "annual_cost": "1.00"}, {"from"}),
        (price, {"from": day(1)}, {"monthly_cost", "annual_cost"}),
    ):
        refused = await api.post(path, sent)
        assert refused.status == 422
        assert {each["field"] for each in refused.json["errors"]} == fields
