"""A batch that nobody asks for is charged once, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from decimal import Decimal
from pathlib import Path

from tests.journey.budgets import Spender
from tests.journey.stack import Stack
from tests.journey.test_batches import NOTHING, found, journal, live, make, settled
from tests.waiting import wait_until

LINES = 300


def test_a_batch_that_nobody_asks_for_is_charged_once_though_gateways_and_redis_are_killed(
    tmp_path: Path,
) -> None:
    stack = Stack(tmp_path / "data", TOLLKEEPER_WORKERS="2", TOLLKEEPER_JOBS_INTERVAL_S="1")
    try:
        spender = Spender(stack)
        budget = spender.budget(1)
        spender.known(budget)
        batch = make(spender, LINES, demo_after_s=1).raise_for_status().json()["id"]
        wait_until(lambda: live(spender, budget)[1] > 0)
        wait_until(lambda: found(spender))
        for pid in (*stack.pids["gateway"], stack.pids["redis"]):
            os.kill(pid, signal.SIGKILL)
        rows = journal(spender, LINES)
        spent = sum(Decimal(one["cost"]) for one in rows)
        wait_until(lambda: live(spender, budget) == (spent, NOTHING))
        job = settled(stack, batch, "completed")
        assert (job["lines"], Decimal(job["cost"]), Decimal(job["held"])) == (LINES, spent, 0)
        assert len(found(spender)) == LINES
    finally:
        stack.stop()
