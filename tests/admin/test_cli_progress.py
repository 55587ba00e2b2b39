"""Long runs say how far they are: a bar on a terminal, a line a step where nobody looks."""

from __future__ import annotations

import pytest

from gateway.cli.admin.output import steps, waiting


def test_where_nobody_looks_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with steps(2, "Invoices") as step:
        step("Acme [b]: draft 1")
        step("Beta: nothing to bill")
    assert capsys.readouterr().err.splitlines() == ["1/2 Acme [b]: draft 1", "2/2 Beta: nothing to bill"]


def test_on_a_terminal_there_is_a_bar_below_the_steps(
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


def test_what_takes_long_is_named_on_a_terminal_alone(
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
