"""A batch under kills of gateways, keeper and Redis: `python -m tests.bench.killed_batch [LINES [KILLS]]`.

A whole `tollkeeper up` and one batch, of 10,000 lines if it is not said. Processes are killed with SIGKILL in
turn, each once those that were killed before are back, 20 times if it is not said. In the end it prints how
often a line was charged, and what all cost, beside the sum by hand.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.journey.budgets import MODEL, Spender, cost
from tests.journey.stack import Stack
from tests.journey.test_batches import NOTHING, live, make, settled
from tests.waiting import wait_until

LINES, KILLS, SEED = 10_000, 20, 7
ROWS_S_MAX = 900
Row = dict[str, Any]


def main(lines: int, kills: int) -> int:
    """Kill as often, and count."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-killed-") as folder:
        began = time.monotonic()
        stack = Stack(Path(folder) / "data", TOLLKEEPER_WORKERS="2", TOLLKEEPER_JOBS_INTERVAL_S="1")
        try:
            rows, within, spent = play(stack, lines, kills)
        finally:
            stack.stop()
    numbers = Counter(row["request_id"] for row in rows)
    print(
        f"killed {kills} times, {within} of these before the last line was charged: {lines} lines, "
        f"{len(rows)} rows of {len(numbers)} requests, {spent} charged, {by_hand(rows)} by hand; "
        f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}"
    )
    return int(len(rows) != lines or len(numbers) != lines or spent != by_hand(rows))


def play(stack: Stack, lines: int, kills: int) -> tuple[list[Row], int, Decimal]:
    """The journal's rows of a batch, kills before all were there, and what its budget has used."""
    spender = Spender(stack)
    budget = spender.budget(1_000)
    spender.known(budget)
    batch = make(spender, lines, demo_after_s=1).raise_for_status().json()["id"]
    wait_until(lambda: live(spender, budget)[1] > 0)
    draw, within = random.Random(SEED), 0
    counted = f"SELECT count(*) FROM call WHERE organization_id = {spender.organization} AND cost > 0"
    for number in range(kills):
        within += stack.rows(counted)[0][0] < lines
        _kill(stack, ("gateway", "redis", "gateway", "keeper")[number % 4], draw)
    wait_until(lambda: len(journal(spender)) >= lines, ROWS_S_MAX)
    job = settled(stack, batch, "completed")
    wait_until(lambda: live(spender, budget)[1] == NOTHING, ROWS_S_MAX)
    rows, (spent, _) = journal(spender), live(spender, budget)
    assert (job["lines"], Decimal(job["cost"]), Decimal(job["held"])) == (lines, spent, 0)
    return rows, within, spent


def by_hand(rows: list[Row]) -> Decimal:
    """What rows cost by their tokens and the price of their model."""
    assert {row["model"] for row in rows} == {MODEL}
    return sum((cost(row["usage"]["input"], row["usage"]["output"]) for row in rows), Decimal(0))


def journal(spender: Spender) -> list[Row]:
    """The rows of its organization that cost something; none while nobody answers."""
    found, cursor = list[Row](), ""
    while True:
        path = f"/calls?organization_id={spender.organization}&limit=1000"
        status, page = spender.stack.admin("GET", f"{path}&cursor={cursor}" if cursor else path)
        if status != 200:
            return []
        found += [row for row in page["items"] if row["cost"] and Decimal(row["cost"])]
        cursor = page["next_cursor"]
        if not cursor:
            return found


def _kill(stack: Stack, role: str, draw: random.Random) -> None:
    """Kill a process, and wait until another one has its place."""
    before = _pid_of(stack, role, draw)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: before not in _pids(stack, role), ROWS_S_MAX)


def _pid_of(stack: Stack, role: str, draw: random.Random) -> int:
    return draw.choice(wait_until(lambda: _pids(stack, role), ROWS_S_MAX))


def _pids(stack: Stack, role: str) -> list[int]:
    """The processes of a kind as they are now."""
    found = stack.pids.get(role)
    return found if isinstance(found, list) else [found] if found else []


if __name__ == "__main__":
    said = [int(one) for one in sys.argv[1:]]
    raise SystemExit(main(*(said + [LINES, KILLS][len(said) :])))
