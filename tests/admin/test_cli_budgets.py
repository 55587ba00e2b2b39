"""The commands about budgets: amounts as people write them, raises, resets, everybody's use."""

from __future__ import annotations

import psycopg

from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import fields_of
from gateway.cli.admin.commands import option_of
from gateway.core.accounts.budgets import bounds
from tests.admin.conftest import Api
from tests.admin.test_budgets import now_ms
from tests.admin.test_cli import Run, from_json, run

__all__ = ["run"]

UNTIL = "2999-01-31T00:00:00Z"


async def test_amounts_are_read_in_the_unit_of_their_budget(run: Run) -> None:
    await from_json(run, "org", "create", "acme")
    money = await from_json(run, "budget", "create", "acme", "all", "money", "1,250.50", "month")
    assert (money["amount"], money["interval"]) == ("1250.50", "month")
    tokens = await from_json(
        run, "budget", "create", "acme", "gpt", "tokens", "5M", "day", "--model", "gpt-5*", "--thresholds",
        "0.9, 1", "--time-zone", "Europe/Berlin", "--mode", "audit", "--each", "user",
    )  # fmt: skip
    assert (tokens["amount"], tokens["thresholds"], tokens["mode"]) == (5_000_000, [0.9, 1], "audit")
    assert (tokens["model"], tokens["time_zone"], tokens["each"]) == ("gpt-5*", "Europe/Berlin", "user")
    raised = await from_json(run, "budget", "raise", "all", "2k", UNTIL, "a fair")
    assert (raised["raised_to"], raised["raise_reason"]) == ("2000", "a fair")
    raised = await from_json(run, "budget", "raise", "gpt", "6M", UNTIL, "a fair")
    assert raised["raised_to"] == 6_000_000
    changed = await from_json(run, "budget", "change", "gpt", "--amount", "7_000_000", "--thresholds", "none")
    assert (changed["amount"], changed["raised_to"], changed["thresholds"]) == (7_000_000, None, [])


async def test_what_is_no_amount_is_said_by_its_option(run: Run) -> None:
    await from_json(run, "org", "create", "acme")
    for unit, amount in (("money", "a lot"), ("tokens", "1.5"), ("requests", "0"), ("money", "-5")):
        said = await run("budget", "create", "acme", "all", unit, "--amount", amount, "--interval", "day")
        assert (said.exit_code, "--amount" in said.stderr) == (1, True), said.stderr
    said = await run("budget", "create", "acme", "all", "money", "5", "day", "--thresholds", "half")
    assert (said.exit_code, "--thresholds" in said.stderr) == (1, True), said.stderr


async def test_a_budget_is_listed_and_shown_with_names(run: Run) -> None:
    await from_json(run, "tenant", "create", "acme")
    await from_json(run, "budget", "create", "acme", "all", "money", "12.50", "month", "--tenant", "acme")
    listed = (await run("budget", "list")).stdout
    assert "12.50" in listed
    assert "acme" in listed
    assert "acme" in (await run("budget", "show", "all")).stdout


async def test_everybodys_use_is_a_table(run: Run, api: Api) -> None:
    await from_json(run, "org", "create", "acme")
    made = await from_json(run, "budget", "create", "acme", "team", "tokens", "5M", "day", "--each", "user")
    start = bounds("day", "UTC", 1, now_ms())[0]
    with psycopg.connect(api.url, autocommit=True) as connection:
        for n in range(3):
            connection.execute(
                "INSERT INTO budget_use (budget_id, start, value, name, used)"
                " VALUES (%s, to_timestamp(%s / 1000.0), %s, %s, 1500000)",
                (made["id"], start, f"{n:024x}", f"user {n}"),
            )
        connection.execute(
            "INSERT INTO budget_use (budget_id, start, value, used)"
            " VALUES (%s, to_timestamp(%s / 1000.0), 'other', 9)",
            (made["id"], start),
        )
    shown = (await run("budget", "accounts", "team")).stdout
    assert [f"user {n}" in shown for n in range(3)] == [True] * 3
    assert "3,500,000" in shown
    said = {" yes " in line for line in shown.splitlines() if "4,999,991" in line}
    assert said == {True}
    assert shown.count(" yes ") == 1
    some = await from_json(run, "budget", "accounts", "team", "--limit", "2")
    assert [each["who"] for each in some["items"]] == ["user 0", "user 1"]


def test_whose_amounts_there_may_be_is_said() -> None:
    budgets = RESOURCES["budgets"]
    assert budgets.create is not None
    [each] = (field for field in fields_of(budgets, budgets.create) if field.name == "each")
    assert option_of(each).__metadata__[0].metavar == "<user|key|project|session>"
