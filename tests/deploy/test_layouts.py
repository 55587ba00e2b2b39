"""The program of a newer layout is rolled out in any order, taken back, and rolled out again under traffic:
no call fails and each is charged once, though each directory of a pod ends with it.

The older one is this program, the newer one has a field more in everything that is stored (`tests/newer.py`).
The long form is `python -m tests.bench.rolling --order "by turns"`.
"""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.core.layout import LAYOUT
from gateway.extras import version
from tests import newer
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
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


async def test_programs_of_two_trees_with_the_same_number_never_serve_together_and_the_later_program_says_why(
    tmp_path: Path, own_valkey: Own, database: str
) -> None:
    older, later = (newer.make(tmp_path / name, newer.unreleased(name)) for name in ("aaaaaaaa", "bbbbbbbb"))
    deployment = Deployment(tmp_path, own_valkey().url, database, PYTHONPATH=str(older))
    try:
        _, key = deployment.admin.customer()
        serving, waiting = free_port(), free_port()
        ops, keeper_port = free_port(), free_port()
        gateway = deployment.serve(serving, free_port())
        deployment.environ["PYTHONPATH"] = str(later)
        deployment.start(
            "serve", "--config", str(deployment.config), "--gateway-port", str(waiting), "--ops-port", str(ops),
            TOLLKEEPER_OPS_HOST="127.0.0.1",
        )  # fmt: skip
        deployment.start("keeper", "--admin-port", str(keeper_port))
        for port in (ops, keeper_port):
            why = "waits for the end of programs with other forms of data"
            await asyncio.to_thread(wait_until, lambda port=port, why=why: why in readiness(port)[1], HUNG_S)
            status, said = readiness(port)
            assert status == 503
            assert all(
                f"{role} {version()} on {socket.gethostname()}" in said for role in ("gateway", "keeper")
            )
        assert status_of_call(waiting, key) == 503
        assert status_of_call(serving, key) == 200
        rows = deployment.admin.ask("GET", "/programs")["items"]
        assert {(row["role"], row["forms"], row["waits"], row["refused"] is None) for row in rows} == {
            ("gateway", "aaaaaaaa", False, True), ("keeper", "aaaaaaaa", False, True),
            ("gateway", "bbbbbbbb", True, False), ("keeper", "bbbbbbbb", True, False),
        }  # fmt: skip
        assert await asyncio.to_thread(gateway.stop) == 0
        assert await asyncio.to_thread(deployment.keeper.stop) == 0
        for port in (ops, keeper_port):
            await asyncio.to_thread(wait_until, lambda port=port: readiness(port)[0] == 200, HUNG_S)
        assert status_of_call(waiting, key) == 200
    finally:
        deployment.stop()


def readiness(port: int) -> tuple[int, str]:
    """Return what `/readyz` answers; 0 while nothing listens."""
    with suppress(OSError):
        return get(port, "/readyz")
    return 0, ""


def status_of_call(port: int, key: str) -> int:
    """Return the status of a chat's answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=b'{"model":"demo-1","messages":[{"role":"user","content":"hello"}]}',
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


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
