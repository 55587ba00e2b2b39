"""A price by the hour from the Admin API to rows: calls, events, their explanation, and an amendment."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.journey.test_events import agrees, calls, event, send
from tests.stage import Stage
from tests.waiting import wait_until

EVERY_DAY = {"days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00", "time_zone": "UTC", "factor": "3"}


def test_calls_and_events_cost_the_factor_of_their_hour(stage: Stage) -> None:
    """Three times by day, but for five days ago and its neighbours."""
    name, now = f"hourly-{time.monotonic_ns()}", datetime.now(UTC)
    quiet = [str((now - timedelta(days=days)).date()) for days in (4, 5, 6)]
    made = stage.make(
        "prices", model=name, currency="USD", input="2", output="8", request="0.5",
        effective_from=(now - timedelta(days=30)).isoformat(), hours=[{**EVERY_DAY, "except": quiet}],
    )  # fmt: skip
    plan = stage.make("token-plans", name=name)["id"]
    organization = stage.make("organizations", name=name)["id"]
    tenant = stage.make("tenants", name=name, organization_id=organization, plan_id=plan)
    key = stage.make("api-keys", tenant_id=tenant["id"], name=name)["key"]
    stage.make(
        "budgets", organization_id=organization, name="all", unit="money", amount="100",
        interval="total", mode="audit",
    )  # fmt: skip
    assert stage.chat(key, "1000,500", model=name).status_code == 200
    subject, data = (
        f"tenant:{tenant['id']}",
        {"service": "chat", "model": name, "usage": {"input": 1_000_000}},
    )
    assert (
        send(stage, event(subject, data, timedelta(days=5)), event(subject, data, timedelta(days=10)))[
            "accepted"
        ]
        == 2
    )
    found = sorted(calls(stage, tenant["id"], 3), key=lambda row: row["created_at"])
    # 2 + 0.5 is 2.5; a thousand in and five hundred out are 0.002 + 0.004 + 0.5 = 0.506.
    assert [(Decimal(row["cost"]), row["hour_factor"]) for row in found] == [
        (Decimal("7.5"), "3"), (Decimal("2.5"), "1"), (Decimal("1.518"), "3"),
    ]  # fmt: skip
    for row in found[:2]:
        assert row["priced_at"] == row["created_at"]
    for row in found:
        _, told = stage.admin("GET", f"/calls/{row['request_id']}/explanation")
        [step] = [step for step in told["steps"] if step["step"] == "price"]
        assert not any("not all of the cost" in fact for fact in step["detail"]), step
    stage.amend(made, "typed 2 for 4", input="4")

    def costs() -> bool:
        rows = sorted(calls(stage, tenant["id"], 3), key=lambda row: row["created_at"])
        return [Decimal(row["cost"]) for row in rows] == [Decimal("13.5"), Decimal("4.5"), Decimal("1.524")]

    wait_until(costs)
    assert agrees(stage)
