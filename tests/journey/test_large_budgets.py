"""Budgets of 10^15 of the smallest unit of a currency: made, used, told, used up, raised, reset, compared."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX, Body
from tests.journey.test_events import agrees, event, send
from tests.stage import Stage
from tests.waiting import wait_until

# By currency what 10^15 of its smallest unit is: ISO 4217 has no decimals of the first three, two of rupiahs.
LARGE = {
    "VND": "1000000000000000", "KRW": "1000000000000000", "JPY": "1000000000000000",
    "IDR": "10000000000000", "KWD": "1000000000000",
}  # fmt: skip
# Of the currency a million tokens; an event of a million costs it all, a call some hundred tokens.
PRICE = 9_000_000


class Payer:
    """An organization that pays in a currency, with a priced model and a budget of the largest amount."""

    def __init__(self, stage: Stage, currency: str, *, by_file: bool) -> None:
        self.stage, self.currency, self.model = stage, currency, f"large-{currency.lower()}"
        name = f"pays in {currency} {time.monotonic_ns()}"
        organization = stage.make("organizations", name=name, currency=currency)
        plan = stage.make("token-plans", name=name, total_amount=None)
        self.tenant = stage.make(
            "tenants", name=name, organization_id=organization["id"], plan_id=plan["id"]
        )["id"]
        self.key = stage.make("api-keys", tenant_id=self.tenant)["key"]
        stage.make(
            "prices", model=self.model, currency=currency, effective_from="2026-01-01T00:00:00Z",
            input=str(PRICE), output=str(PRICE),
        )  # fmt: skip
        said = {"name": "all", "unit": "money", "amount": LARGE[currency], "interval": "total"}
        if by_file:
            written = {"organization": name, **said}
            assert len(stage.apply(budgets=[written])) == 1
            assert not stage.apply(budgets=[written])
            [budget] = stage.admin("GET", f"/budgets?organization_id={organization['id']}")[1]["items"]
            self.budget = budget["id"]
        else:
            self.budget = stage.make("budgets", organization_id=organization["id"], **said)["id"]
        self.used = Decimal(0)

    def admin(self, method: str, more: str = "", body: Any = None) -> Body:
        status, found = self.stage.admin(method, f"/budgets/{self.budget}{more}", body)
        assert status == 200, found
        row: Body = found
        return row

    def use(self, tokens: int) -> None:
        """An event of so many tokens."""
        told = {"service": "chat", "usage": {"input": tokens}, "model": self.model}
        assert send(self.stage, event(f"tenant:{self.tenant}", told))["accepted"] == 1
        self.used += Decimal(tokens) * PRICE / 10**6

    def comes_to(self, used: Decimal) -> Body:
        """Return the budget once so much is used of it."""
        return wait_until(lambda: Decimal((row := self.admin("GET"))["used"]) == used and row)

    def told(self) -> Body | None:
        answer = plain_http.get(
            f"{self.stage.gateway_url}/.tollkeeper/usage", headers={"authorization": f"Bearer {self.key}"},
            timeout=ANSWER_S_MAX,
        ).json()  # fmt: skip
        return next((one for one in answer.get("limits", ()) if one["scope"] == "budget"), None)

    def until(self, status: int) -> httpx.Response:
        """Call until it is answered so; each answered call is used."""
        return wait_until(lambda: (answer := self.call()).status_code == status and answer)

    def call(self) -> httpx.Response:
        body = {"model": self.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
        answer = plain_http.post(
            f"{self.stage.gateway_url}/v1/chat/completions", json=body, timeout=ANSWER_S_MAX,
            headers={"authorization": f"Bearer {self.key}", "x-demo-usage": "3,4"},
        )  # fmt: skip
        if answer.status_code == 200:
            self.used += Decimal(7) * PRICE / 10**6
        return answer


def test_ten_to_the_fifteenth_of_the_smallest_unit_is_a_budget_in_any_currency(stage: Stage) -> None:
    payers = [Payer(stage, currency, by_file=at % 2 == 0) for at, currency in enumerate(LARGE)]
    for payer in payers:
        amount = LARGE[payer.currency]
        wait_until(lambda payer=payer, amount=amount: (told := payer.told()) and told["limit"] == amount)
        part = "kilo-" if len(amount) > 15 else ""  # a structured field has 15 digits
        assert f'qu="{part}{payer.currency}"' in payer.until(200).headers["ratelimit-policy"]
        for _ in range(2):  # beyond 2^53 billionths
            payer.use(10**6)
    for payer in payers:
        row = payer.comes_to(payer.used)
        assert (Decimal(row["remaining"]), Decimal(row["held"])) == (Decimal(row["amount"]) - payer.used, 0)
        told = payer.told()
        assert told is not None
        assert told["used"] == f"{payer.used.normalize():f}"
        payer.admin("PATCH", "", {"amount": f"{payer.used + 1:f}"})
    for payer in payers:
        refused = payer.until(429)
        assert refused.headers["x-tollkeeper-reason"] == "budget_exceeded"
        row = payer.comes_to(payer.used)
        left = max(Decimal(0), Decimal(row["amount"]) - payer.used)
        assert Decimal(refused.headers["x-tollkeeper-left"]) == left
        raised = {"amount": LARGE[payer.currency], "until": "2099-12-01T00:00:00Z", "reason": "the fair"}
        payer.admin("POST", "/raise", raised)
    for payer in payers:
        payer.until(200)
        payer.comes_to(payer.used)
    assert agrees(stage)
    for payer in payers:
        payer.admin("POST", "/reset")
        payer.comes_to(Decimal(0))
        payer.use(10)
        payer.comes_to(Decimal(10 * PRICE) / 10**6)
    assert agrees(stage)
