"""A backup taken under load, brought back elsewhere: the gateway serves what was left then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.journey.stack import ROOT, Stack
from tests.persistence.scenario import broken
from tests.waiting import HUNG_S, wait_until


def tollkeeper(*words: str, cwd: Path) -> str:
    """One command, as a person types it; what it printed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        capture_output=True, text=True, timeout=HUNG_S, check=False,
        cwd=cwd, env=environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_a_backup_under_load_serves_its_balances_elsewhere(
    stack: Stack, own_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    tenant, key = stack.tenant(100_000)
    stack.chat(key, "10,10")
    stack.settled(tenant, 2)
    stop = threading.Event()

    def load() -> None:
        while not stop.wait(0.01):
            stack.chat(key, "1,1")

    loading = [threading.Thread(target=load) for _ in range(2)]
    for thread in loading:
        thread.start()
    try:
        words = ("backup", "--to", str(tmp_path), "--data-dir", str(stack.data_dir), "--json")
        told = json.loads(tollkeeper(*words, cwd=tmp_path))
    finally:
        stop.set()
        for thread in loading:
            thread.join()
    [file] = tmp_path.glob("*.tar")
    assert (told["file"], told["rows"] > 0) == (str(file), True)

    elsewhere = tmp_path / "data"
    said = tollkeeper("restore", "--from", str(file), "--data-dir", str(elsewhere), cwd=tmp_path)
    assert "agree with each other" in said
    pepper = json.loads(Path(stack.data_dir, "secrets.json").read_bytes())["key_pepper"]
    again = own_stack(data_dir=elsewhere, TOLLKEEPER_KEY_PEPPER=pepper)
    left = again.quota(tenant)["tokens_remaining"]
    rows = f"select amount, total_remaining from token_ledger where tenant_id = {tenant}"
    newest = f"{rows} order by seq desc limit 1"
    assert again.rows(newest)[0][1] == left
    assert 0 < left <= 99_980
    answer = wait_until(lambda: (a := again.chat(key, "3,4")).status_code == 200 and a, 60)
    assert answer.headers["x-tollkeeper-tokens-remaining"]
    wait_until(lambda: again.rows(newest)[0][0] == 7)
    assert again.quota(tenant)["tokens_remaining"] == left - 7
    assert {row[0] for row in again.rows("SELECT epoch FROM partition_state")} == {2}
    assert await broken(again.database_url) == []
