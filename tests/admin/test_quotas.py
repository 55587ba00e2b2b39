"""Plans, quotas and the tenant's actions: what is written, what is pushed, what is answered."""

from __future__ import annotations

import time

import pytest

from gateway.core.accounts.plans import TERMS
from gateway.core.accounts.weights import WEIGHTED_PLANS_MAX
from gateway.counters.redis.keys import partition_of
from tests.admin.conftest import Api

PLAN = {"name": "Basic", "total_amount": 1000, "reset_interval": "daily", "rollover_max": 50}


async def test_creating_a_tenant_with_a_plan_sends_definitions_to_redis_before_the_plan(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    before = int(time.time() * 1000)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    writes = api.rows("select account, verb, payload, partition from control_write order by position")
    account, partition = f"tenant:{tenant['id']}", partition_of(tenant["organization_id"])
    assert before <= writes[-1][2].pop("since_ms") <= time.time() * 1000
    assert writes == [
        (f"organization:{tenant['organization_id']}", "define", {}, partition),
        (account, "define", {}, partition),
        (
            account,
            "plan",
            {
                "plan_id": plan["id"],
                "anchor": 1,
                **{one.name: plan[one.name] for one in TERMS},
            },
            partition,
        ),
    ]


async def test_tenant_quota_is_read_from_redis(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    quota = (await api.get(f"tenant-quotas/{tenant['id']}")).json
    assert quota == {
        "id": tenant["id"],
        "tenant_id": tenant["id"],
        "plan_id": plan["id"],
        "tokens_used": 0,
        "tokens_remaining": 1000,
        "tokens_held": 0,
        "is_blocked": False,
        "manual_block": False,
        "block_cause": None,
        "last_reset": None,
        "next_reset_at": None,
        "is_current": True,
    }
    assert api.counters.peeked[-1] == (partition_of(tenant["organization_id"]), tenant["id"])


async def test_tenant_quota_shows_the_last_stored_values_while_redis_is_unavailable(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    api.counters.away = True
    where = f"tenant-quotas/{tenant['id']}"
    assert (await api.get(where)).json["tokens_remaining"] == 1000
    api.rows(
        "update tenant_quota set last_seq = 4, tokens_used = 30, tokens_remaining = -7, is_blocked = true,"
        " next_reset_at = '2026-02-01T00:00:00Z' where tenant_id = %s",
        tenant["id"],
    )
    found = (await api.get(where)).json
    assert (found["tokens_used"], found["tokens_remaining"], found["is_blocked"]) == (30, -7, True)
    assert found["is_current"] is False
    assert found["next_reset_at"] == "2026-02-01T00:00:00Z"


async def test_quota_and_balance_are_marked_not_current_if_redis_cannot_read_the_account(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    made = [await api.make("tenants", name=name, plan_id=plan["id"]) for name in ("odd", "good")]
    api.counters.unreadable = {made[0]["id"], made[0]["organization_id"]}
    found = (await api.get("tenant-quotas")).json["items"]
    assert {each["id"]: each["is_current"] for each in found} == {made[0]["id"]: False, made[1]["id"]: True}
    owners = (await api.get("organizations")).json["items"]
    assert {each["id"]: each["balance_is_current"] for each in owners} == {
        made[0]["organization_id"]: False,
        made[1]["organization_id"]: True,
    }


async def test_recharge_adjust_and_reset_of_a_tenant_return_the_resulting_quota(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    for action, body, remaining in (
        ("recharge", {"amount": 5}, 1005), ("adjust", {"amount": 5, "direction": "OUT", "reason": "a"}, 1000),
        ("adjust", {"amount": 7, "direction": "IN", "reason": "gift"}, 1007), ("reset", {}, 1000),
        ("recharge", {"amount": 1}, 1001), ("reset", None, 1000),
    ):  # fmt: skip
        answer = await api.post(f"tenants/{tenant['id']}/{action}", body)
        assert (answer.status, answer.json["tokens_remaining"]) == (200, remaining)
        last = api.rows("select verb, payload from control_write order by position desc limit 1")
        assert last == [(action, body or {})]


async def test_tenant_block_and_unblock_show_in_the_tenant_quota(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    for action, blocked in (("block", True), ("block", True), ("unblock", False)):
        answer = await api.post(f"tenants/{tenant['id']}/{action}")
        assert (answer.status, answer.json["manual_block"], answer.json["is_blocked"]) == (
            200,
            blocked,
            blocked,
        )


async def test_tenant_can_be_moved_to_another_plan_and_off_any_plan(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    bigger = await api.make("token-plans", **{**PLAN, "name": "Bigger", "total_amount": 5000})
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    moved = await api.patch(f"tenant-quotas/{tenant['id']}", {"plan_id": bigger["id"]})
    assert (moved.status, moved.json["plan_id"], moved.json["tokens_remaining"]) == (200, bigger["id"], 5000)
    assert (await api.get(f"tenants/{tenant['id']}")).json["plan_id"] == bigger["id"]
    back = await api.patch(f"tenants/{tenant['id']}", {"plan_id": plan["id"]})
    assert (back.status, back.json["plan_id"]) == (200, plan["id"])
    gone = await api.patch(f"tenant-quotas/{tenant['id']}", {"plan_id": None})
    assert (gone.json["plan_id"], gone.json["tokens_remaining"]) == (None, None)
    verbs = api.rows("select count(*) from control_write where verb = 'plan'")
    assert verbs == [(4,)]


async def test_assigning_a_tenant_the_plan_already_in_use_changes_no_quota(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    await api.patch(f"tenant-quotas/{tenant['id']}", {"plan_id": plan["id"]})
    await api.patch(f"tenants/{tenant['id']}", {"plan_id": plan["id"]})
    assert api.rows("select count(*) from control_write where verb = 'plan'") == [(1,)]


async def test_plan_change_updates_quotas_only_of_tenants_on_that_plan(api: Api) -> None:
    plan = await api.make("token-plans", **PLAN)
    other = await api.make("token-plans", name="Other")
    tenants = [await api.make("tenants", name=name, plan_id=plan["id"]) for name in "ab"]
    await api.make("tenants", name="c", plan_id=other["id"])
    api.counters.pushed.clear()
    assert (await api.patch(f"token-plans/{plan['id']}", {"name": "Renamed"})).status == 200
    assert api.counters.pushed == []
    changed = await api.patch(f"token-plans/{plan['id']}", {"total_amount": None})
    assert (changed.status, changed.json["total_amount"]) == (200, None)
    assert sorted(api.counters.pushed) == [f"tenant:{tenant['id']}" for tenant in tenants]


async def test_change_of_a_plan_with_very_many_tenants_is_202_and_completed_in_the_background(
    api: Api,
) -> None:
    plan = await api.make("token-plans", **PLAN)
    api.rows(
        "with o as (insert into organization (name) values ('many') returning id)"
        " insert into tenant (name, organization_id, plan_id)"
        " select 'tenant ' || n, o.id, %s from o, generate_series(1, 1500) as n",
        plan["id"],
    )
    changed = await api.patch(f"token-plans/{plan['id']}", {"total_amount": 7})
    assert changed.status == 202
    assert changed.json["total_amount"] == 7
    assert api.rows("select count(*) from control_write where verb = 'define'") == [(1500,)]
    assert len(api.counters.pushed) == 64


async def test_anchor_day_invalid_for_the_new_reset_interval_is_refused(api: Api) -> None:
    plan = await api.make("token-plans", name="Monthly", anchor_day=8)
    refused = await api.patch(f"token-plans/{plan['id']}", {"reset_interval": "weekly"})
    said = "must be 1 (Monday) to 7 (Sunday) where the interval is a week"
    assert refused.json["errors"] == [{"field": "anchor_day", "message": said}]
    assert api.rows("select reset_interval, anchor_day from token_plan") == [("monthly", 8)]


async def test_change_of_plan_time_zone_or_anchor_day_is_stored_and_sent_to_redis(api: Api) -> None:
    plain = await api.make("token-plans", **PLAN)
    assert (plain["time_zone"], plain["anchor_day"]) == ("UTC", None)
    plan = await api.make("token-plans", name="Berlin", time_zone="Europe/Berlin", anchor_day=31)
    assert (plan["time_zone"], plan["anchor_day"]) == ("Europe/Berlin", 31)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    api.counters.pushed.clear()
    path = f"token-plans/{plan['id']}"
    for change in ({"time_zone": "Asia/Kolkata"}, {"anchor_day": None}):
        changed = await api.patch(path, change)
        assert (changed.status, changed.json) == (200, (await api.get(path)).json)
        assert change.items() <= changed.json.items()
    assert api.counters.pushed == [f"tenant:{tenant['id']}"] * 2


async def test_changed_token_weights_of_a_plan_are_stored_and_published_to_the_gateways(api: Api) -> None:
    plain = await api.make("token-plans", **PLAN)
    assert plain["weights"] is None
    assert not catalogues(api)
    said = {"cache_read": "0.10", "output": "5"}
    plan = await api.make("token-plans", **PLAN | {"name": "Weighted"}, weights=said)
    assert plan["weights"] == said
    assert len(catalogues(api)) == 1
    await api.patch(f"token-plans/{plan['id']}", {"name": "Other"})
    assert len(catalogues(api)) == 1
    changed = await api.patch(f"token-plans/{plan['id']}", {"weights": {"cache_write_1h": "1.6"}})
    assert changed.json["weights"] == {"cache_write_1h": "1.6"}
    assert len(catalogues(api)) == 2
    cleared = await api.patch(f"token-plans/{plan['id']}", {"weights": None})
    assert cleared.json["weights"] is None
    assert len(catalogues(api)) == 3


def catalogues(api: Api) -> list[tuple[object, ...]]:
    return list(api.rows("select verb from control_write where account = 'catalogue'"))


async def test_number_of_plans_with_token_weights_is_limited_to_the_gateway_maximum(api: Api) -> None:
    first = await api.make("token-plans", **PLAN, weights={"cache_read": "0"})
    weighing = """insert into token_plan (name, weights)
                  select 'weighing ' || n, '{"input": "2"}' from generate_series(2, %s) as n returning id"""
    assert len(api.rows(weighing % WEIGHTED_PLANS_MAX)) == WEIGHTED_PLANS_MAX - 1
    refused = await api.post("token-plans", {"name": "One more", "weights": {"input": "1.5"}})
    assert (refused.status, [error["field"] for error in refused.json["errors"]]) == (422, ["weights"])
    second = await api.make("token-plans", **PLAN | {"name": "Plain"})
    assert (await api.patch(f"token-plans/{second['id']}", {"weights": {"input": "2"}})).status == 422
    assert (await api.patch(f"token-plans/{first['id']}", {"weights": {}})).status == 200
    assert (await api.patch(f"token-plans/{second['id']}", {"weights": {"input": "2"}})).status == 200


async def test_writes_while_redis_is_unavailable_are_202_and_stored_as_pending(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.away = True
    made = await api.post("api-keys", {"tenant_id": tenant["id"], "name": "k"})
    assert made.status == 202
    assert made.json["key"].startswith("tk_")
    charged = await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 5})
    assert charged.status == 202
    assert charged.json["tenant_id"] == tenant["id"]
    waiting = api.rows("select verb from control_write where state = 'pending' order by position")
    assert waiting == [("define",), ("recharge",)]
    api.counters.away = False
    assert (await api.post(f"tenants/{tenant['id']}/block")).status == 200
    assert api.rows("select verb from control_write where state = 'pending'") == [("define",)]


async def test_recharge_is_202_when_the_update_of_redis_fails(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await api.make("tenants", name="web")

    async def break_down(account: str) -> bool:
        raise RuntimeError(account)

    monkeypatch.setattr(api.counters, "push", break_down)
    assert (await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 5})).status == 202


async def test_recharge_refused_by_redis_is_409_and_stored_only_once(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.refuses = "the amount is too large"
    for _ in range(2):
        refused = await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 2**53 - 1}, key="once")
        assert refused.status == 409
        assert "the amount is too large" in refused.json["detail"]
    assert api.rows("select count(*) from control_write where verb = 'recharge'") == [(1,)]
