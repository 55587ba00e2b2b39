"""TokenPlan, TenantQuota and TokenLedger through their whole cycle, each movement a row."""

from __future__ import annotations

from typing import Any

from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until


def brief(rows: list[Body]) -> list[tuple[Any, ...]]:
    return [(r["transaction_type"], r["direction"], r["amount"], r["total_remaining"]) for r in rows]


def test_every_movement_is_a_row_with_a_gapless_seq(stage: Stage) -> None:
    tenant, key = stage.tenant(100)
    stage.chat(key, "40,20")
    assert stage.act(tenant, "recharge", amount=500)["tokens_remaining"] == 540
    assert (
        stage.act(tenant, "adjust", amount=40, direction="OUT", reason="correction")["tokens_remaining"]
        == 500
    )
    assert (
        stage.act(tenant, "adjust", amount=10, direction="IN", reason="goodwill")["tokens_remaining"] == 510
    )
    quota = stage.act(tenant, "reset")
    assert (quota["tokens_remaining"], quota["tokens_used"]) == (100, 0)
    rows = stage.settled(tenant, 6)
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


def test_invariant_views_are_empty(stage: Stage) -> None:
    views = [row[0] for row in stage.rows("select viewname from pg_views where viewname like 'invariant%'")]
    assert views
    for view in views:
        assert wait_until(lambda view=view: stage.rows(f"select * from {view} limit 5") == []), view
