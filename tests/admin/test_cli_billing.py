"""The billing commands against the real Admin API: the worked example's set-up, a month's run, documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import fields_of
from gateway.cli.admin.commands import option_of
from gateway.core.accounts.intervals import window_bounds
from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import Api
from tests.admin.test_budgets import now_ms
from tests.admin.test_cli import Run, from_json, run
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, broken, settle_in

__all__ = ["run"]


async def set_up(api: Api) -> None:
    """An organization, two plans, and a service that is paid by use."""
    await api.make("organizations", name="Acme", tax_rate="0.20")
    for name, total, monthly in (("Starter", 2_000_000, "29.00"), ("Pro", 10_000_000, "99.00")):
        plan = await api.make("token-plans", name=name, total_amount=total)
        await api.make(
            "subscription-plans", name=name, monthly_cost=monthly, annual_cost="990.00",
            feature_access=["chat"], token_plan_id=plan["id"],
        )  # fmt: skip
    [model] = (await api.get("business-models?name=Pay-Per-Use")).json["items"]
    tiers = [{"up_to": 10_000, "unit_price": "0.0010"}, {"up_to": None, "unit_price": "0.0008"}]
    await api.make(
        "services", name="rerank", key="rerank", credits=0, service_type="Pay-As-You-Go",
        business_model_id=model["id"], pricing={"tiers": tiers},
    )  # fmt: skip


async def test_cli_plan_commands_set_change_and_clear_token_weights(run: Run) -> None:
    made = await from_json(
        run, "plan", "create", "Cached", "--weights", "cache_read=0.10", "--weights", "output=4"
    )
    assert made["weights"] == {"cache_read": "0.10", "output": "4"}
    changed = await from_json(run, "plan", "change", "Cached", "--weights", '{"input": "2"}')
    assert changed["weights"] == {"input": "2"}
    assert "input 2" in " ".join((await run("plan", "list")).stdout.split())
    assert (await from_json(run, "plan", "change", "Cached", "--weights", "none"))["weights"] is None
    refused = await run("plan", "create", "Other", "--weights", "cached=0.1")
    assert (refused.exit_code, "weights.cached" in refused.stderr) == (1, True)


async def test_cli_service_change_command_sets_and_clears_fields(run: Run, api: Api) -> None:
    await set_up(api)
    before = await from_json(run, "service", "show", "rerank")
    flat = {"tiers": [{"up_to": None, "unit_price": "0.01"}]}
    changed = await from_json(
        run, "service", "change", "rerank", "--name", "Rerank", "--pricing", json.dumps(flat),
        "--counts-tokens", "--description", "Orders documents",
    )  # fmt: skip
    told = {"name": "Rerank", "pricing": flat, "counts_tokens": True, "description": "Orders documents"}
    assert changed == before | told
    emptied = await from_json(
        run, "service", "change", "rerank", "--pricing", "none", "--description", "none",
        "--model", "Consumption", "--credits", "3", "--type", "One-Time", "--no-counts-tokens",
    )  # fmt: skip
    assert (emptied["pricing"], emptied["description"], emptied["counts_tokens"]) == (None, None, False)
    assert (emptied["credits"], emptied["service_type"]) == (3, "One-Time")
    usual = await from_json(run, "service", "change", "rerank", "--usual-counts-tokens")
    assert usual == emptied | {"counts_tokens": None}
    assert "Pay-Per-Use" in (await run("business-model", "list")).stdout


async def test_credits_commands_add_correct_and_list_credits(run: Run, api: Api) -> None:
    await set_up(api)
    paid = await from_json(run, "credits", "add", "Acme", "8000", "--unit-cost", "0.01")
    assert (paid["credits_added"], paid["unit_cost"]) == (8_000, "0.01")
    back = await from_json(run, "credits", "add", "Acme", "--credits-added", "-500", "--remark", "mistake")
    assert (back["credits_added"], back["category"]) == (-500, "correction")
    assert (await from_json(run, "credits", "show", str(paid["id"]))) == paid
    api.rows(
        "insert into credit_transaction (organization_id, timestamp, credits_used, balance_after, epoch, seq)"
        " values (%s, now(), 1234, 6266, 1, 3)",
        paid["organization_id"],
    )
    assert "1,234" in (await run("credits", "uses", "Acme", "--newest")).stdout
    shown = await run("credits", "list", "--org", "Acme")
    assert "8,000" in shown.stdout
    assert (await run("credits", "add", "Acme", "0")).exit_code != 0


async def test_cli_subscription_commands_create_change_cancel_and_extend_a_subscription(
    run: Run, api: Api
) -> None:
    await set_up(api)
    assert (await run("subscription", "show", "Acme")).exit_code == 1
    made = await from_json(
        run, "subscription", "create", "Acme", "Starter", "--start", "2026-04-01", "--end", "2036-04-01"
    )
    assert made["status"] == "active"
    changed = await from_json(run, "subscription", "change", "Acme", "Pro")
    assert [segment["cost"] for segment in changed["segments"]] == ["29.00", "99.00"]
    ending = await from_json(run, "subscription", "cancel", "Acme")
    assert ending["cancel_at"] is not None
    back = await from_json(run, "subscription", "extend", "Acme", "2036-04-01")
    assert back["cancel_at"] is None
    assert "Pro" in (await run("subscription-plan", "list")).stdout
    assert "active" in (await run("subscription", "list")).stdout


async def test_cli_invoice_commands_draft_finalize_export_credit_and_void_an_invoice(
    run: Run, api: Api, tmp_path: Path
) -> None:
    await set_up(api)
    await from_json(run, "credits", "add", "Acme", "8000", "--unit-cost", "0.01")
    api.rows("""update credit_addition set "timestamp" = '2026-04-05T00:00:00Z'""")
    # The counters of this test post nothing by themselves.
    api.rows(
        "insert into credit_posting (organization_id, kind, credit_addition_id, amount, balance_after,"
        " created_at, epoch, seq) select organization_id, 'addition', id, credits_added, credits_added,"
        ' "timestamp", 1, 1 from credit_addition'
    )
    made = await from_json(run, "invoice", "create", "Acme", "--month", "2026-04")
    assert (made["status"], made["total_amount"]) == ("draft", "96.00")
    done = await from_json(run, "invoice", "finalize", str(made["id"]))
    assert done["number"].endswith("-000001")
    files = {name: tmp_path / name for name in ("a.pdf", "a.csv", "u.csv")}
    shown = await run(
        "invoice", "show", str(made["id"]), "--pdf", str(files["a.pdf"]), "--csv", str(files["a.csv"]),
        "--usage", str(files["u.csv"]),
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "80.00" in shown.stdout
    assert files["a.pdf"].read_bytes().startswith(b"%PDF")
    assert files["a.csv"].read_text().startswith("position,kind")
    assert files["u.csv"].read_text().startswith("line,kind,description,timestamp")
    note = await from_json(run, "invoice", "credit-note", str(made["id"]))
    assert note["total_amount"] == "-96.00"
    assert (await run("invoice", "delete", str(note["id"]))).exit_code == 0
    assert (await from_json(run, "invoice", "void", str(made["id"])))["status"] == "void"
    assert (await run("invoice", "recompute", str(made["id"]))).exit_code == 1
    listed = await from_json(run, "invoice", "list", "--org", "Acme", "--status", "void")
    assert len(listed["items"]) == 1
    assert (await run("service", "delete", "nobody")).exit_code == 1
    assert (await run("invoice", "create", "Acme", "--from", "2026-04-01")).exit_code == 1
    assert (await run("invoice", "create", "Acme", "--month", "2026-13")).exit_code == 1


async def test_cli_invoice_run_for_a_month_resumes_after_a_failure_without_double_invoices(
    run: Run, api: Api
) -> None:
    await set_up(api)
    for name in ("Acme", "Bolt", "Cog"):
        if name != "Acme":
            await from_json(run, "org", "create", name)
        span = ("--start", "2026-04-01", "--end", "2036-04-01")
        await from_json(run, "subscription", "create", name, "Starter", *span)
    await from_json(run, "org", "create", "Idle")
    drafts = await from_json(run, "invoice", "run", "--month", "2026-04", "--draft")
    assert [invoice["status"] for invoice in drafts["items"]] == ["draft"] * 3
    api.counters.unsettled = "The accounts do not agree."
    failed = await run("invoice", "run", "--month", "2026-04")
    assert failed.exit_code == 1
    assert "3 of 4 organizations are left" in failed.stderr
    assert "Idle: nothing to bill" in failed.stderr
    api.counters.unsettled = None
    done = await from_json(run, "invoice", "run", "--month", "2026-04")
    numbers = [invoice["number"] for invoice in done["items"]]
    assert len(set(numbers)) == 3
    again = await from_json(run, "invoice", "run", "--month", "2026-04")
    assert [invoice["number"] for invoice in again["items"]] == numbers


async def test_cli_reconcile_reports_token_drift_and_exits_1_on_a_contradiction(run: Run, api: Api) -> None:
    found = await run("reconcile")
    assert found.exit_code == 0, found.output
    assert "drift_tokens" in found.stdout
    assert (await from_json(run, "reconcile", "--repair"))["drift_tokens"] == 0
    found = await run("reconcile", "--whole")
    assert (found.exit_code, "contradiction" in found.stdout) == (1, True)


# --- cli budgets ------------------------------------------------------------------------
# The commands about budgets: amounts as people write them, raises, resets, everybody's use.


UNTIL = "2999-01-31T00:00:00Z"


async def test_cli_budget_commands_read_amounts_in_the_unit_of_the_budget(run: Run) -> None:
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


async def test_cli_sets_window_carry_and_steps_of_a_budget(run: Run) -> None:
    await from_json(run, "org", "create", "acme")
    usual = ("budget", "create", "acme")
    rolling = await from_json(run, *usual, "five", "money", "20", "--window", "rolling", "--length", "5h")
    assert (rolling["window"], rolling["length"], rolling["interval"]) == ("rolling", "5h", None)
    steps = '[{"at": 0.8, "models": {"gpt-5": "gpt-5-mini"}}]'
    made = await from_json(run, *usual, "all", "tokens", "5M", "month", "--carry-max", "1M", "--steps", steps)
    assert made["carry"] == {"max": 1_000_000, "debt": False}
    assert made["steps"] == [{"at": 0.8, "models": {"gpt-5": "gpt-5-mini"}, "session": "keep"}]
    changed = await from_json(run, "budget", "change", "all", "--carry-debt", "--steps", "[]")
    assert (changed["carry"], changed["steps"]) == ({"max": 1_000_000, "debt": True}, [])
    cleared = await from_json(run, "budget", "change", "all", "--carry-max", "none")
    assert cleared["carry"] is None
    for option, wrong in (("--carry-max", "much"), ("--length", "5h"), ("--steps", '[{"at": 2}]')):
        said = await run(*usual, "other", "tokens", "5M", "month", option, wrong)
        assert (said.exit_code, option.removeprefix("--") in said.stderr) == (1, True), said.stderr
    said = await run(*usual, "other", "tokens", "5M", "month", "--carry-debt")
    assert (said.exit_code, "--carry-max" in said.stderr) == (1, True), said.stderr


async def test_cli_refuses_an_invalid_budget_amount_and_names_the_option(run: Run) -> None:
    await from_json(run, "org", "create", "acme")
    for unit, amount in (("money", "a lot"), ("tokens", "1.5")):
        said = await run("budget", "create", "acme", "all", unit, "--amount", amount, "--interval", "day")
        assert (said.exit_code, "--amount" in said.stderr) == (1, True), said.stderr
    said = await run("budget", "create", "acme", "all", "money", "5", "day", "--thresholds", "half")
    assert (said.exit_code, "--thresholds" in said.stderr) == (1, True), said.stderr


async def test_cli_budget_accounts_command_prints_the_use_of_each_user_as_a_table(run: Run, api: Api) -> None:
    await from_json(run, "org", "create", "acme")
    made = await from_json(run, "budget", "create", "acme", "team", "tokens", "5M", "day", "--each", "user")
    start = window_bounds("day", "UTC", 1, now_ms())[0]
    with connected(api.url, autocommit=True) as connection:
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
    one = await from_json(run, "budget", "raise", "team", "6M", UNTIL, "a fair", "--who", "ada")
    assert one["raised_to"] is None
    assert api.rows("SELECT name, amount FROM budget_raise") == [("ada", 6_000_000)]
    some = await from_json(run, "budget", "accounts", "team", "--limit", "2")
    assert [each["who"] for each in some["items"]] == ["user 0", "user 1"]


async def test_cli_overrides_amounts_of_single_users_and_tenants(run: Run, api: Api) -> None:
    await from_json(run, "org", "create", "acme")
    await from_json(run, "budget", "create", "acme", "team", "tokens", "5M", "day", "--each", "user")
    made = await from_json(
        run, "budget", "override", "team", "a/b", "6M", "--until", UNTIL, "--reason", "a fair"
    )
    assert made == {"who": "a/b", "amount": 6_000_000, "until": UNTIL, "reason": "a fair"}
    for who, amount, told in (("bob", "0", 0), ("cay", "none", None)):
        assert (await from_json(run, "budget", "override", "team", who, amount))["amount"] == told
    listed = await from_json(run, "budget", "overrides", "team")
    assert [(one["who"], one["amount"]) for one in listed["items"]] == [
        ("a/b", 6_000_000),
        ("bob", 0),
        ("cay", None),
    ]
    assert (await run("budget", "remove-override", "team", "a/b")).exit_code == 0
    said = await run("budget", "override", "team", "ada")
    assert (said.exit_code, "AMOUNT" in said.stderr) == (1, True)
    # Tenants are named as everywhere, keys by their ids.
    tenant = await from_json(run, "tenant", "create", "web", "--org", "acme")
    key = await from_json(run, "key", "create", "web", "laptop")
    for each, name, row in (("tenant", "web", tenant), ("key", str(key["id"]), key)):
        await from_json(run, "budget", "create", "acme", each, "money", "20", "day", "--each", each)
        made = await from_json(run, "budget", "override", each, name, "1,250.50")
        assert (made["who"], made["amount"]) == (str(row["id"]), "1250.50")
        await from_json(run, "budget", "raise", each, "2000", UNTIL, "a fair", "--who", name)
    found = api.rows("SELECT name, amount FROM budget_raise ORDER BY name")
    assert sorted(found) == sorted([(str(tenant["id"]), 2000), (str(key["id"]), 2000)])
    # Another organization's group of that name is none of the budget's.
    await from_json(run, "org", "create", "other")
    groups = [await from_json(run, "group", "create", org, "platform", "user") for org in ("acme", "other")]
    made = await from_json(run, "budget", "override", "team", "group:platform", "7M")
    assert made["who"] == f"group:{groups[0]['id']}"


def test_cli_help_lists_user_key_project_and_session_as_values_of_the_each_option() -> None:
    budgets = RESOURCES["budgets"]
    assert budgets.create is not None
    [each] = (field for field in fields_of(budgets, budgets.create) if field.name == "each")
    assert option_of(each).__metadata__[0].metavar == "<user|key|project|session|tenant>"


# --- cli prices -------------------------------------------------------------------------
# The commands about prices: one set, one asked for, and the bundled list compared and taken over.


async def test_cli_price_commands_create_list_and_quote_a_price(run: Run) -> None:
    made = await from_json(
        run, "price", "create", "cli-x", "USD", "--input", "2.50", "--output", "10", "--from",
        "2026-01-01T00:00:00Z", "--tools", "web_search=10", "--service-tiers", "batch=0.5",
        "--context-tiers", '[{"above": 200000, "input": "5"}]',
    )  # fmt: skip
    assert (made["input"], made["tools"], made["service_tiers"]) == (
        "2.50", {"web_search": "10"}, {"batch": "0.5"},
    )  # fmt: skip
    quote = await from_json(
        run, "price", "quote", "cli-x", "--input", "1k", "--tools", "web_search=7", "--service-tier", "batch"
    )
    assert quote["cost"] == "0.07125"
    shown = (await run("price", "quote", "cli-x", "--output", "1M")).stdout
    assert "cost" in shown
    assert "10" in shown
    listed = (await run("price", "list", "--model", "cli-x")).stdout
    assert "2.50" in listed
    said = await run("price", "create", "cli-x", "USD", "--input", "-1")
    assert (said.exit_code, "--input" in said.stderr) == (1, True)
    assert (await run("price", "quote", "cli-unknown")).exit_code == 1


async def test_cli_price_created_without_a_start_time_is_in_force_from_now(run: Run) -> None:
    await from_json(run, "price", "create", "cli-now", "USD", "--input", "3")
    quote = await from_json(run, "price", "quote", "cli-now", "--input", "1000000")
    assert quote["cost"] == "3"


async def differences(run: Run, *more: str) -> list[dict[str, Any]]:
    found = await from_json(run, "prices", "diff", "--provider", "cohere", *more)
    items: list[dict[str, Any]] = found["items"]
    return items


async def test_cli_prices_diff_compares_stored_prices_with_the_bundled_list_and_applies_changes(
    run: Run, api: Api
) -> None:
    since = ("--from", "2026-01-01T00:00:00Z")
    first = await differences(run, *since)
    assert {each["change"] for each in first} == {"new"}
    assert "command-r" in {each["model"] for each in first}
    assert (await api.get("prices?provider=cohere&source=bundled")).json["items"] == []
    assert await differences(run, *since, "--apply") == first
    assert await differences(run) == []
    assert (await from_json(run, "price", "quote", "command-r", "--input", "1000000"))["cost"] != "0"

    await from_json(run, "price", "create", "command-r", "USD", "--provider", "cohere", "--input", "9",
                    "--source", "bundled", "--from", "2026-01-02T03:04:05Z")  # fmt: skip
    await from_json(run, "price", "create", "command-zz", "USD", "--provider", "cohere", "--input", "9",
                    "--source", "bundled")  # fmt: skip
    at = "2099-01-01T00:00:00Z"
    changed, gone = sorted(await differences(run, "--from", at), key=lambda each: str(each["change"]))
    assert (changed["change"], changed["model"], changed["effective_from"]) == ("changed", "command-r", at)
    assert changed["says"]["input"]["before"] == "9"
    assert (gone["change"], gone["model"]) == ("gone", "command-zz")
    assert "command-r" in (await run("prices", "diff", "--provider", "cohere", "--apply")).stdout
    assert [each["change"] for each in await differences(run)] == ["gone"]


async def test_cli_prices_diff_apply_supersedes_stored_prices_and_changes_no_stored_or_own_price(
    run: Run, api: Api
) -> None:
    """Vertex as an earlier release stored it: 2 and 10 without a later date. Since 1 December it is 4 and 20."""
    sold = ("--provider", "google-vertex")
    stored = await from_json(
        run, "price", "create", "gemini-4-argon", "USD", *sold, "--input", "2", "--output", "10",
        "--source", "bundled", "--from", "2026-11-01T00:00:00Z",
    )  # fmt: skip
    own = await from_json(run, "price", "create", "gemini-3.6-flash", "USD", *sold, "--input", "9")
    before = {price["id"]: price for price in (stored, own)}
    at = ("--from", "2026-11-28T00:00:00Z")
    found = [each for each in (await from_json(run, "prices", "diff", *sold, *at))["items"]
             if (each["model"], each["change"]) == ("gemini-4-argon", "changed")]  # fmt: skip
    rises = [each for each in found if "input" in each["says"]]
    assert [(each["effective_from"], each["says"]["input"]["after"]) for each in rises] == [
        ("2026-12-01T00:00:00Z", "4")
    ]
    await from_json(run, "prices", "diff", *sold, *at, "--apply")

    async def cost(model: str, day: str) -> str:
        quote = await from_json(
            run, "price", "quote", model, *sold, "--input", "1000000", "--at", f"{day}T12:00:00Z"
        )
        return str(quote["cost"])

    assert [await cost("gemini-4-argon", day) for day in ("2026-11-30", "2026-12-01")] == ["2", "4"]
    assert [await cost("gemini-3.8-flash", day) for day in ("2026-12-31", "2027-01-01")] == ["0.75", "1.5"]
    assert await cost("gemini-3.6-flash", "2099-01-01") == "9"
    for id_, price in before.items():
        assert (await api.get(f"prices/{id_}")).json == price
    [entry] = (await api.get("audit-log?resource=prices&action=create&limit=1")).json["items"]
    assert entry["after"]["source"] == "bundled"


async def test_cli_prices_diff_lists_prices_that_cannot_be_taken_from_the_bundled_price_list(
    run: Run,
) -> None:
    found = await from_json(run, "prices", "diff", "--left-out")
    assert any("hours of the day" in line for line in found["left_out"])
    assert "input_text_messages_kcount" in (await run("prices", "diff", "--left-out")).stdout


async def test_cli_prices_diff_refuses_an_invalid_start_time(run: Run) -> None:
    for since in ("soon", "2026-01-01T00:00:00"):
        said = await run("prices", "diff", "--from", since)
        assert (said.exit_code, "--from must" in said.stderr) == (1, True)


# --- cli honesty ------------------------------------------------------------------------
# What could not be stored, from the command line.


async def torn(api: Api) -> tuple[Account, LedgerWriter]:
    """An account whose second movement could not become a row."""
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.service_id = 2**80
    account.consume(10)
    writer = LedgerWriter(api.url)
    await writer.write(batch_of(account))
    return account, writer


async def test_cli_deadletter_commands_list_show_and_redrive_a_dead_letter(run: Run, api: Api) -> None:
    _, writer = await torn(api)
    writer.close()
    [letter] = (await from_json(run, "deadletter", "list"))["items"]
    assert letter["reason"] in (await run("deadletter", "list")).stdout
    number = str(letter["id"])
    assert (await from_json(run, "deadletter", "show", number))["event"]["amount"] == 10
    assert (await run("deadletter", "redrive", number)).exit_code == 1
    for wrong in ("service_id", "service_id=abc"):
        assert (await run("deadletter", "redrive", number, "--change", wrong)).exit_code == 1
    done = await from_json(run, "deadletter", "redrive", number, "--change", "service_id=1")
    assert done["resolution"] == "redriven"
    assert (await from_json(run, "deadletter", "list"))["items"] == []
    assert len((await from_json(run, "deadletter", "list", "--all"))["items"]) == 1
    assert api.rows("select amount, service_id from token_ledger where seq = 2") == [(10, 1)]
    assert await broken(api.url) == []
