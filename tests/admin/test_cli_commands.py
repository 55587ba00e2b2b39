"""The commands that are made of the resources: all of them, and what each takes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from typing import Any

import pytest
import typer
from click.testing import CliRunner
from typer import Exit

from gateway.admin.api.openapi import document
from gateway.admin.resources import form_fields
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.cli.admin.client import ALIASES, CommandFailed, defaults
from gateway.cli.admin.commands import mount_section, number, spelled
from gateway.cli.admin.output import admin, print_json, row, rows, steps, waiting
from gateway.cli.admin.sections import section_of
from gateway.core.text import hidden_in
from tests.admin.conftest import ADMIN, Api
from tests.admin.test_cli import COMMAND, Run, from_json, run
from tests.in_turn import in_turn
from tests.tree import ROOT
from tests.waiting import HUNG_S

__all__ = ["run"]

# Twice as many are there once all is loaded.
MODULES_MAX = 370
SECTIONS: dict[str, Any] = {
    name: group.commands for name, group in COMMAND.commands.items() if hasattr(group, "commands")
}


def test_cli_loads_a_single_command_group_with_all_commands_of_that_group() -> None:
    for name, whole in SECTIONS.items():
        alone = typer.Typer()
        if mount_section(alone, name):
            made: Any = typer.main.get_group(alone).commands[name]
            assert set(made.commands) == set(whole), name
    assert mount_section(typer.Typer(), "org")
    assert not mount_section(typer.Typer(), "nothing")


# Operations that are not called as their command is.
BESIDE = {
    "calls.explanation": ("explain",),
    "configuration.show": ("export",),
    "configuration.schema.json": ("export",),
    "configuration.apply": ("apply",),
    "invoices.pdf": ("invoice", "show"),
    "invoices.xml": ("invoice", "show"),
    "invoices.csv": ("invoice", "show"),
    "invoices.usage.csv": ("invoice", "show"),
    "counters.show": ("counters", "show"),
    "counters.rebuild": ("counters", "rebuild"),
    "letters.show": ("letters",),
    "letters.decide": ("letters",),
    "usage.show": ("usage",),
    "usage.csv": ("usage",),
    "usage.parquet": ("usage",),
    "usage.focus.csv": ("usage",),
    "usage.focus.parquet": ("usage",),
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
def test_cli_has_a_command_or_option_for_every_action_field_and_filter_of_the_api(name: str) -> None:
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
            plain = f"--{spelled(field)}"
            assert plain in told or any(each.startswith(f"{plain}-") for each in told), (verb, field)
    assert {f"--{spelled(each)}" for each in resource.filters} <= options_of(commands["list"])


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
    known |= {(name,) for name in COMMAND.commands}
    assert {operation for operation, words in wanted.items() if words not in known} == set()
    assert set(BESIDE) <= operations


def _words_of(operation: str) -> tuple[str, ...]:
    name, _, verb = operation.partition(".")
    return section_of(name), "show" if verb == "get" else verb


def test_cli_prints_usage_for_help_of_each_command() -> None:
    for words in ((name, verb) for name, each in SECTIONS.items() for verb in each):
        said = CliRunner().invoke(COMMAND, [*words, "--help"], env={"COLUMNS": "200"})
        assert (said.exit_code, "Usage" in said.output) == (0, True), said.output


async def test_cli_create_command_names_every_missing_required_option(run: Run) -> None:
    for name, resource in RESOURCES.items():
        if resource.create is None or name == "invoices":
            continue
        said, known = await run(section_of(name), "create"), defaults(name, {"key": ""})
        fields = resource.create.model_fields
        required = [field for field, info in fields.items() if info.is_required() and field not in known]
        missing = [each for each in required if f"--{spelled(each)}" not in said.stderr]
        assert (said.exit_code, missing) == (1, []), name


def test_cli_has_a_short_description_for_each_command() -> None:
    groups = COMMAND.commands
    named = groups | {
        f"{name} {one}": command for name, group in SECTIONS.items() for one, command in group.items()
    }
    assert [name for name, command in named.items() if not command.get_short_help_str()] == []


def test_cli_command_aliases_refer_to_existing_commands() -> None:
    assert {(alias.section, alias.verb) for alias in ALIASES} <= {
        (name, verb) for name, each in SECTIONS.items() for verb in each
    }


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("5M", 5_000_000), ("5,000,000", 5_000_000), ("5_000", 5_000), ("250k", 250_000), ("2G", 2 * 10**9),
        ("-3", -3),
    ],
)  # fmt: skip
def test_cli_accepts_whole_numbers_with_separators_and_suffixes(text: str, read: int) -> None:
    assert number(text) == read


@pytest.mark.parametrize(
    "text", ["", "M", "5.5M", "5 M", "٥", "5MM", "1e6", "--5", "1,50", "1,2345", ",100", "1.000", "9" * 31]
)
def test_cli_refuses_text_that_is_not_a_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        number(text)
    assert form_fields.amount("tokens", text) == text


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("12.50", "12.50"), ("1,250.75", "1250.75"), (" 1 250 ", "1250"), ("1.5M", "1500000.0"),
        ("20k", "20000"), ("12,50", "12,50"), ("1.250,75", "1.250,75"), ("12,500,0", "12,500,0"),
        ("1e3", "1e3"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_cli_rewrites_a_money_amount_only_if_the_meaning_is_unambiguous(text: str, sent: str) -> None:
    assert form_fields.amount("money", text) == sent


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["tenant", "list", "--help"], {"asyncio", "gateway.admin.resources.registry", "persistence"}),
        (["up", "--help"], {"asyncio", "gateway.admin", "gateway.local", "persistence"}),
    ],
)
def test_cli_help_loads_no_heavy_modules(words: list[str], spared: set[str]) -> None:
    asked = "import sys; from gateway.cli.main import run\ntry: run(sys.argv[1:])\nexcept SystemExit: pass\n"
    asked += "print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", asked, *words], capture_output=True, text=True, timeout=HUNG_S, check=True
    )
    assert "Usage" in ran.stdout
    assert spared & set(ran.stderr.split()) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["budget", "create", "1", "each engineer", "money", "20", "day", "--each", "user"],
        ["call", "list", "--newest", "--limit", "5"],
        ["explain", "019a7c1e-77aa-7cc3-8d3f-0c5b8f7e2a11"],
        ["usage", "--by", "model"],
        ["export"],
    ],
)
def test_cli_sends_the_request_before_loading_heavy_modules(words: list[str]) -> None:
    """A module costs a command half a millisecond of CPU, and a model of pydantic more."""
    asked = "import sys; from gateway.cli.main import run; from gateway.cli.admin.client import AdminClient\n"
    asked += "AdminClient._send = lambda *_: sys.exit(print(*sys.modules))\nrun(sys.argv[1:])"
    there = {"TOLLKEEPER_ADMIN_URL": "http://127.0.0.1:9", "TOLLKEEPER_ADMIN_TOKEN": "tka_x"}
    ran = subprocess.run(
        [sys.executable, "-c", asked, *words], capture_output=True, text=True, timeout=HUNG_S, check=True,
        env=os.environ | there,
    )  # fmt: skip
    loaded = set(ran.stdout.split())
    assert "http.client" in loaded, ran.stderr
    assert not loaded & {"asyncio", "pydantic", "rich.console", "gateway.admin.resources.registry"}
    assert len(loaded) < MODULES_MAX


def test_cli_up_command_reads_options_without_loading_pydantic() -> None:
    asked = "import sys, gateway.run.supervisor as one; from gateway.cli.main import run\n"
    asked += "one.up = lambda *_, **its: print(its['data_dir'], its['json'], 'pydantic' in sys.modules)\n"
    asked += "run(['up', '--data-dir', '/there', '--json', '--gateway-port', '0', '--no-demo'])"
    ran = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=HUNG_S, check=True
    )
    assert ran.stdout == "/there True False\n"


async def test_cli_accepts_names_in_place_of_ids(run: Run, api: Api) -> None:
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


@in_turn(
    ("words", "expected"),
    [
        (("plan", "create", "x", "--reset", "yearly"), "monthly"),
        (("plan", "create", "x", "y"), "Unexpected argument 'y'. Try --help."),
        (("tenant", "create", "x", "--plan", "none-such"), "no token-plan named"),
        (("tenant", "recharge", "1", "many"), "--amount must be a whole number"),
        (("plan", "create", "x", "--total", "5Z"), "--total must be a whole number"),
        (("key", "revoke", "424242"), "There is no key 424242; `tollkeeper key list` shows all."),
        (("call", "list", "--since", "yesterday"), "--since: must be"),
        (("usage", "--by", "modle"), "--by: must be some of organization"),
        (("service", "create", "x", "--model", "Consumption", "--pricing", "{"), "--pricing is not JSON"),
        (("key", "create", "nobody", "laptop"), "no tenant named 'nobody'"),
    ],
)
async def test_cli_error_names_the_wrong_option_or_value(
    run: Run, words: tuple[str, ...], expected: str
) -> None:
    said = await run(*words)
    assert said.exit_code != 0
    assert expected in said.stderr


async def test_cli_activity_and_reconciliation_commands_show_the_reports_of_the_api(
    run: Run, api: Api
) -> None:
    tenant = await api.make("tenants", name="web")
    api.counters.busy = [((tenant["id"], "requests"), 7), ((tenant["id"], "rate_limited"), 2)]
    busy = await from_json(run, "activity", "show", "--window", "30", "--limit", "1")
    assert busy == (await api.get("activity?window=30&limit=1")).json
    for_people = (await run("activity", "show")).stdout
    assert "web" in for_people
    assert "rate_limited 2" in for_people
    assert (await run("activity", "show", "--window", "61")).exit_code != 0
    assert (await run("reconciliation", "run")).exit_code == 0
    assert (await from_json(run, "reconciliation", "show"))["finished_at"]
    assert "drift_tokens" in (await run("reconciliation", "show")).stdout


async def test_activity_report_shows_the_age_of_the_oldest_unstored_use_to_staff_only(api: Api) -> None:
    owner = await api.make("organizations", name="one")
    token = await api.make("admin-tokens", name="t", role="readonly", organization_id=owner["id"])
    assert (await api.get("activity")).json["waiting_s"] is None
    api.counters.waiting_since_ms = 1
    assert (await api.get("activity")).json["waiting_s"] > 1_000_000_000
    assert (await api.acting_as(token["token"]).get("activity")).json["waiting_s"] is None


async def test_cli_shell_completion_completes_organization_names(run: Run, api: Api) -> None:
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
    assert (await completed("tenant create web --org A")).split() == ["Acme"]
    nowhere = await completed("org show A", TOLLKEEPER_ADMIN_URL="http://127.0.0.1:1")
    assert nowhere.strip() == ""


# --- cli output -------------------------------------------------------------------------
# What commands print stays whole on narrow terminals, in other character sets, and on full disks.


NAME = "Größe 株式会社 & Söhne"
MOMENT = "2026-11-20T13:31:29.859000Z"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_cli_row_wraps_at_the_terminal_width_without_losing_text(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row({"name": "x" * 120, "next_reset_at": MOMENT}, as_json=False)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    pieces = [line.split("│")[2].strip() for line in said.splitlines() if "│" in line]
    assert "".join(pieces) == "x" * 120 + MOMENT


def test_cli_table_in_a_pipe_is_wide_unless_the_columns_variable_sets_a_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"name": "a" * 30, "description": "b" * 60}]
    monkeypatch.delenv("COLUMNS", raising=False)
    rows(items, ("name", "description"), as_json=False)
    assert "b" * 60 in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "50")
    rows(items, ("name", "description"), as_json=False)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


def test_cli_escapes_or_replaces_characters_that_the_output_encoding_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = BytesIO()
    out = TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"name": NAME})
    row({"name": NAME}, as_json=False)
    out.flush()
    written = raw.getvalue().decode("ascii")
    assert r"Gr\u00f6\u00dfe" in written
    assert "Gr??e" in written


def test_cli_escapes_invisible_characters_in_all_output(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\u202eb\u200b\x1b[31m\x9b2J"
    rows([{"name": name}], ("name",), as_json=False)
    row({"name": name}, as_json=False)
    with suppress(Exit), admin():
        raise CommandFailed(name)
    with steps(1, "x") as step:
        step(name)
    print_json({"name": name})
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert hidden_in(text) == ""
        assert r"a\u202eb\u200b\u001b[31m\u009b2J" in text
    assert json.loads(said.out.splitlines()[-1]) == {"name": name}


def test_cli_prints_an_error_and_no_traceback_when_the_disk_is_full() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", "--version"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=HUNG_S, check=False,
        )  # fmt: skip
    assert ended.returncode != 0
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- cli progress -----------------------------------------------------------------------
# Long runs say how far they are: a bar on a terminal, a line a step where nobody looks.


def test_cli_prints_a_line_for_each_step_of_progress_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with steps(2, "Invoices") as step:
        step("Acme [b]: draft 1")
        step("Beta: nothing to bill")
    assert capsys.readouterr().err.splitlines() == ["1/2 Acme [b]: draft 1", "2/2 Beta: nothing to bill"]


def test_cli_shows_a_progress_bar_below_the_finished_steps_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with steps(2, "Invoices") as step:
        step("Acme [b]: draft 1")
        step("Beta: nothing to bill")
    said = capsys.readouterr().err
    assert "Acme [b]: draft 1\n" in said
    assert "2/2" in said
    assert "Invoices" in said


def test_cli_prints_a_please_wait_message_only_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting("Comparing every account"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with waiting("Comparing every account"):
        pass
    assert "Comparing every account" in capsys.readouterr().err


# --- cli top ----------------------------------------------------------------------------
# `tollkeeper top`: one look for programs and pipes, a live one that a key ends, also on narrow terminals.


async def busy(api: Api) -> None:
    tenant = await api.make("tenants", name="a tenant of a rather long name, as they come")
    api.counters.busy = [
        ((tenant["id"], "requests"), 120),
        ((tenant["id"], "tokens"), 4_200),
        ((tenant["id"], "rate_limited"), 30),
    ]


async def test_cli_top_with_once_and_json_prints_request_token_and_refusal_rates(run: Run, api: Api) -> None:
    await busy(api)
    result = await run("top", "--once", "--json", "--window", "60")
    look = json.loads(result.stdout)
    assert (look["requests_per_s"], look["tokens_per_s"], look["refused_per_s"]) == (2.0, 70.0, 0.5)
    assert look["tenants"][0]["refused"] == {"rate_limited": 30}
    assert look["latency_s"] == {"p50": None, "p99": None, "added_p99": None}


async def test_cli_top_prints_a_table_when_piped(run: Run, api: Api) -> None:
    await busy(api)
    result = await run("top")
    assert result.exit_code == 0
    assert "a tenant of a rather long name" in result.stdout
    assert "rate_limited 30" in result.stdout


async def test_cli_top_prints_zero_rates_without_traffic(run: Run, api: Api) -> None:
    result = await run("top", "--once")
    assert result.exit_code == 0
    assert "requests/s 0" in result.stdout


class Terminal:
    """`tollkeeper top` on a terminal of its own."""

    def __init__(self, api: Api, columns: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        environ = {
            name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "top", "--interval", "0.5"],
            cwd=ROOT,
            env=environ
            | {
                "TERM": "xterm-256color",
                "TOLLKEEPER_ADMIN_URL": str(api.client.make_url("")),
                "TOLLKEEPER_ADMIN_TOKEN": ADMIN,
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self.slave = slave
        self.seen = ""

    async def until(self, word: str) -> None:
        deadline = time.monotonic() + 60
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.seen += (await asyncio.to_thread(os.read, self.master, 65536)).decode(errors="replace")

    async def quit(self) -> int:
        os.write(self.master, b"q")
        loop = asyncio.get_running_loop()
        loop.add_reader(self.master, os.read, self.master, 65536)  # what it still says is let go
        status = await asyncio.to_thread(self.process.wait, 60)
        loop.remove_reader(self.master)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.mark.parametrize("columns", [120, 60])
async def test_cli_top_refreshes_until_q_is_pressed_and_restores_the_terminal(api: Api, columns: int) -> None:
    await busy(api)
    terminal = Terminal(api, columns)
    try:
        await terminal.until("requests/s")
        await terminal.until("tenant of")
        if columns == 120:
            await terminal.until("│ rate_limited 30")
        api.counters.busy = [((0, "invalid_api_key"), 990)]
        await terminal.until("99")
        assert ("│ rate_limited 30" in terminal.seen) is (columns == 120)
        api.counters.away = True
        await terminal.until("cannot be")
        assert await terminal.quit() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()
