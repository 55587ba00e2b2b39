"""A price is set wrong: 100 a call, and not 1. It is amended, and all that counts the calls is right then."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests import plain_http
from tests.journey.budgets import Spender
from tests.journey.test_events import agrees
from tests.stage import Stage
from tests.waiting import wait_until


def shown(stage: Stage, path: str) -> Any:
    status, found = stage.admin("GET", path)
    assert status == 200, found
    return found


def focus(stage: Stage, organization_id: int) -> Decimal:
    """What the FOCUS export has billed an organization."""
    today = datetime.now(UTC).date()
    span = f"from={today - timedelta(days=1)}T00:00:00Z&to={today + timedelta(days=1)}T00:00:00Z"
    answer = plain_http.get(
        f"{stage.admin_url}/admin/v1/usage/focus.csv?organization_id={organization_id}&{span}",
        headers={"authorization": f"Bearer {stage.admin_token}"},
    )
    rows = csv.DictReader(io.StringIO(answer.text))
    return sum((Decimal(row["BilledCost"]) for row in rows), Decimal(0))


def test_ten_calls_in_a_plan_cost_what_they_would_have(stage: Stage) -> None:
    spender = Spender(stage)
    name = f"wrong-{time.monotonic_ns()}"
    since = "2026-01-01T00:00:00Z"
    wrong = stage.make("prices", model=name, currency="USD", request="100", effective_from=since)
    month = spender.budget(100_000, interval="month")
    each = spender.budget(100_000, interval="total", each="user")
    spender.known(month, each)
    for _ in range(10):  # the first ones are refused until the price is known
        spender.until(200, user="ada", body={"model": name})
    assert {row["cost"] for row in spender.journal(10)} == {"100.00"}
    spender.comes_to(month, 1000)
    spender.comes_to(each, 1000)
    amends = f"/prices/{wrong['id']}/amend"
    status, made = stage.admin("POST", amends, {"request": "1", "reason": "typed wrong"})
    assert (status, made["amends_id"], made["request"]) == (200, wrong["id"], "1")
    status, refused = stage.admin("POST", amends, {"request": "2", "reason": "again"})
    assert (status, refused["detail"]) == (
        409, f"This price was amended already, by price {made['id']}: amend that one."
    )  # fmt: skip
    # A call costs 1.00, once, wherever it is counted.
    spender.comes_to(month, 10)
    spender.comes_to(each, 10)
    wait_until(lambda: {row["cost"] for row in spender.journal(10)} == {"1.00"})
    usage = shown(stage, f"/usage?organization_id={spender.organization}&interval=none")["items"]
    assert sum(Decimal(row["cost"]) for row in usage) == 10
    assert focus(stage, spender.organization) == 10
    rated = shown(stage, f"/reratings?price_id={made['id']}")["items"]
    assert [(row["cost_before"], row["cost_after"], row["charged"]) for row in rated] == [
        ("100", "1", "0")
    ] * 10
    # The next call has the new price from its beginning.
    spender.until(200, user="ada", body={"model": name})
    assert spender.spent(11) == 11
    spender.comes_to(month, 11)
    assert agrees(stage)
