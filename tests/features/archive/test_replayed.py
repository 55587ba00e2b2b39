"""A replay over archived calls equals the one over the rows from before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.admin.replay import render_replay
from gateway.run.replay_process import answer_of
from tests.features.archive.aging import Clones, clones, lived
from tests.features.archive.test_reading import CALL, command
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "template"]

PERIOD = {"from": "2026-01-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
BUDGETS: list[dict[str, Any]] = [
    {"name": "users", "unit": "requests", "amount": 1, "interval": "month", "each": "user"},
    {"name": "tag", "unit": "money", "amount": "1", "interval": "day", "tags": {"feature": "search"}},
    {"name": "all", "unit": "tokens", "amount": 12, "interval": "day"},
]


async def test_replay_over_an_archive_equals_that_over_the_rows_of_before(
    clones: Clones, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clones() as url:
        past = await lived(url, tmp_path / "archive")
        rows_of(url, "UPDATE organization SET tags = '[\"feature\"]'")
        for _ in range(3):
            rows_of(url, CALL)
        period = {"since": PERIOD["from"], "until": PERIOD["to"]}
        usual = {"mode": "enforce", "on_exhausted": "finish", "time_zone": "UTC", "anchor_day": 1}
        asked = {
            "organization_id": 1, "tenant_id": None, "url": url, **period,
            "budgets": [{**usual, **budget} for budget in BUDGETS],
        }  # fmt: skip
        before = json.loads(json.dumps(render_replay(answer_of(asked))))
        files = (await past.archive()).files
        await past.end()
        [(left,)] = rows_of(url, "SELECT count(*) FROM call")
        assert (any(file.ledger == "call" for file in files), left < before["calls"]) == (True, True)
        assert [item["refused"] > 0 for item in before["items"]] == [True, True, True]
        body = tmp_path / "budgets.json"
        body.write_text(json.dumps({"organization_id": 1, "budgets": BUDGETS, **PERIOD}))
        where = ["--archive", str(tmp_path / "archive"), "--database-url", url]
        assert await asyncio.to_thread(command, "budget", "replay", "-f", str(body), *where, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found == before
        body.write_text(json.dumps({"organization_id": 1, "budgets": [*BUDGETS, *BUDGETS]}))
        assert await asyncio.to_thread(command, "budget", "replay", "-f", str(body), *where) == 1
        assert "budgets.3.name" in capsys.readouterr().err


def test_replay_over_an_archive_without_a_database_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TOLLKEEPER_DATABASE_URL", "TOLLKEEPER_DATABASE_OWNER_URL", "TOLLKEEPER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    body = tmp_path / "budgets.json"
    body.write_text(json.dumps({"organization_id": 1, "budgets": BUDGETS, **PERIOD}))
    assert command("budget", "replay", "-f", str(body), "--archive", str(tmp_path)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--archive needs the database too" in said
    assert "set TOLLKEEPER_DATABASE_URL" in said
