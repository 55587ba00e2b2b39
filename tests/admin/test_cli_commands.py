"""The commands that are made of the resources: all of them, and what each takes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.admin.api.openapi import document
from gateway.admin.resources import resource as resources_resource
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.cli.admin import fields
from gateway.cli.admin.client import ALIASES, defaults, section_of
from gateway.cli.admin.program import mount
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run

__all__ = ["run"]

program = typer.Typer()
mount(program)
SECTIONS: dict[str, Any] = {
    name: group.commands
    for name, group in typer.main.get_group(program).commands.items()
    if hasattr(group, "commands")
}


# Operations that are not called as their command is.
BESIDE = {
    "configuration.show": ("export",),
    "configuration.schema.json": ("export",),
    "configuration.apply": ("apply",),
    "invoices.pdf": ("invoice", "show"),
    "invoices.xml": ("invoice", "show"),
    "invoices.csv": ("invoice", "show"),
    "invoices.usage.csv": ("invoice", "show"),
    "letters.show": ("letters",),
    "letters.decide": ("letters",),
    "usage.show": ("usage",),
    "usage.csv": ("usage",),
    "usage.parquet": ("usage",),
    "usage.focus.csv": ("usage",),
    **{
        f"{name}.{what}": ("report", name.removeprefix("reports/"))
        for name, report in REPORTS.items()
        if name.startswith("reports/")
        for what in ("show", *(file.suffix.removeprefix(".") for file in report.documents))
    },
}


def options_of(command: Any) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("name", RESOURCES)
def test_what_the_api_can_do_the_command_line_can(name: str) -> None:
    resource, commands = RESOURCES[name], SECTIONS[section_of(name)]
    wanted = {"list", "show", *(action.name for action in resource.actions)}
    wanted |= {"create"} if resource.create else set()
    wanted |= {resource.patch_verb} if resource.patch else set()
    wanted |= {"delete"} if resource.deletable else set()
    assert wanted - set(commands) == set()
    bodies = {action.name: action.body for action in resource.actions if action.body}
    bodies |= {
        verb: body
        for verb, body in (("create", resource.create), (resource.patch_verb, resource.patch))
        if body
    }
    for verb, body in bodies.items():
        if (name, verb) == ("invoices", "create"):  # by hand: a month, or days
            continue
        told = options_of(commands[verb])
        for field in body.model_fields:
            plain = f"--{fields.spelled(field)}"
            assert plain in told or any(each.startswith(f"{plain}-") for each in told), (verb, field)
    assert {f"--{fields.spelled(each)}" for each in resource.filters} <= options_of(commands["list"])


def test_every_operation_of_the_api_has_a_command() -> None:
    described = document(RESOURCES, REPORTS, version="1")
    operations = {
        operation["operationId"]
        for methods in described["paths"].values()
        for method, operation in methods.items()
        if method != "parameters"
    }
    wanted = {
        operation: BESIDE[operation] if operation in BESIDE else _words_of(operation)
        for operation in operations
    }
    known = {(name, verb) for name, each in SECTIONS.items() for verb in each}
    known |= {(name,) for name in typer.main.get_group(program).commands}
    assert {operation for operation, words in wanted.items() if words not in known} == set()
    assert set(BESIDE) <= operations


def _words_of(operation: str) -> tuple[str, ...]:
    name, _, verb = operation.partition(".")
    return section_of(name), "show" if verb == "get" else verb


@pytest.mark.parametrize("words", [(name, verb) for name, each in SECTIONS.items() for verb in each])
def test_each_command_says_what_it_takes(words: tuple[str, str]) -> None:
    said = CliRunner().invoke(program, [*words, "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    assert "Usage" in said.output


@pytest.mark.parametrize("name", [name for name, each in RESOURCES.items() if each.create])
async def test_what_must_be_given_is_named(run: Run, name: str) -> None:
    if name == "invoices":
        return
    model = RESOURCES[name].create
    assert model is not None
    said = await run(section_of(name), "create")
    known = defaults(name, {"key": ""})
    required = [
        field for field, info in model.model_fields.items() if info.is_required() and field not in known
    ]
    assert (
        said.exit_code,
        [each for each in required if f"--{fields.spelled(each)}" not in said.stderr],
    ) == (1, [])


def test_second_places_are_places_of_commands_there_are() -> None:
    assert {(alias.section, alias.verb) for alias in ALIASES} <= {
        (name, verb) for name, each in SECTIONS.items() for verb in each
    }


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("5M", 5_000_000),
        ("5,000,000", 5_000_000),
        ("5_000", 5_000),
        ("250k", 250_000),
        ("2G", 2 * 10**9),
        ("-3", -3),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, read: int) -> None:
    assert fields.number(text) == read


@pytest.mark.parametrize(
    "text", ["", "M", "5.5M", "5 M", "٥", "5MM", "1e6", "--5", "1,50", "1,2345", ",100", "1.000", "9" * 31]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        fields.number(text)
    assert resources_resource.amount("tokens", text) == text


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("12.50", "12.50"), ("1,250.75", "1250.75"), (" 1 250 ", "1250"), ("1.5M", "1500000.0"),
        ("20k", "20000"), ("12,50", "12,50"), ("1.250,75", "1.250,75"), ("12,500,0", "12,500,0"),
        ("1e3", "1e3"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_money_is_read_only_where_it_is_sure(text: str, sent: str) -> None:
    assert resources_resource.amount("money", text) == sent


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["--help"], {"asyncio", "gateway.local", "gateway.settings", "persistence"}),
        (["tenant", "list", "--help"], {"asyncio", "gateway.local", "gateway.settings", "persistence"}),
        (["up", "--help"], {"asyncio", "gateway.admin", "gateway.local", "persistence"}),
        (["doctor", "--help"], {"asyncio", "gateway.admin", "gateway.local", "persistence"}),
    ],
)
def test_a_command_loads_what_it_needs(words: list[str], spared: set[str]) -> None:
    asked = "import sys; from gateway.cli.main import run\ntry: run(sys.argv[1:])\nexcept SystemExit: pass\n"
    asked += "print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", asked, *words], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Usage" in ran.stdout
    assert spared & set(ran.stderr.split()) == set()


async def test_every_id_may_be_a_name(run: Run, api: Api) -> None:
    made = await from_json(run, "org", "create", "Acme", "--credit-limit", "5k")
    assert made["credit_limit"] == 5_000
    await from_json(run, "tenant", "create", "web", "--organization", "Acme")
    user = await from_json(run, "user", "create", "ann", "--org", "Acme", "--name", "Ann")
    assert (await from_json(run, "user", "show", "ann")) == user
    token = await from_json(run, "admin-token", "create", "ci", "readonly", "--user", "ann")
    assert (token["user_id"], token["role"], bool(token["token"])) == (user["id"], "readonly", True)
    hook = await from_json(
        run,
        "webhook",
        "create",
        "https://example.com/x",
        "--org",
        "Acme",
        "--events",
        "credits.low",
        "--no-enabled",
    )
    assert (hook["organization_id"], hook["events"], hook["enabled"]) == (made["id"], ["credits.low"], False)
    listed = await from_json(run, "webhook", "list", "--org", "Acme")
    assert [row["id"] for row in listed["items"]] == [hook["id"]]
    assert (await from_json(run, "audit-log", "list", "--limit", "5"))["items"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plan", "create", "x", "--reset", "yearly"), "monthly"),
        (("plan", "create", "x", "y"), "'y' is one word too many"),
        (("tenant", "create", "x", "--plan", "none-such"), "no token-plan named"),
        (("tenant", "recharge", "1", "many"), "--amount must be a whole number"),
        (("service", "create", "x", "--model", "Consumption", "--pricing", "{"), "--pricing is not JSON"),
        (("key", "create", "nobody", "laptop"), "no tenant named 'nobody'"),
    ],
)
async def test_what_is_wrong_is_said_by_option(run: Run, words: tuple[str, ...], expected: str) -> None:
    said = await run(*words)
    assert said.exit_code != 0
    assert expected in said.stderr


async def test_reports_are_shown_by_their_own_names(run: Run, api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.busy = [((tenant["id"], "requests"), 7), ((tenant["id"], "rate_limited"), 2)]
    busy = await from_json(run, "activity", "show", "--window", "30", "--limit", "1")
    assert busy == (await api.get("activity?window=30&limit=1")).json
    for_people = (await run("activity", "show")).stdout
    assert "web" in for_people
    assert "rate_limited 2" in for_people
    assert (await run("activity", "show", "--window", "61")).exit_code != 0
    assert (await from_json(run, "reconciliation", "show"))["finished_at"] is None
    assert (await run("reconciliation", "run")).exit_code == 0
    assert (await from_json(run, "reconciliation", "show"))["finished_at"]
    assert "drift_tokens" in (await run("reconciliation", "show")).stdout


async def test_names_are_completed(run: Run, api: Api) -> None:
    await from_json(run, "org", "create", "Acme")
    await from_json(run, "org", "create", "Bolt")
    asked = {
        "TOLLKEEPER_ADMIN_URL": str(api.client.make_url("")),
        "TOLLKEEPER_ADMIN_TOKEN": api.token,
        "_TOLLKEEPER_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }

    async def completed(typed: str, **environ: str) -> str:
        ran = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **asked, "_TYPER_COMPLETE_ARGS": f"tollkeeper {typed}", **environ},
        )  # fmt: skip
        said, _ = await ran.communicate()
        return said.decode()

    assert (await completed("org show A")).split() == ["Acme"]
    assert (await completed("tenant list --org B")).split() == ["Bolt"]
    assert (await completed("tenant create web --org A")).split() == ["Acme"]
    nowhere = await completed("org show A", TOLLKEEPER_ADMIN_URL="http://127.0.0.1:1")
    assert nowhere.strip() == ""
