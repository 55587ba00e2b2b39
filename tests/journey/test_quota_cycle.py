"""TokenPlan, TenantQuota and TokenLedger through their whole cycle, each movement a row."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from gateway.core.accounts.budgets import bounds
from tests.journey.stack import Body, Stack
from tests.waiting import wait_until


def brief(rows: list[Body]) -> list[tuple[Any, ...]]:
    return [(r["transaction_type"], r["direction"], r["amount"], r["total_remaining"]) for r in rows]


def test_every_movement_is_a_row_with_a_gapless_seq(stack: Stack) -> None:
    tenant, key = stack.tenant(100)
    stack.chat(key, "40,20")
    assert stack.act(tenant, "recharge", amount=500)["tokens_remaining"] == 540
    assert (
        stack.act(tenant, "adjust", amount=40, direction="OUT", reason="correction")["tokens_remaining"]
        == 500
    )
    assert (
        stack.act(tenant, "adjust", amount=10, direction="IN", reason="goodwill")["tokens_remaining"] == 510
    )
    quota = stack.act(tenant, "reset")
    assert (quota["tokens_remaining"], quota["tokens_used"]) == (100, 0)
    rows = stack.settled(tenant, 6)
    assert brief(rows) == [
        ("reset", "IN", 100, 100),
        ("consume", "OUT", 60, 40),
        ("recharge", "IN", 500, 540),
        ("adjust", "OUT", 40, 500),
        ("adjust", "IN", 10, 510),
        ("reset", "OUT", 410, 100),
    ]
    assert [r["seq"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r["cycle"] for r in rows] == [1, 1, 1, 1, 1, 2]
    assert rows[3]["metadata"]["reason"] == "correction"


def test_recharge_and_reset_open_the_gateway(stack: Stack) -> None:
    tenant, key = stack.tenant(10)
    assert stack.chat(key, "5,5").status_code == 200
    assert stack.chat(key, "5,5").status_code == 429
    stack.act(tenant, "recharge", amount=10)
    assert wait_until(lambda: stack.chat(key, "5,5").status_code == 200)
    assert stack.chat(key, "5,5").status_code == 429
    stack.act(tenant, "reset")
    assert wait_until(lambda: stack.chat(key, "5,5").status_code == 200)


def test_block_and_unblock_by_hand(stack: Stack) -> None:
    tenant, key = stack.tenant()
    quota = stack.act(tenant, "block")
    assert (quota["is_blocked"], quota["manual_block"]) == (True, True)
    refused = stack.chat(key, "1,1")
    assert (refused.status_code, refused.headers["x-tollkeeper-reason"]) == (403, "tenant_blocked")
    quota = stack.act(tenant, "unblock")
    assert (quota["is_blocked"], quota["manual_block"]) == (False, False)
    assert stack.chat(key, "1,1").status_code == 200
    stored = f"select is_blocked, manual_block, tokens_used from tenant_quota where tenant_id = {tenant}"
    assert wait_until(lambda: stack.rows(stored) == [(False, False, 2)])


def test_unlimited_plans_count_and_never_refuse(stack: Stack) -> None:
    tenant, key = stack.tenant(None)
    assert stack.chat(key, "4000000,5").status_code == 200
    quota = stack.quota(tenant)
    assert (quota["tokens_used"], quota["tokens_remaining"], quota["is_blocked"]) == (4000005, None, False)
    assert brief(stack.settled(tenant, 2)) == [("reset", "IN", 0, None), ("consume", "OUT", 4000005, None)]


def test_a_cycle_ends_at_midnight_of_its_plans_zone(stack: Stack) -> None:
    tenant, key = stack.tenant(100)
    for zone, day in (("Pacific/Auckland", 31), ("America/St_Johns", None)):
        plan = stack.make("token-plans", name=zone, total_amount=100, time_zone=zone, anchor_day=day)
        assert stack.admin("PATCH", f"/tenant-quotas/{tenant}", {"plan_id": plan["id"]})[0] == 200
        ends = bounds("month", zone, day or 1, time.time_ns() // 1_000_000)[1]
        assert datetime.fromisoformat(stack.quota(tenant)["next_reset_at"]).timestamp() * 1000 == ends
        assert stack.chat(key, "1,1").status_code == 200
    stack.admin("PATCH", f"/token-plans/{plan['id']}", {"time_zone": "UTC", "reset_interval": "daily"})
    ends = bounds("day", "UTC", 1, time.time_ns() // 1_000_000)[1]
    assert datetime.fromisoformat(stack.quota(tenant)["next_reset_at"]).timestamp() * 1000 == ends


def test_moving_to_another_plan_is_an_adjust_of_the_difference(stack: Stack) -> None:
    tenant, key = stack.tenant(100)
    stack.chat(key, "20,10")
    plans = [stack.make("token-plans", name=f"p{n}", total_amount=n)["id"] for n in (250, 60)]
    unlimited = stack.make("token-plans", name="u", total_amount=None)["id"]
    for plan_id, remaining in ((plans[0], 220), (plans[1], 30), (unlimited, None), (plans[0], 220)):
        status, quota = stack.admin("PATCH", f"/tenant-quotas/{tenant}", {"plan_id": plan_id})
        assert (status, quota["tokens_remaining"], quota["plan_id"]) == (200, remaining, plan_id)
    assert brief(stack.settled(tenant, 6))[2:] == [
        ("adjust", "IN", 150, 220),
        ("adjust", "OUT", 190, 30),
        ("adjust", "OUT", 30, None),
        ("adjust", "IN", 220, 220),
    ]


def test_a_plans_new_total_counts_from_the_next_reset(stack: Stack) -> None:
    tenant, key = stack.tenant(100)
    plan_id = stack.quota(tenant)["plan_id"]
    assert stack.admin("PATCH", f"/token-plans/{plan_id}", {"total_amount": 900})[0] == 200
    stack.chat(key, "5,5")
    assert stack.quota(tenant)["tokens_remaining"] == 90
    assert stack.act(tenant, "reset")["tokens_remaining"] == 900


def test_rollover_keeps_what_is_unused_up_to_its_maximum(stack: Stack) -> None:
    tenant, key = stack.tenant(100, rollover_max=30)
    stack.chat(key, "10,10")
    assert stack.act(tenant, "reset")["tokens_remaining"] == 130


def test_block_forgives_debt_and_carry_keeps_it(stack: Stack) -> None:
    forgiven, key = stack.tenant(10, overage_policy="block")
    stack.chat(key, "10,15")
    assert stack.act(forgiven, "reset")["tokens_remaining"] == 10
    carried, key = stack.tenant(10, overage_policy="carry")
    stack.chat(key, "10,5")
    assert stack.act(carried, "reset")["tokens_remaining"] == 5


def test_bill_never_refuses(stack: Stack) -> None:
    tenant, key = stack.tenant(10, overage_policy="bill", overage_unit_price="0.01")
    assert [stack.chat(key, "10,10").status_code for _ in range(3)] == [200, 200, 200]
    assert stack.quota(tenant)["tokens_remaining"] == -50


def test_read_only_token_reads_and_changes_nothing(stack: Stack) -> None:
    tenant, _ = stack.tenant()
    token = stack.make("admin-tokens", name="auditor", role="readonly")["token"]
    assert stack.admin("GET", f"/tenant-quotas/{tenant}", authorization=f"Bearer {token}")[0] == 200
    status, _ = stack.admin(
        "POST", f"/tenants/{tenant}/recharge", {"amount": 1}, authorization=f"Bearer {token}"
    )
    assert status == 403
    assert stack.quota(tenant)["tokens_remaining"] == 1000


def test_recharge_with_an_idempotency_key_happens_once(stack: Stack) -> None:
    tenant, _ = stack.tenant()
    for _ in range(3):
        status, quota = stack.admin(
            "POST", f"/tenants/{tenant}/recharge", {"amount": 5}, idempotency_key=f"once-{tenant}"
        )
        assert (status, quota["tokens_remaining"]) == (200, 1005)
    assert len(stack.settled(tenant, 2)) == 2


def test_invariant_views_are_empty(stack: Stack) -> None:
    views = [row[0] for row in stack.rows("select viewname from pg_views where viewname like 'invariant%'")]
    assert views
    for view in views:
        assert wait_until(lambda view=view: stack.rows(f"select * from {view} limit 5") == []), view
