"""The administration commands against the real Admin API: tables, JSON, and failures that say what to do."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import CliRunner, Result

from gateway.cli.admin.client import AdminClient
from gateway.cli.admin.program import mount
from gateway.core.accounts.call_facts import CallFacts, write_facts
from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import ADMIN, READONLY, Api
from tests.connections import connected
from tests.in_turn import in_turn
from tests.persistence.scenario import batch_of, settle_in

program = typer.Typer()
mount(program)
# All commands are made once: typer makes them for each that is run.
COMMAND = typer.main.get_command(program)

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(api: Api, tmp_path: Path) -> Run:
    async def invoke(*arguments: str, stdin: str | None = None, **environ: str) -> Result:
        where = {
            "TOLLKEEPER_ADMIN_URL": str(api.client.make_url("")),
            "TOLLKEEPER_ADMIN_TOKEN": ADMIN,
            "TOLLKEEPER_DATA_DIR": str(tmp_path),
            **environ,
        }
        return await asyncio.to_thread(CliRunner().invoke, COMMAND, list(arguments), env=where, input=stdin)

    return invoke


async def from_json(run: Run, *arguments: str) -> Any:
    result = await run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_cli_creates_changes_and_deletes_an_organization_plan_tenant_and_key(
    run: Run, api: Api
) -> None:
    organization = await from_json(run, "org", "create", "Acme", "--currency", "EUR", "--rpm", "5")
    assert (organization["currency"], organization["limits"]) == ("EUR", {"requests_per_minute": 5})
    plan = await from_json(run, "plan", "create", "Basic", "--total", "1_000", "--reset", "daily")
    assert (plan["total_amount"], plan["reset_interval"]) == (1000, "daily")
    tenant = await from_json(run, "tenant", "create", "web", "--org", "Acme", "--plan", "Basic")
    assert (tenant["organization_id"], tenant["plan_id"]) == (organization["id"], plan["id"])
    assert (await from_json(run, "tenant", "recharge", "web", "50"))["tokens_remaining"] == 1050
    adjusted = await from_json(run, "tenant", "adjust", "web", "25", "OUT", "--reason", "typo")
    assert adjusted["tokens_remaining"] == 1025
    assert (await from_json(run, "tenant", "block", "web"))["is_blocked"] is True
    assert (await from_json(run, "tenant", "unblock", "web"))["is_blocked"] is False
    assert (await from_json(run, "tenant", "reset", "web"))["tokens_remaining"] == 1000
    shown = await from_json(run, "tenant", "show", "web")
    assert (shown["name"], shown["quota"]["tokens_remaining"]) == ("web", 1000)
    assert (await from_json(run, "tenant", "plan", "web", "none"))["tokens_remaining"] is None
    changed = await from_json(run, "plan", "change", "Basic", "--total", "unlimited", "--overage", "bill")
    assert (changed["total_amount"], changed["overage_policy"]) == (None, "bill")
    key = await from_json(run, "key", "create", "web", "laptop", "--model", "a", "--model", "b")
    assert key["key"].startswith("tk_")
    assert key["models"] == ["a", "b"]
    listed = (await from_json(run, "key", "list", "--tenant", "web"))["items"]
    assert [row["id"] for row in listed] == [key["id"]]
    assert (await from_json(run, "key", "revoke", str(key["id"])))["revoked_at"]
    for path, arguments in (
        (f"tenants/{tenant['id']}", ("tenant", "delete", "web")),
        (f"organizations/{organization['id']}", ("org", "delete", "Acme")),
        (f"token-plans/{plan['id']}", ("plan", "delete", "Basic")),
    ):
        assert (await run(*arguments)).exit_code == 0
        assert (await api.get(path)).status == 404


async def test_cli_change_command_keeps_fields_that_are_not_given(run: Run) -> None:
    await from_json(run, "org", "create", "Acme", "--rpm", "5", "--spend-cap", "10")
    made = await from_json(run, "org", "change", "Acme", "--tpm", "7", "--spend-cap", "none")
    assert made["limits"] == {"requests_per_minute": 5, "tokens_per_minute": 7}
    assert (made["name"], made["spend_cap"]) == ("Acme", None)
    fewer = await from_json(run, "org", "change", "Acme", "--rpm", "0", "--name", "Acme AG")
    assert (fewer["name"], fewer["limits"]) == ("Acme AG", {"tokens_per_minute": 7})
    tenant = await from_json(run, "tenant", "create", "web", "--org", "Acme AG", "--user-rpm", "3")
    tenant = await from_json(run, "tenant", "change", "web", "--name", "shop", "--concurrency", "2")
    assert (tenant["limits"], tenant["user_limits"]) == ({"concurrency": 2}, {"requests_per_minute": 3})
    key = await from_json(run, "key", "create", "shop", "laptop", "--model", "a", "--user", "ann")
    where = str(key["id"])
    changed = await from_json(run, "key", "change", where, "--model", "none", "--user", "none", "--rpm", "1")
    assert (changed["models"], changed["user"], changed["name"]) == (None, None, "laptop")
    assert (await run("key", "delete", where)).exit_code == 0
    assert (await run("key", "show", where)).exit_code == 1


async def test_cli_prints_tables_by_default(run: Run, api: Api) -> None:
    plan = await api.make("token-plans", name="Basic [1]", total_amount=1234567)
    await api.make("tenants", name="web", plan_id=plan["id"])
    for arguments, expected in (
        (("tenant", "list"), "web"),
        (("org", "list"), "web"),
        (("org", "show", "web"), "credit_balance"),
        (("plan", "list"), "Basic [1]"),
        (("tenant", "show", "web"), "1,234,567"),
        (("usage",), "1,234,567"),
        (("key", "list"), "None yet."),
    ):
        result = await run(*arguments)
        assert result.exit_code == 0, result.output
        assert expected in result.stdout


async def test_cli_key_create_warns_that_the_api_key_is_not_shown_again(run: Run, api: Api) -> None:
    await api.make("tenants", name="web")
    result = await run("key", "create", "web", "laptop")
    assert "tk_" in result.stdout
    assert "not shown again" in result.stdout


async def test_cli_lists_ledger_rows_oldest_first_or_newest_first(run: Run, api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.rows(
        "insert into token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
        " created_at, epoch, seq, cycle)"
        " select %s, 'consume', s, null, 'OUT', now() + s * interval '1 ms', 1, s, 1"
        " from generate_series(1, 1500) as s",
        tenant["id"],
    )
    rows = (await from_json(run, "tenant", "ledger", "web", "--limit", "1200"))["items"]
    assert [row["seq"] for row in rows] == list(range(1, 1201))
    newest = (await from_json(run, "tenant", "ledger", "web", "--newest", "--limit", "2"))["items"]
    assert [row["seq"] for row in newest] == [1500, 1499]
    [usage] = (await from_json(run, "usage", "--tenant", "web", "--recent", "3"))["items"]
    assert [row["seq"] for row in usage["ledger"]] == [1500, 1499, 1498]
    assert "1,500" in (await run("usage")).stdout


async def test_cli_reads_url_and_token_from_the_file_written_by_the_up_command(
    run: Run, api: Api, tmp_path: Path
) -> None:
    noted = {"admin_url": str(api.client.make_url("")), "admin_token": ADMIN}
    (tmp_path / "up.json").write_text(json.dumps(noted))
    result = await run("org", "list", TOLLKEEPER_ADMIN_URL="", TOLLKEEPER_ADMIN_TOKEN="")
    assert result.exit_code == 0, result.output


@in_turn(
    ("arguments", "environ", "expected"),
    [
        (("org", "list"), {"TOLLKEEPER_ADMIN_TOKEN": "wrong"}, "TOLLKEEPER_ADMIN_TOKEN"),
        (("org", "list"), {"TOLLKEEPER_ADMIN_URL": "", "TOLLKEEPER_ADMIN_TOKEN": ""}, "TOLLKEEPER_DATA_DIR"),
        (("org", "list"), {"TOLLKEEPER_ADMIN_URL": "http://127.0.0.1:1"}, "tollkeeper up"),
        (("org", "list"), {"TOLLKEEPER_ADMIN_URL": "ftp://x"}, "http://"),
        (
            ("org", "create", "x"),
            {"TOLLKEEPER_ADMIN_TOKEN": READONLY},
            "that takes admin or billing or operator",
        ),
        (("org", "create", "x", "--currency", "euro"), {}, "currency: must be an ISO 4217 code"),
        (
            ("budget", "create", "1", "a", "money", "-5", "day"),
            {},
            '--amount: must be a decimal, such as "12.50"',
        ),
        (("price", "quote", "gpt-9"), {}, "There is no price in USD of the model 'gpt-9' at that time."),
        (("call", "list", "--since", "01/11/2026"), {}, "must be a day such as 2026-01-31, or"),
        (("usage", "--from", "01/11/2026"), {}, "must be a day such as 2026-01-31, or"),
        (("key", "create", "1", "k", "--expires-at", "2026-11-01"), {}, "such as 2026-11-01T00:00:00Z"),
        (("tenant", "show", "nobody"), {}, "There is no tenant named 'nobody'"),
        (("tenant", "show", "99"), {}, "There is no tenant 99; `tollkeeper tenant list` shows all."),
        (("tenant", "recharge", "1", "0"), {}, "equal to 1"),
        (("plan", "create", "x", "--total", "many"), {}, "--total"),
        (("plan", "change", "1"), {}, "Nothing to change"),
    ],
)
async def test_cli_error_explains_the_remedy_and_prints_no_traceback(
    run: Run, arguments: tuple[str, ...], environ: dict[str, str], expected: str
) -> None:
    result = await run(*arguments, **environ)
    assert result.exit_code != 0
    assert expected in result.stderr
    assert "Traceback" not in result.output


async def test_cli_table_wider_than_the_terminal_is_printed_row_by_row(run: Run, api: Api) -> None:
    await api.make("tenants", name="a name that is rather long", limits={"requests_per_minute": 60})
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm"}
    wide, narrow = [
        re.sub(r"\x1b\[[\d;]*m", "", (await run("tenant", "list", COLUMNS=columns, **terminal)).stdout)
        for columns in ("120", "44")
    ]
    assert wide.count("user_limits") == narrow.count("user_limits") == 1
    assert max(map(len, narrow.splitlines())) <= 44
    [told] = [line for line in narrow.splitlines() if "organization_id" in line]
    assert "name" not in told.split("│")[1]
    assert "a name that is" in narrow
    assert "a name that is rather long" in wide


async def test_cli_table_shows_the_name_beside_each_id(run: Run, api: Api) -> None:
    plan = await api.make("token-plans", name="Basic")
    made = [await api.make("tenants", name=name, plan_id=plan["id"]) for name in ("web", "shop")]
    for tenant in made:
        await api.make("api-keys", tenant_id=tenant["id"], name="laptop")
    tenants = (await run("tenant", "list")).stdout
    keys = (await run("key", "list")).stdout
    for tenant in made:
        assert f"{tenant['organization_id']} {tenant['name']}" in tenants
        assert f"{tenant['id']} {tenant['name']}" in keys
    assert f"{plan['id']} Basic" in tenants
    assert f"{plan['id']} Basic" in (await run("tenant", "show", "web")).stdout
    listed = await from_json(run, "tenant", "list")
    assert [(row["organization_id"], row["plan_id"]) for row in listed["items"]] == [
        (tenant["organization_id"], plan["id"]) for tenant in made
    ]


async def test_cli_table_fetches_names_with_a_single_request_per_column_and_json_output_fetches_none(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web", "shop", "bank"):
        tenant = await api.make("tenants", name=name)
        await api.make("api-keys", tenant_id=tenant["id"])
    asked: list[str] = []
    get = AdminClient.get

    def noted(self: AdminClient, path: str, **query: object) -> dict[str, Any]:
        asked.append(path)
        return get(self, path, **query)

    monkeypatch.setattr(AdminClient, "get", noted)
    assert (await run("key", "list")).exit_code == 0
    assert asked == ["api-keys", "tenants"]
    asked.clear()
    await from_json(run, "key", "list")
    assert asked == ["api-keys"]


async def test_cli_delete_command_prints_the_deleted_id_as_json(run: Run, api: Api) -> None:
    tenant = await api.make("tenants", name="gone")
    assert await from_json(run, "tenant", "delete", "gone") == {"id": tenant["id"], "deleted": True}


async def test_cli_warns_that_a_change_takes_effect_only_when_redis_is_back(run: Run, api: Api) -> None:
    await api.make("tenants", name="web")
    api.counters.away = True
    result = await run("tenant", "block", "web", "--json")
    assert result.exit_code == 0
    assert "as soon as Redis is back" in result.stderr
    assert json.loads(result.stdout)["tenant_id"]


async def test_cli_error_names_the_damaged_up_json_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{")
    result = await run("org", "list", TOLLKEEPER_ADMIN_URL="")
    assert result.exit_code == 1
    assert "up.json" in result.stderr


async def test_cli_usage_report_grouped_by_fields_shows_names_and_costs(
    run: Run, admin_database: str
) -> None:
    [account] = settle_in(admin_database, 10**9)
    account.reset()
    account.at_ms = int(datetime(2026, 11, 3, 4, tzinfo=UTC).timestamp() * 1000)
    for number in range(3):
        facts = CallFacts(
            model=f"m{number % 2}", counts=(1000, 0, 0, 0, 234, 0, 0, 0, 0, 0), total=1234, units=1,
            cost=1_500_000_001, currency="USD", tags={"feature": "search"} if number else {},
            groups=(7,) if number == 2 else (),
        )  # fmt: skip
        account.consume(1234, user="ann", metadata=write_facts(facts))
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(account))
    writer.close()
    with connected(admin_database, autocommit=True) as connection:
        connection.execute('UPDATE organization SET tags_since = \'{"feature": "2026-11-01T00:00:00Z"}\'')
        connection.execute(
            "INSERT INTO caller_group (id, organization_id, name, kind) SELECT 7, min(id), 'g', 'user' FROM organization"
        )
    asked = ("usage", "--by", "model,user", "--from", "2026-11-03", "--to", "2026-11-04")
    items = (await from_json(run, *asked))["items"]
    assert [(item["model"], item["user"], item["cost"]) for item in items] == [
        ("m0", "ann", "3.000000002"), ("m1", "ann", "1.500000001"),
    ]  # fmt: skip
    shown = (await run(*asked)).stdout
    assert "3.000000002" in shown
    assert "2,468" in shown
    by_tag = (await from_json(run, *asked[:2], "tag:feature", *asked[3:]))["items"]
    assert {item["tag:feature"]: item["cost"] for item in by_tag} == {
        None: "1.500000001", "search": "3.000000002",
    }  # fmt: skip
    for options, costs in (
        (("--tags", "feature=search"), {"m0": "1.500000001", "m1": "1.500000001"}),
        (("--tags", "feature="), {"m0": "1.500000001"}), (("--group", "7"), {"m0": "1.500000001"}),
    ):  # fmt: skip
        items = (await from_json(run, *asked, *options))["items"]
        assert {item["model"]: item["cost"] for item in items} == costs, options
    calls = (await from_json(run, "call", "list", "--tags", "feature=search"))["items"]
    assert [call["tags"] for call in calls] == [{"feature": "search"}] * 2
    wrong = await run("call", "list", "--tags", "feature")
    assert (wrong.exit_code, "--tags must be JSON, or NAME=VALUE" in wrong.stderr) == (1, True)
    lines = (await run(*asked, "--interval", "day", "--csv")).stdout.splitlines()
    assert lines[0].startswith("start,")
    assert len(lines) == 3
    said = await run("usage", "--by", "colour")
    assert (said.exit_code, "group_by" in said.stderr or "--by" in said.stderr) == (1, True)
