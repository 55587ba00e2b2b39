"""An organization that pays in another currency than its models are priced in."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest

from gateway.client.holds import Holds
from tests.stage import Stage
from tests.waiting import wait_until

SINCE = "2026-01-01T00:00:00Z"
# Dollars a million tokens, and krones a dollar.
READ, WRITTEN, RATE = "2.5", "10", "6.876543219"


def cost(read: int, written: int) -> Decimal:
    """By hand: the exact amount, rounded once to a billionth, half up."""
    exact = (Fraction(READ) * read + Fraction(WRITTEN) * written) / 10**6 * Fraction(RATE)
    amount = Decimal(exact.numerator) / Decimal(exact.denominator)
    return amount.quantize(Decimal("1e-9"), ROUND_HALF_UP)


@pytest.mark.parametrize("at_cost", [False, True])
def test_its_budgets_and_its_invoices_go_by_the_rate(stage: Stage, at_cost: bool) -> None:
    currency, model = ("ISK", "krona-2") if at_cost else ("DKK", "krona-1")
    stage.make("prices", model=model, currency="USD", effective_from=SINCE, input=READ, output=WRITTEN)
    organization = stage.make("organizations", name=f"Pays in {currency}", currency=currency)["id"]
    plan = stage.make("token-plans", name=f"For {currency}")["id"]
    tenant = stage.make("tenants", name=currency, organization_id=organization, plan_id=plan)["id"]
    key = stage.make("api-keys", tenant_id=tenant)["key"]
    if at_cost:
        (chat,) = stage.admin("GET", "/services?key=chat")[1]["items"]
        (by_use,) = stage.admin("GET", "/business-models?name=Pay-Per-Use")[1]["items"]
        stage.make(
            "organization-services", organization_id=organization, service_id=chat["id"],
            negotiated_credits=0, business_model_id=by_use["id"], pricing={"at_cost": {"markup": "1"}},
        )  # fmt: skip
    budget = stage.make(
        "budgets", organization_id=organization, name="money", unit="money", amount="1", interval="total"
    )["id"]

    def call(usage: str) -> int:
        return stage.chat(key, usage=usage, model=model).status_code

    def refused() -> bool:
        answer = stage.chat(key, usage="1,1", model=model)
        said = answer.text
        return (
            answer.headers.get("x-tollkeeper-reason") == "model_not_priced"
            and "USD" in said
            and currency in said
        )

    wait_until(refused)
    stage.make("exchange-rates", currency=currency, rate=RATE, effective_from=SINCE)
    wait_until(lambda: call("1000,200") == 200)

    def rows() -> list[dict[str, object]]:
        found = stage.admin("GET", f"/calls?organization_id={organization}&limit=100")[1]["items"]
        return [row for row in found if row["status"] == 200]

    wait_until(lambda: len(rows()) == 1)
    (row,) = rows()
    spent = cost(1_000, 200)
    assert (Decimal(str(row["cost"])), row["currency"], row["exchange_rate"]) == (spent, currency, RATE)
    assert row["unpriced"] == []
    holds = Holds(stage.gateway_url, key)
    told = holds.take("chat", model=model, max_tokens=2_000).settle({"input": 1_000, "output": 200})
    holds.close()
    assert (Decimal(told["cost"]), told["currency"]) == (spent, currency)
    wait_until(lambda: len(rows()) == 2)
    assert [(Decimal(str(one["cost"])), one["exchange_rate"]) for one in rows()] == [(spent, RATE)] * 2
    spent *= 2

    def used() -> Decimal:
        return Decimal(stage.admin("GET", f"/budgets/{budget}")[1]["used"])

    wait_until(lambda: used() == spent)
    # It is enforced in the same currency: the rest of the budget pays so many tokens.
    written = int((1 - spent) * 10**6 / (Decimal(WRITTEN) * Decimal(RATE))) + 10
    wait_until(lambda: call(f"0,{written}") == 200)
    wait_until(lambda: used() > 1)
    over = stage.chat(key, model=model)
    assert over.headers["x-tollkeeper-reason"] == "budget_exceeded"
    asked = f"/usage?from={SINCE}&organization_id={organization}&interval=none&group_by=model"
    wait_until(lambda: sum(Decimal(one["cost"]) for one in stage.admin("GET", asked)[1]["items"]) == used())
    assert {one["currency"] for one in stage.admin("GET", asked)[1]["items"]} == {currency}
