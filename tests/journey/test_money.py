"""What calls cost, to the part: credits by token, whose parts are carried, and calls charged at cost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import httpx2 as httpx
import pytest

from tests.journey.stack import Body
from tests.journey.test_credits import Buyer
from tests.journey.test_events import agrees, event, send, unbilled
from tests.stage import Stage
from tests.waiting import wait_until

CALLS = 100


@pytest.fixture
def buyer(stage: Stage) -> Buyer:
    return Buyer(stage)


def gives(buyer: Buyer, model: str, pricing: Body) -> None:
    """The demo's chat to this organization at a price of its own."""
    chat = next(one for one in buyer.stack.admin("GET", "/services?key=chat")[1]["items"])
    buyer.stack.make(
        "organization-services", organization_id=buyer.id, service_id=chat["id"], negotiated_credits=0,
        business_model_id=buyer.models[model], pricing=pricing,
    )  # fmt: skip


def chat(buyer: Buyer, usage: str = "10,20", **more: Any) -> httpx.Response:
    key = buyer.headers["authorization"].removeprefix("Bearer ")
    return buyer.stack.chat(key, usage=usage, **more)


def in_force(ask: Callable[[], httpx.Response]) -> int:
    """Calls until the price is known; how many of them were answered."""
    served = 0

    def answered() -> bool:
        nonlocal served
        answers = ask().status_code == 200
        served += answers
        return answers

    wait_until(answered)
    return served


def test_a_hundred_calls_worth_115_75_credits_cost_116(buyer: Buyer) -> None:
    # 10 tokens read and 20 written at 15,750 and 50,000 credits a million: 1.1575 credits.
    per_million = {"demo-s*": {"input": 15_750, "output": 50_000}}
    gives(buyer, "Consumption", {"per_million": per_million})
    buyer.give(100_000)
    served = in_force(lambda: chat(buyer))
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(lambda _: chat(buyer), range(CALLS - served))
        assert {answer.status_code for answer in answers} == {200}
    rows = buyer.rows("credit-transactions", CALLS)
    assert sum(row["credits_used"] for row in rows) == 116
    assert {row["credits_exact"] for row in rows} == {"1.1575"}
    organization = buyer.stack.admin("GET", f"/organizations/{buyer.id}")[1]
    assert organization["credit_balance"] == 100_000 - 116
    assert organization["credit_ahead"] == "0.25"


def test_calls_at_cost_are_billed_to_the_last_part(stage: Stage) -> None:
    buyer = Buyer(stage, spend_cap="5")
    since = "2026-01-01T00:00:00Z"
    stage.make("prices", model="money-", match="prefix", currency="USD", effective_from=since,
               input="0.15", output="0.6", request="0.000000007")  # fmt: skip
    gives(buyer, "Pay-Per-Use", {"at_cost": {"markup": "1.2"}})
    before = in_force(lambda: chat(buyer, model="money-1"))
    for usage in ("1,1", "1234,567", "100000,3"):
        assert chat(buyer, usage, model="money-1").status_code == 200
    rows = buyer.rows("feature-usage", before + 3)
    uses = [*[(10, 20)] * before, (1, 1), (1234, 567), (100_000, 3)]
    costs = [read * Fraction("0.15") / 10**6 + written * Fraction("0.6") / 10**6 + Fraction(7, 10**9)
             for read, written in uses]  # fmt: skip
    nano = [int(cost * Fraction("1.2") * 10**9 + Fraction(1, 2)) for cost in costs]
    assert [row["usage_amount"] for row in rows] == nano
    assert [Decimal(row["cost"]) for row in rows] == [Decimal(one) / 10**9 for one in nano]
    # Those that were refused until the price was known have a row as well.
    journal = stage.admin("GET", f"/calls?organization_id={buyer.id}&limit=1000")[1]["items"]
    calls = [row for row in journal if row["status"] == 200]
    assert [Fraction(row["cost"]) for row in calls] == costs
    assert {row["units"] for row in calls} == {1}
    (spent,) = stage.rows(f"select spent from organization where id = {buyer.id}")
    assert spent[0] == ceil(Fraction(sum(nano), 1000))
    today = datetime.now(UTC).date()
    invoice = stage.make(
        "invoices", organization_id=buyer.id, period_start=str(today.replace(day=1)),
        period_end=str(today + timedelta(days=1)),
    )  # fmt: skip
    (line,) = invoice["lines"]
    exact = Decimal(sum(nano)) / 10**9
    assert line["description"].endswith(", at cost")
    assert (line["quantity"], Decimal(line["unit_price"])) == (1, exact)
    assert Decimal(line["amount"]) == exact.quantize(Decimal("0.01"), ROUND_HALF_UP)
    told = stage.admin("GET", f"/invoices/{invoice['id']}")[1]
    assert told["lines"] == invoice["lines"]


def test_what_is_paid_by_the_call_uses_up_no_plan(stage: Stage) -> None:
    """A call of 50,000 and 10,000 tokens at 3 and 15 a million, by 1.2, beside a plan of 1,000 that bills."""
    buyer = Buyer(stage)
    plan = stage.make(
        "token-plans", name=f"double {buyer.id}", total_amount=1_000, overage_policy="bill",
        overage_unit_price="0.001",
    )  # fmt: skip
    [tenant] = stage.admin("GET", f"/tenants?organization_id={buyer.id}")[1]["items"]
    stage.admin("PATCH", f"/tenants/{tenant['id']}", {"plan_id": plan["id"]})
    stage.make("prices", model="double-", match="prefix", currency="USD", input="3", output="15",
               effective_from="2026-01-01T00:00:00Z")  # fmt: skip
    gives(buyer, "Pay-Per-Use", {"at_cost": {"markup": "1.2"}})
    served = in_force(lambda: chat(buyer, "1,1", model="double-1"))
    used = Decimal(50_000) * 3 + Decimal(10_000) * 15
    paid = used / 10**6 * Decimal("1.2")

    def owed() -> dict[str, Decimal]:
        """To the cent: calls that the price was waited for with cost less than one together."""
        return {
            kind: Decimal(amount).quantize(Decimal("0.01"))
            for kind, amount in unbilled(stage, buyer.id).items()
        }

    assert chat(buyer, "50000,10000", model="double-1").status_code == 200
    buyer.rows("feature-usage", served + 1)
    told = {"service": "chat", "model": "double-1", "usage": {"input": 50_000, "output": 10_000}}
    assert send(stage, event(f"tenant:{tenant['id']}", told))["accepted"] == 1
    wait_until(lambda: owed() == {"usage": 2 * paid})
    assert stage.quota(tenant["id"])["tokens_remaining"] == 1_000
    # Who wants both says so, for one customer.
    [price] = stage.admin("GET", f"/organization-services?organization_id={buyer.id}")[1]["items"]
    stage.admin("PATCH", f"/organization-services/{price['id']}", {"counts_tokens": True})
    wait_until(lambda: chat(buyer, "1,1", model="double-1").headers.get("x-tollkeeper-tokens-remaining"))
    wait_until(lambda: 0 < stage.quota(tenant["id"])["tokens_remaining"] < 1_000)
    assert send(stage, event(f"tenant:{tenant['id']}", told))["accepted"] == 1
    wait_until(lambda: owed().keys() == {"usage", "overage"})
    assert agrees(stage)
