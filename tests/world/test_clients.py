"""Settings of clients that a page names are those by which `make world` plays them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.tree import ROOT
from tests.world.clients import CLIENTS, MODELS, Seat
from tests.world.clients_page import PAGE, PAGES
from tests.world.play_clients import CASES, TURNS
from tests.world.play_steps import STEPPED
from tests.world.play_steps import TITLES as STEP_TITLES
from tests.world.relay import foreign_seal, sealed, tool_call

NAME = re.compile(r"\b[A-Z]+_[A-Z_]+\b|\"(\w+)\":|^ *-? ?(\w+):", re.MULTILINE)
# Settings that pages tell of beside those that are played.
BESIDE = frozenset({"TOLLKEEPER_API_KEY", "ANTHROPIC_BASE_URL", "COPILOT_PROVIDER_WIRE_API"})


@pytest.mark.parametrize("name", [name for name in PAGES if CLIENTS[name].agent])
def test_a_page_names_the_settings_that_were_played(name: str, tmp_path: Path) -> None:
    client = CLIENTS[name]
    words, environ = client.start(Seat(tmp_path, tmp_path, "http://gateway", "tk_1", MODELS[client.api]))
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    played = " ".join([*words, *environ, *files])
    text = (ROOT / "docs" / "clients" / f"{PAGES[name]}.md").read_text()
    blocks = re.findall(r"^```(?:console|json|yaml|toml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = {match[0].strip(" -:") for block in blocks for match in NAME.finditer(block)}
    assert named or name == "Codex"
    assert [one for one in named - BESIDE if one.strip('"') not in played] == []


def test_each_client_and_each_case_has_its_cell() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| **")]
    for name in CLIENTS:
        mine = [line for line in lines if line.startswith(f"| **{name}**")]
        steps = [len(STEP_TITLES)] if name in STEPPED else []
        assert [line.count(" | ") for line in mine] == [len(CASES) - 1, 6, len(TURNS), *steps], name
    assert "WRONG" not in PAGE.read_text()


@pytest.mark.parametrize(
    "thought",
    [
        b'{"type":"signature_delta","signature":"c2lnbmVk"}',
        b'{"item":{"type":"reasoning","id":"rs_1","summary":[]}}',
        b'{"content":{"role":"model","parts":[{"text":"hm","thought":true}]}}',
    ],
)
def test_seal_of_the_relay_binds_a_thought_to_its_model(thought: bytes) -> None:
    body = sealed(thought, "large-1")
    assert body != thought
    assert json.loads(body)
    assert foreign_seal(body, "large-1") == foreign_seal(thought, "small-1") == ""
    assert "signature" in foreign_seal(body, "small-1")


READ = {
    "type": "object",
    "properties": {"files": {"type": "array", "items": {"type": "string"}}, "path": {"type": "string"}},
    "required": ["path"],
}
RUN = {"type": "OBJECT", "properties": {"command": {"type": "STRING"}}, "required": ["command"]}


@pytest.mark.parametrize(
    ("tools", "call"),
    [
        ([{"type": "function", "function": {"name": "Read", "parameters": READ}}], 'Read {"path": "/f"}'),
        ([{"type": "web_search"}, {"type": "function", "name": "shell", "parameters": RUN}],
         'shell {"command": "cat /f"}'),
        ([{"name": "Bash", "input_schema": RUN}, {"name": "Read", "input_schema": READ}],
         'Read {"path": "/f"}'),
        ([{"functionDeclarations": [{"name": "look_up", "parameters_json_schema": READ}]}],
         'look_up {"path": "/f"}'),
        ([{"name": "Write", "input_schema": READ}], ""),
    ],
)  # fmt: skip
def test_a_tool_that_reads_is_asked_for_as_its_client_offers_it(tools: list[object], call: str) -> None:
    assert tool_call({"tools": tools}, "/f") == call
