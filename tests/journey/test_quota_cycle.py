"""TokenPlan, TenantQuota and TokenLedger through their whole cycle, each movement a row."""

from __future__ import annotations

from typing import Any

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


def test_invariant_views_are_empty(stack: Stack) -> None:
    views = [row[0] for row in stack.rows("select viewname from pg_views where viewname like 'invariant%'")]
    assert views
    for view in views:
        assert wait_until(lambda view=view: stack.rows(f"select * from {view} limit 5") == []), view
