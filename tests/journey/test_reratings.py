"""A price that comes into force before now: what is not billed is rated again, what is billed stays."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.journey.stack import Body
from tests.journey.test_events import agrees, calls, event, send, unbilled
from tests.stage import Stage
from tests.waiting import wait_until


def price(stage: Stage, model: str, rate: str, ago: timedelta) -> Body:
    at = (datetime.now(UTC) - ago).isoformat()
    return stage.make("prices", model=model, currency="USD", input=rate, effective_from=at)


def usage(stage: Stage, organization_id: int) -> Decimal:
    return Decimal(unbilled(stage, organization_id).get("usage", "0"))


def test_open_charges_of_that_time_are_rated_again(stage: Stage) -> None:
    name = f"dated-{time.monotonic_ns()}"
    price(stage, name, "1", timedelta(days=30))
    model = stage.admin("GET", "/business-models?limit=100")[1]["items"]
    [own] = [each["id"] for each in model if each["meter"] == "pay_per_use"]
    stage.make(
        "services", name=name, key=name, credits=0, service_type="Pay-As-You-Go", business_model_id=own,
        pricing={"at_cost": {"markup": "2"}},
    )  # fmt: skip
    tenant = stage.make("tenants", name=name)
    organization, subject = tenant["organization_id"], f"tenant:{tenant['id']}"
    stage.make(
        "budgets", organization_id=organization, name="all", unit="money", amount="1000", interval="total"
    )
    data = {"service": name, "model": name, "usage": {"input": 3_000_000}}
    sent = [event(subject, data, timedelta(days=days)) for days in (20, 5, 0)]
    assert send(stage, *sent)["accepted"] == 3
    calls(stage, tenant["id"], 3)
    wait_until(lambda: usage(stage, organization) == 18)
    made = price(stage, name, "1.5", timedelta(days=10))
    wait_until(lambda: usage(stage, organization) == 24)
    status, found = stage.admin("GET", f"/reratings?organization_id={organization}")
    assert (status, len(found["items"])) == (200, 2)
    for row in found["items"]:
        assert (row["price_id"], row["cost_before"], row["cost_after"], row["charged"]) == (
            made["id"], "3", "4.5", "3"
        )  # fmt: skip
        assert row["reason"].startswith(f"price {made['id']} of {name} from ")
        assert row["actor"] == "builtin:admin"
    told = {each["cost"]: each["price_id"] for each in calls(stage, tenant["id"], 3)}
    assert told.keys() == {"3.00", "4.50"}
    assert told["4.50"] == made["id"]
    # One that is in force before that is about what was used until then; a cheaper one gives back.
    price(stage, name, "0.5", timedelta(days=25))
    wait_until(lambda: usage(stage, organization) == 21)
    assert agrees(stage)
