"""Budgets that roll, begin at first use, carry over or have steps, from Admin API to journal, over a lost Redis."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import psycopg

from tests.journey.budgets import MODEL, Spender, cost, reasons, seconds_to
from tests.journey.stack import Body, Stack
from tests.waiting import wait_until

CHEAP = "budgeted-mini"
LENGTH_S, PART_S = 300, 10
STEP = {"at": 0.5, "models": {MODEL: CHEAP}}


def test_windows_carry_and_steps_hold_over_a_lost_redis_and_are_replayed(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack()
    stack.make("prices", model=CHEAP, currency="USD", effective_from="2026-01-01T00:00:00Z", input="0.1",
               output="0.2")  # fmt: skip
    spender = Spender(stack)
    keys = [spender.another_key(user=user) for user in ("ada", "bob", "cay", "dan")]
    defined: list[Body] = [
        {"name": "rolls", "unit": "requests", "amount": 3, "window": "rolling", "length": "5m"},
        {"name": "begins", "unit": "requests", "amount": 2, "window": "first_use", "length": "2h", "each": "user"},
        {"name": "carries", "unit": "requests", "amount": 2, "interval": "day", "carry": {"max": 1, "debt": True}},
        {"name": "steps", "unit": "money", "amount": str(4 * cost(20, 40)), "interval": "day", "steps": [STEP]},
    ]  # fmt: skip
    for budget, (key_id, _) in zip(defined, keys, strict=True):
        budget["api_key_id"] = key_id
    budgets = [stack.make("budgets", organization_id=spender.organization, **budget) for budget in defined]
    rolls, begins, carries, steps = budgets
    rolling, beginning, carrying, stepping = (key for _, key in keys)
    for budget, (_, key) in zip(budgets, keys, strict=True):
        spender.known(budget, key=key)

    # The window that rolls.
    admitted = [spender.chat(key=rolling) for _ in range(3)]
    amount, at = _frees(admitted[-1], rolls)
    assert [answer.status_code for answer in admitted] == [200] * 3
    assert 0 < int(amount) <= 3
    assert LENGTH_S - 60 < seconds_to(at) <= LENGTH_S + PART_S
    _refuses_until_free(spender, rolling)

    # The window from first use, of each user.
    assert [spender.chat(key=beginning).status_code for _ in range(2)] == [200] * 2
    ends = spender.usage(beginning)["limits"][-1]["reset_at"]
    assert 7_100 < seconds_to(ends) <= 7_200
    refused = spender.chat(key=beginning)
    assert (refused.status_code, reasons([refused])) == (429, ["budget_exceeded"])
    assert abs(int(refused.headers["retry-after"]) - seconds_to(ends)) < 5

    # Carry-over: of 2 one was used on the day before.
    assert spender.chat(key=carrying).status_code == 200
    spender.comes_to(carries, 1)

    # Steps.
    as_asked = [spender.chat(key=stepping) for _ in range(2)]
    assert [answer.headers.get("x-tollkeeper-model") for answer in as_asked] == [None] * 2
    spender.comes_to(steps, 2 * cost(20, 40))
    assert _sent_as(spender.chat(key=stepping)) == (CHEAP, "steps")
    spender.comes_to(rolls, 3)
    wait_until(lambda: len(_calls(stack, spender)) == 11)

    _age(stack, carries["id"], keys[2][0])
    assert stack.stop() == 0
    shutil.rmtree(Path(stack.data_dir) / "redis")
    stack.start()
    stack.wait_until_whole()

    # Each budget is as it was; one carries what the day before left.
    _refuses_until_free(spender, rolling)
    limit = spender.usage(rolling)["limits"][-1]
    assert (limit["name"], limit["window"], limit["length"], limit["used"]) == ("rolls", "rolling", "5m", 3)
    assert sum(free["amount"] for free in limit["frees"]) == 3
    assert all(before["at"] < after["at"] for before, after in pairwise(limit["frees"]))
    assert spender.chat(key=beginning).status_code == 429
    limit = spender.usage(beginning)["limits"][-1]
    assert (limit["used"], limit["reset_at"], limit["limit_by"]) == (2, ends, "budget")
    outcomes = [spender.chat(key=carrying).status_code for _ in range(4)]
    assert outcomes == [200] * 3 + [429]
    limit = spender.usage(carrying)["limits"][-1]
    assert (limit["limit"], limit["carried"], limit["used"], limit["remaining"]) == (3, 1, 3, 0)
    assert _sent_as(spender.chat(key=stepping)) == (CHEAP, "steps")

    # Administrators see the same.
    [account] = spender.accounts(begins)
    assert (account["who"], account["used"], account["limit"], account["limit_by"]) == (
        "bob", 2, 2, "budget",
    )  # fmt: skip
    shown = spender.shown(carries)
    assert (shown["carried"], shown["used"], shown["remaining"]) == (1, 3, 0)
    wait_until(lambda: len([row for row in _calls(stack, spender) if row["status"] == 200]) == 13)
    substituted = [row for row in _calls(stack, spender) if row["model_asked"] is not None]
    assert [(row["model"], row["model_asked"], row["substituted_by"]) for row in substituted] == [
        (CHEAP, MODEL, {"id": steps["id"], "name": "steps"})
    ] * 2

    # A replay of the same budgets does what they did.
    replayed = _replay(stack, spender, defined)
    saved = 2 * cost(20, 40) - sum(Decimal(row["cost"]) for row in substituted)
    assert (replayed["refused"], replayed["substituted"], Decimal(replayed["saved"])) == (0, 2, saved)
    used = [sum(Decimal(day["used"]) for day in item["by_day"]) for item in replayed["items"]]
    assert used == [3, 2, 4, spender.used(steps)]
    # With one request less each refuses one; without steps all had been as asked.
    less = [budget | {"amount": budget["amount"] - 1} for budget in defined[:2]] + [
        {**defined[2], "carry": None}, {**defined[3], "steps": [], "amount": str(3 * cost(20, 40))},
    ]  # fmt: skip
    assert [item["refused"] for item in _replay(stack, spender, less)["items"]] == [1, 1, 1, 1]


def _refuses_until_free(spender: Spender, key: str) -> None:
    """A call is refused until the first of the calls before is out of the window that rolls."""
    refused = spender.chat(key=key)
    assert (refused.status_code, reasons([refused])) == (429, ["budget_exceeded"])
    first = spender.usage(key)["limits"][-1]["frees"][0]
    assert abs(int(refused.headers["retry-after"]) - seconds_to(first["at"])) < 5


def _frees(answer: httpx.Response, budget: Body) -> tuple[str, str]:
    """Return the amount and the time that an answer says of its budget."""
    amount, at, name = answer.headers["x-tollkeeper-frees"].split("; ")
    assert name == f'budget="{quote(budget["name"])}"'
    return amount, at.removeprefix('at="').removesuffix('"')


def _sent_as(answer: httpx.Response) -> tuple[str, str]:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tollkeeper-model"], answer.headers["x-tollkeeper-substituted-by"]


def _calls(stack: Stack, spender: Spender) -> list[Body]:
    rows: list[Body] = stack.admin("GET", f"/calls?organization_id={spender.organization}&limit=1000")[1][
        "items"
    ]
    return rows


def _replay(stack: Stack, spender: Spender, budgets: list[Body]) -> Body:
    now = datetime.now(UTC)
    body = {
        "organization_id": spender.organization, "budgets": budgets,
        "from": (now - timedelta(days=2)).isoformat(), "to": now.isoformat(),
    }  # fmt: skip
    status, replayed = stack.admin("POST", "/budgets/replay", body)
    assert status == 200, replayed
    found: Body = replayed
    return found


def _age(stack: Stack, budget_id: int, key_id: int) -> None:
    """Move a key's calls, and the use of its budget, to the day before."""
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "UPDATE budget_use SET start = start - interval '1 day' WHERE budget_id = %s", (budget_id,)
        )
        connection.execute(
            "UPDATE call SET created_at = created_at - interval '1 day' WHERE api_key_id = %s", (key_id,)
        )
