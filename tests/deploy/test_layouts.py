"""The program of a newer layout is rolled out in any order, taken back, and rolled out again under traffic:
no call fails and each is charged once, though each directory of a pod ends with it.

The older one is this program, the newer one has a field more in everything that is stored (`tests/newer.py`).
The long form is `python -m tests.bench.rolling --order "by turns"`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.layout import LAYOUT
from tests import newer
from tests.conftest import ValkeyServer, free_port
from tests.deploy.layouts import ORDERS, Rollout
from tests.deploy.processes import get
from tests.deploy.rolling import Load
from tests.waiting import HUNG_S, wait_until

LOAD = Load(rate=25, clients=8, streams=3, pieces=6)
Own = Callable[..., ValkeyServer]


@pytest.mark.nightly
@pytest.mark.parametrize("order", ORDERS)
async def test_a_roll_out_in_any_order_fails_no_call_and_charges_each_once(
    tmp_path: Path, own_valkey: Own, database: str, order: str
) -> None:
    rollout = Rollout(tmp_path, own_valkey("--appendonly", "yes").url, database)
    try:
        async with rollout.under(LOAD):
            *first, last = ORDERS[order]
            await rollout.replace(first, rollout.newer)
            assert rollout.layout == LAYOUT
            await rollout.replace([last], rollout.newer)
            await rollout.has_current_history()
            await rollout.replace([("gateway", 0), ("keeper", 0)], rollout.newer)
        whole(rollout)
    finally:
        rollout.deployment.stop()


async def test_it_is_taken_back_until_it_is_taken_up_and_refused_from_then_on(
    tmp_path: Path, own_valkey: Own, database: str
) -> None:
    rollout = Rollout(tmp_path, own_valkey("--appendonly", "yes").url, database)
    try:
        some = [("gateway", 0), ("keeper", 0)]
        async with rollout.under(LOAD):
            await rollout.replace(some, rollout.newer)
            await rollout.replace(some, rollout.older)
            assert rollout.layout == LAYOUT
            await rollout.replace(ORDERS["by turns"], rollout.newer)
            await rollout.has_current_history()
            await asyncio.to_thread(refuse_an_older_one, rollout)
        whole(rollout)
    finally:
        rollout.deployment.stop()


def refuse_an_older_one(rollout: Rollout) -> None:
    """A gateway and a keeper that come late serve nobody, and say why."""
    older, port, ops = str(rollout.older), str(free_port()), free_port()
    where = ("--gateway-port", port, "--ops-port", str(ops))
    gateway = rollout.deployment.start(
        "serve", "--config", str(rollout.deployment.config), *where,
        TOLLKEEPER_OPS_HOST="127.0.0.1", PYTHONPATH=older,
    )  # fmt: skip
    keeper = rollout.deployment.start("keeper", "--admin-port", str(free_port()), PYTHONPATH=older)
    known = f"of layout {newer.NEWER}: this version knows up to {LAYOUT}"
    wait_until(lambda: "older than what redis holds" in gateway.said and known in gateway.said, HUNG_S)
    assert get(ops, "/readyz")[0] == 503
    wait_until(lambda: known in keeper.said, HUNG_S)
    assert gateway.stop() == 0
    assert keeper.stop() == 0


def whole(rollout: Rollout) -> None:
    """No client noticed anything, each is charged, and nobody put anything aside."""
    outcome = rollout.outcome
    assert (outcome.failures, outcome.cut) == ({}, {})
    assert outcome.statuses.keys() == {200}
    assert outcome.streams > 0
    charged, expected = rollout.charged()
    assert charged == expected
    found = rollout.admin.ask("POST", "/reconciliation")
    assert (found["drift_tokens"], found["drift_credits"]) == (0, 0)
