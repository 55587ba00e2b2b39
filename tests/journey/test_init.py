"""`tollkeeper init`: a stack that runs with a team, its budget and a call; again, nothing changes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.admin.client import find
from tests.journey.stack import ROOT, Stack
from tests.waiting import HUNG_S, wait_until

SECRET = "sk-this-is-the-providers"


def init(place: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a script runs it: nobody is there to answer."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEEPER_", "OPENAI"))
    }
    return subprocess.run(
        [sys.executable, "-m", "gateway", "init", "--data-dir", str(place), *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HUNG_S, check=False,
        env=own | {"PYTHONPATH": str(ROOT)} | environ, cwd=place.parent,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose stack is stopped behind the test."""
    made = tmp_path / "place"
    yield made
    lock = made / "lock"
    if lock.exists() and lock.read_text():
        number = int(lock.read_text())
        os.kill(number, signal.SIGINT)
        wait_until(lambda: not Path(f"/proc/{number}").exists(), HUNG_S)


def files(place: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in place.iterdir() if path.suffix in {".yaml", ".key"}}


def test_five_answers_leave_a_stack_that_runs_and_again_changes_nothing(stack: Stack, place: Path) -> None:
    key = place.parent / "key"
    key.write_text(f"{SECRET}\n")
    first = init(
        place, "--provider", "openai", "--key-file", str(key), "--base-url", stack.upstream_url,
        "--tenant", "Team A", "--budget", "12.50", "--gateway-port", "0", "--admin-port", "0",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    [call] = [line for line in first.stdout.splitlines() if line.startswith("curl ")]
    answer = json.loads(
        subprocess.run(shlex.split(call), capture_output=True, check=True, timeout=HUNG_S).stdout
    )
    assert answer["choices"][0]["message"]["content"], answer
    api = find({"TOLLKEEPER_DATA_DIR": str(place)})
    [budget] = api.items("budgets", 10)
    assert (budget["name"], budget["amount"], budget["interval"]) == ("Team A, a month", "12.50", "month")
    for name in ("provider.key", "team.key", "tollkeeper.yaml"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    assert (place / "provider.key").read_text() == f"{SECRET}\n"
    logs = "".join(
        path.read_text(errors="replace") for path in (*(place / "logs").iterdir(), place / "up.log")
    )
    for text in (first.stdout, first.stderr, logs, files(place)["tollkeeper.yaml"]):
        assert SECRET not in text
    # Its first budgets are in force.
    [tenant] = api.items("tenants", 10)
    first_one = {"name": "one", "unit": "requests", "amount": 1, "interval": "total"}
    api.post("budgets", first_one | {"organization_id": tenant["organization_id"]})
    asked = shlex.split(call)
    wait_until(lambda: b"insufficient_quota" in subprocess.run(asked, stdout=-1, check=False).stdout)
    before = files(place)
    again = init(place, "--tenant", "Another")
    assert (again.returncode, "nothing was changed" in again.stderr) == (0, True)
    assert files(place) == before
    assert re.search(r"^curl .*" + before["team.key"].strip(), again.stdout, re.MULTILINE)
    assert len(api.items("tenants", 10)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--provider", "other"), "--provider must be one of demo, openai, anthropic, gemini"),
        (
            ("--provider", "openai"),
            "openai needs a key: name its file with --key-file, or set OPENAI_API_KEY",
        ),
        (("--budget", "lots"), "--budget must be a number such as 20 or 12.50"),
        (("--budget", "0"), "--budget must be above 0"),
        (("--tenant", " "), "--tenant must not be empty"),
        (("--provider", "openai", "--key-file", "/gone"), "--key-file /gone cannot be read"),
    ],
)
def test_a_wrong_answer_names_its_option_and_writes_nothing(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ended = init(tmp_path / "place", *words)
    assert (ended.returncode != 0, said in ended.stderr) == (True, True), ended.stderr
    assert not (tmp_path / "place").exists()


def test_without_a_start_it_says_how_to(tmp_path: Path) -> None:
    ended = init(tmp_path / "place", "--no-start", OPENAI_API_KEY=SECRET)
    assert ended.returncode == 0
    assert f"Start it:    tollkeeper up --config {tmp_path}/place/tollkeeper.yaml" in ended.stdout
    assert (tmp_path / "place" / "provider.key").read_text() == f"{SECRET}\n"
    assert SECRET not in ended.stdout + ended.stderr
