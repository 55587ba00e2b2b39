"""Each page of docs/clients/ works as it says, for a key that may call and one whose tokens are used up."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.journey.clients import node_with, python_of_clients
from tests.journey.sdk import Account, account
from tests.journey.stack import ROOT, Body, Stack
from tests.journey.test_howtos import fences
from tests.waiting import HUNG_S, wait_until

PAGES = ROOT / "docs" / "clients"
pytestmark = pytest.mark.nightly
CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.197"
CODEX = "@openai/codex@0.169.0"
AI_SDK = ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/anthropic@3.0.139")
TYPESCRIPT = "typescript@5.9.3"
HOLDS = ROOT / "deploy" / "clients" / "typescript" / "holds.ts"
# Answers of a gateway that are lost, and how often each request is sent.
LOST = """
import { Holds } from "./holds.ts";

const sent: string[] = [];
const taken = { id: "1", unit: "tokens", held: 5, remaining: 7, expires_at: "2026-01-01T00:00:00Z" };
const lossy = async (_: unknown, init: RequestInit = {}): Promise<Response> => {
  const key = new Headers(init.headers).get("idempotency-key") ?? "";
  sent.push(`${init.method} ${key}`);
  if (sent.length === 1 || String(init.body).includes("more")) throw new TypeError("fetch failed");
  if (sent.length === 2) return new Response("away", { status: 503 });
  if (init.method === "DELETE") return new Response(null, { status: 204 });
  return Response.json(taken, { status: 201 });
};
const holds = new Holds("http://127.0.0.1:1/", "tk_1", { fetch: lossy, pauseMs: 0 });
const extended = holds.with("chat", {}, (hold) => hold.extend(60, 5));
const lost = await extended.then(() => "", (error: Error) => error.message);
const methods = sent.map((one) => one.split(" ")[0]);
console.log(JSON.stringify({ lost, sent: methods, keys: new Set(sent.slice(0, 3)).size }));
"""
WEATHER = 'weather {"city":"Oslo"}'


@pytest.fixture
def spent(stack: Stack) -> Account:
    """An account whose tokens are used up."""
    a = account(stack, 1, reset_interval="daily")
    assert stack.chat(a.key).status_code == 200
    a.charges(1)
    return a


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a program of others is started with: a home of its own, and nothing that points elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TZ"}}
    return kept | {"HOME": str(home), "LITELLM_LOCAL_MODEL_COST_MAP": "True"} | more


def run(command: list[str], place: Path, **more: str) -> tuple[int, str]:
    """How it ended, and all it said."""
    ran = subprocess.run(
        command,
        cwd=place,
        env=environment(place, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    return ran.returncode, ran.stdout


def page(name: str, language: str, a: Account) -> str:
    """The first block of a page, with the address and the key of this account."""
    text = fences(PAGES / f"{name}.md", language)[0]
    return text.replace("http://127.0.0.1:8080", a.stack.gateway_url).replace("tk_…", a.key)


def assert_said(name: str, said: str) -> None:
    """The words that the page shows for a limit, with anything where it has dots."""
    (shown,) = fences(PAGES / f"{name}.md", "text")
    assert re.search(".*".join(map(re.escape, shown.strip().split("…"))), said), said


def calls(a: Account, count: int) -> list[Body]:
    """The calls of an account once there are so many."""

    def found() -> Any:
        status, body = a.stack.admin("GET", f"/calls?tenant_id={a.tenant}&limit=100")
        return status == 200 and len(body["items"]) >= count and body["items"]

    rows: list[Body] = wait_until(found)
    assert len(rows) == count, rows
    return rows


def user_of(stack: Stack, row: Body) -> str:
    status, body = stack.admin("GET", f"/users/{row['user_id']}")
    assert status == 200, body
    return str(body["external_id"])


def told(rows: list[Body], *names: str) -> set[tuple[Any, ...]]:
    return {tuple(row[name] for name in names) for row in rows}


def python_of(name: str, a: Account, spent: Account, place: Path) -> str:
    """What the program of a page says for one key and then for the other, imported once."""
    program = "\n".join(page(name, "python", one) for one in (a, spent))
    code, said = run([str(python_of_clients()), "-c", program], place)
    assert code == 0, said
    return said


def test_litellm(stack: Stack, spent: Account, tmp_path: Path) -> None:
    a = account(stack)
    said = python_of("litellm", a, spent, tmp_path)
    assert said.count("You said: Count to three.") == 3
    rows = calls(a, 3)
    assert told(rows, "model", "streamed", "estimated", "status", "tokens") == {
        ("gpt-4o-mini", False, False, 200, 10),
        ("claude-sonnet-4-5", True, False, 200, 10),
        ("gemini-2.5-flash", False, False, 200, 10),
    }
    of = {row["model"]: row for row in rows}
    assert [user_of(stack, of[name]) for name in ("gpt-4o-mini", "claude-sonnet-4-5")] == ["alice"] * 2
    assert (of["claude-sonnet-4-5"]["session"], of["gemini-2.5-flash"]["user_id"]) == ("counting", None)
    assert_said("litellm", said)


def test_langchain(stack: Stack, spent: Account, tmp_path: Path) -> None:
    a = account(stack)
    said = python_of("langchain", a, spent, tmp_path)
    lines = ["You said: Count to three.", "You said: Count to three. 10"]
    assert said.splitlines()[:5] == [*lines, *lines, "3"]
    rows = calls(a, 5)
    assert told(rows, "model", "streamed", "estimated", "status") == {
        *(
            (model, streamed, False, 200)
            for model in ("gpt-4o-mini", "claude-sonnet-4-5")
            for streamed in (False, True)
        ),
        ("text-embedding-3-small", False, False, 200),
    }
    assert told(rows, "session") == {("counting",), (None,)}
    assert_said("langchain", said)


@pytest.mark.parametrize("tool", ["", WEATHER], ids=["answers", "calls a tool"])
def test_the_ai_sdk(stack: Stack, spent: Account, tmp_path: Path, tool: str) -> None:
    a, folder = account(stack), node_with(*AI_SDK)

    def program(one: Account) -> tuple[int, str]:
        text = page("ai-sdk", "js", one)
        if tool:
            text = text.replace("headers: {", f"headers: {{ 'x-demo-tool': '{tool}',")
        path = folder / f"{one.key}.mjs"
        path.write_text(text)
        try:
            return run(["node", str(path)], tmp_path)
        finally:
            path.unlink()

    code, said = program(a)
    assert code == 0, said
    assert said.count("Sunny in Oslo" if tool else "You said: Count to three.") == 6
    steps = 2 if tool else 1
    rows = calls(a, 6 * steps + 1)
    assert told(rows, "estimated", "status", "session") == {(False, 200, "counting")}
    assert {user_of(stack, row) for row in rows[:2]} == {"alice"}
    assert sum(row["streamed"] for row in rows) == 3 * steps
    code, said = program(spent)
    assert code == 0, said
    assert_said("ai-sdk", said)


def typescript(place: Path, **programs: str) -> dict[str, str]:
    """What programs beside the client say, translated under all rules; by name."""
    folder = node_with(TYPESCRIPT)
    (place / "package.json").write_text('{"type":"module"}')
    for name, text in (programs | {"holds": HOLDS.read_text()}).items():
        (place / f"{name}.ts").write_text(text)
    options = ["--strict", "--erasableSyntaxOnly", "--rewriteRelativeImportExtensions", "--target", "es2022"]
    options += ["--module", "nodenext", "--lib", "es2022,dom", "--noUnusedLocals"]
    tsc = str(folder / "node_modules" / "typescript" / "bin" / "tsc")
    code, said = run(["node", tsc, *options, *(f"{name}.ts" for name in programs)], place)
    assert code == 0, said
    found = {}
    for name in programs:
        code, found[name] = run(["node", f"{name}.js"], place)
        assert code == 0, found[name]
    return found


def test_holds_from_typescript(stack: Stack, spent: Account, tmp_path: Path) -> None:
    a = account(stack, 1000, reset_interval="daily")
    said = typescript(
        tmp_path, page=page("typescript", "ts", a), refused=page("typescript", "ts", spent), lost=LOST
    )
    assert said["page"].splitlines() == ["held 50 tokens", "charged 10"]
    (row,) = calls(a, 1)
    assert (row["model"], row["tokens"], user_of(stack, row)) == ("gpt-4o-mini", 10, "alice")
    assert stack.quota(a.tenant)["tokens_held"] == 0
    assert_said("typescript", said["refused"])
    assert json.loads(said["lost"]) == {
        "lost": "fetch failed", "sent": ["POST"] * 4 + ["DELETE"], "keys": 1,
    }  # fmt: skip


def claude(a: Account, place: Path, **more: str) -> tuple[int, str]:
    folder = node_with(CLAUDE_CODE, then="@anthropic-ai/claude-code/install.cjs")
    script = page("claude-code", "console", a)
    path = f"{folder / 'node_modules' / '.bin'}:{os.environ['PATH']}"
    for name, value in more.items():
        script = script.replace(name, value)
    return run(["bash", "-euc", script], place, PATH=path)


def test_claude_code(stack: Stack, spent: Account, tmp_path: Path) -> None:
    a = account(stack, None)
    code, said = claude(a, tmp_path)
    assert code == 0, said
    assert "You said: Count to three." in said
    rows = calls(a, 1)
    assert told(rows, "streamed", "estimated", "status") == {(True, False, 200)}
    assert user_of(stack, rows[0]) == "alice"
    (session,) = {row["session"] for row in rows}
    assert len(session) == 36
    code, said = claude(spent, tmp_path)
    assert code == 1
    assert_said("claude-code", said)


def test_claude_code_uses_a_tool(stack: Stack, tmp_path: Path) -> None:
    a = account(stack, None)
    field = '"x-demo-tool: Bash {\\"command\\":\\"echo three > made.txt\\"}\nx-tollkeeper-user: alice"'
    code, said = claude(
        a, tmp_path, **{'"x-tollkeeper-user: alice"': field, "claude -p": "claude --allowedTools Bash -p"}
    )
    assert code == 0, said
    assert (tmp_path / "made.txt").read_text() == "three\n"
    assert len(calls(a, 2)) == 2


def codex(a: Account, place: Path, **more: str) -> tuple[int, str]:
    folder = node_with(CODEX)
    settings = place / ".codex" / "config.toml"
    settings.parent.mkdir(exist_ok=True)
    text = page("codex", "toml", a)
    for name, value in more.items():
        text = text.replace(name, value)
    settings.write_text(text)
    path = f"{folder / 'node_modules' / '.bin'}:{os.environ['PATH']}"
    return run(["bash", "-euc", page("codex", "console", a)], place, PATH=path)


def test_codex(stack: Stack, spent: Account, tmp_path: Path) -> None:
    a = account(stack, None)
    code, said = codex(a, tmp_path)
    assert code == 0, said
    assert "You said: Count to three." in said
    (row,) = calls(a, 1)
    assert told([row], "model", "streamed", "estimated", "status") == {("gpt-5-codex", True, False, 200)}
    assert user_of(stack, row) == "alice"
    assert len(row["session"]) == 36
    code, said = codex(spent, tmp_path)
    assert code == 1
    assert_said("codex", said)


def test_codex_uses_a_tool(stack: Stack, tmp_path: Path) -> None:
    a = account(stack, None)
    field = """{ "x-demo-tool" = 'exec_command {"cmd":"echo three of them"}',"""
    code, said = codex(a, tmp_path, **{"{ ": field + " "})
    assert code == 0, said
    assert "You said:" in said
    assert len(calls(a, 2)) == 2


def test_codex_sends_its_turns_over_a_websocket(stack: Stack, tmp_path: Path) -> None:
    a = account(stack, None)
    socket = {'wire_api = "responses"': 'wire_api = "responses"\nsupports_websockets = true'}
    field = """{ "x-demo-tool" = 'exec_command {"cmd":"echo three of them"}',"""
    code, said = codex(a, tmp_path, **socket, **{"{ ": field + " "})
    assert code == 0, said
    assert "You said:" in said
    # It first has the connection warmed up, which is refused and costs nothing: nobody asks for that by HTTP.
    rows = sorted(calls(a, 3), key=lambda one: str(one["created_at"]))
    assert [(row["status"], row["model"], row["tokens"] > 0) for row in rows] == [
        (400, None, False), (200, "gpt-5-codex", True), (200, "gpt-5-codex", True),
    ]  # fmt: skip
    assert len({row["session"] for row in rows}) == 1
