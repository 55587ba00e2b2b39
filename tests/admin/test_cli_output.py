"""What commands print stays whole on narrow terminals, in other character sets, and on full disks."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from io import BytesIO, TextIOWrapper

import pytest
from typer import Exit

from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.output import admin, print_json, row, rows, steps
from gateway.core.text import hidden_in
from tests.tree import ROOT

NAME = "Größe 株式会社 & Söhne"
MOMENT = "2026-11-20T13:31:29.859000Z"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_nothing_is_cut_off_and_no_line_is_too_wide(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row({"name": "x" * 120, "next_reset_at": MOMENT}, as_json=False)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    pieces = [line.split("│")[2].strip() for line in said.splitlines() if "│" in line]
    assert "".join(pieces) == "x" * 120 + MOMENT


def test_a_pipe_is_as_wide_as_columns_says_and_wide_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"name": "a" * 30, "description": "b" * 60}]
    monkeypatch.delenv("COLUMNS", raising=False)
    rows(items, ("name", "description"), as_json=False)
    assert "b" * 60 in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "50")
    rows(items, ("name", "description"), as_json=False)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


def test_other_character_sets_get_what_they_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = BytesIO()
    out = TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"name": NAME})
    row({"name": NAME}, as_json=False)
    out.flush()
    written = raw.getvalue().decode("ascii")
    assert r"Gr\u00f6\u00dfe" in written
    assert "Gr??e" in written


def test_what_nobody_sees_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", "--version"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode != 0
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
