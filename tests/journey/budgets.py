"""Somebody who has budgets: an organization with a priced model, its calls, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX, Body, Stack
from tests.waiting import wait_until

MODEL = "budgeted-1"
# Dollars a million tokens.
READ, WRITTEN = Decimal(1), Decimal(2)
MILLION = 10**6
CALL = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 16}


def cost(read: int, written: int) -> Decimal:
    """What a call costs by the price of `MODEL`."""
    return (read * READ + written * WRITTEN) / MILLION


def priced(stack: Stack) -> None:
    """`MODEL` and all that begin like it have a price, which every worker knows."""
    if not stack.admin("GET", "/prices?model=budgeted-")[1]["items"]:
        since = "2026-01-01T00:00:00Z"
        stack.make("prices", model="budgeted-", match="prefix", currency="USD", effective_from=since,
                   input=str(READ), output=str(WRITTEN))  # fmt: skip
        spender = Spender(stack)
        spender.known(spender.budget(MILLION))
        # Whoever knows a budget in money and no price yet refuses.
        wait_until(lambda: all(spender.chat().status_code == 200 for _ in range(stack.together)))


class Spender:
    """An organization with one tenant, on a plan without a total, and one API key."""

    def __init__(self, stack: Stack, *, plan: Body | None = None, **key: Any) -> None:
        priced(stack)
        self.stack = stack
        self.tenant, _ = stack.tenant(None, **(plan or {}))
        self.organization: int = stack.admin("GET", f"/tenants/{self.tenant}")[1]["organization_id"]
        self.key_id, self.key = self.another_key(**key)

    def another_key(self, **fields: Any) -> tuple[int, str]:
        made = self.stack.make("api-keys", tenant_id=self.tenant, **fields)
        return made["id"], made["key"]

    def budget(self, amount: Decimal | int | str, unit: str = "money", **fields: Any) -> Body:
        """A budget a day of this organization's calls, unless it says another interval."""
        said = {"name": f"budget {time.monotonic_ns()}", "interval": "day"} | fields
        value = str(amount) if unit == "money" else int(amount)
        return self.stack.make("budgets", organization_id=self.organization, unit=unit, amount=value, **said)

    def known(self, *budgets: Body, key: str = "", **said: str) -> None:
        """Wait until every worker goes by these budgets, as somebody who says this of a call."""
        names = {one["name"] for one in budgets}

        def known() -> bool:
            return names <= {limit["name"] for limit in self.usage(key, **said).get("limits", ())}

        # A key is told its own usage 60 times a minute.
        wait_until(lambda: all(known() for _ in range(self.stack.together)), apart_s=0.1)

    def usage(self, key: str = "", **said: str) -> Body:
        """What the key's holder is told, of somebody who says this of a call."""
        headers = {"authorization": f"Bearer {key or self.key}"} | fields(said)
        url = f"{self.stack.gateway_url}/.tollkeeper/usage"
        told: Body = plain_http.get(url, headers=headers, timeout=ANSWER_S_MAX).json()
        return told

    def told(self, budget: Body, **said: str) -> Body:
        """What the key's holder is told of one budget."""
        (found,) = (one for one in self.usage(**said)["limits"] if one["name"] == budget["name"])
        limit: Body = found
        return limit

    def used(self, budget: Body) -> Decimal:
        """What is used of a budget just now, by everybody, as its administrator sees it."""
        return self._sum(budget, "used")

    def comes_to(self, budget: Body, amount: Decimal | int) -> None:
        """Wait until so much is used of a budget, everybody's rows being stored."""
        wait_until(lambda: self.used(budget) == amount)

    def held(self, budget: Body) -> Decimal:
        """What calls in flight hold of it."""
        return self._sum(budget, "held")

    def _sum(self, budget: Body, figure: str) -> Decimal:
        rows = self.accounts(budget) if budget["each"] else [self.shown(budget)]
        return sum((Decimal(str(one[figure])) for one in rows), Decimal(0))

    def shown(self, budget: Body) -> Body:
        """A budget as its administrator sees it."""
        return self._admin("GET", budget)

    def accounts(self, budget: Body) -> list[Body]:
        """Whose accounts of a budget with `each` there are, with what is used of them."""
        found: list[Body] = self._admin("GET", budget, "/accounts?limit=1000")["items"]
        return found

    def do(self, budget: Body, action: str, **said: Any) -> Body:
        """Raise or reset a budget."""
        return self._admin("POST", budget, f"/{action}", said or None)

    def _admin(self, method: str, budget: Body, more: str = "", body: Body | None = None) -> Body:
        status, found = self.stack.admin(method, f"/budgets/{budget['id']}{more}", body)
        assert status == 200, found
        answered: Body = found
        return answered

    def until(self, status: int, **said: Any) -> httpx.Response:
        """Call until it is answered so: a change is in force within a second."""
        return wait_until(lambda: (answer := self.chat(**said)).status_code == status and answer)

    def everywhere(self, status: int, **said: Any) -> None:
        """Call until every worker answers so."""
        wait_until(lambda: all(self.chat(**said).status_code == status for _ in range(self.stack.together)))

    def idle(self, *budgets: Body) -> None:
        """Wait until nothing holds anything of these."""
        wait_until(lambda: not any(self.held(one) for one in budgets))

    def chat(
        self, usage: str = "20,40", *, key: str = "", body: Body | None = None, **said: str
    ) -> httpx.Response:
        """One chat call whose upstream reports so many tokens; `said` are header fields of it."""
        return self.ask("/v1/chat/completions", CALL | (body or {}), usage, key=key, **said)

    def ask(
        self, path: str, body: Body, usage: str = "20,40", *, key: str = "", **said: str
    ) -> httpx.Response:
        """The same of any API."""
        headers = {"authorization": f"Bearer {key or self.key}", "x-demo-usage": usage} | fields(said)
        url = f"{self.stack.gateway_url}{path}"
        return plain_http.post(url, json=body, headers=headers, timeout=ANSWER_S_MAX)

    def journal(self, count: int) -> list[Body]:
        """The rows of this organization's answered calls, once there are so many."""
        path = f"/calls?organization_id={self.organization}&limit=1000"

        def rows() -> list[Body]:
            found = self.stack.admin("GET", path)[1]["items"]
            return [row for row in found if row["tokens"] or row["cost"] not in {None, "0"}]

        return wait_until(lambda: len(found := rows()) >= count and found)

    def spent(self, count: int) -> Decimal:
        """What so many calls cost, added up from the journal."""
        return sum((Decimal(row["cost"]) for row in self.journal(count)), Decimal(0))


def fields(said: dict[str, str]) -> dict[str, str]:
    """Header fields by short names: ours, unless they begin with `demo_` or hold a dash."""
    return {
        name
        if "-" in name
        else ("x-" if name.startswith("demo") else "x-tollkeeper-") + name.replace("_", "-"): value
        for name, value in said.items()
    }


def reasons(answers: Iterable[httpx.Response]) -> list[str]:
    """Why each call was refused, empty where it was answered."""
    return [answer.headers.get("x-tollkeeper-reason", "") for answer in answers]


def seconds_to(moment: str) -> float:
    """From now to a time of the Admin API."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
