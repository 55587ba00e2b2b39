"""What people ask keeps nobody's rows waiting, and neither process of a keeper takes the other with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest

from tests import plain_http
from tests.journey.stack import Stack
from tests.waiting import wait_until

CONNECTIONS = 8
WIDEST = (
    "/usage?group_by=organization,tenant,user,api_key,project,service,model&interval=hour"
    "&from=2026-01-01T00:00:00Z&limit=10000"
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("people") / "data")
    yield one
    assert one.stop() == 0


def for_people(stack: Stack) -> int | None:
    """The process that serves people."""
    pids = json.loads((Path(stack.data_dir) / "pids.json").read_text())
    children = psutil.Process(pids["keeper"]).children() if pids["keeper"] else []
    return next((child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE), None)


def keeper(stack: Stack) -> int | None:
    pid: int | None = json.loads((Path(stack.data_dir) / "pids.json").read_text())["keeper"]
    return pid


def status(stack: Stack, path: str) -> tuple[int, Any]:
    answer = plain_http.get(f"{stack.admin_url}{path}", timeout=60)
    return answer.status_code, answer


@contextmanager
def flood(stack: Stack, token: str) -> Iterator[Callable[[], int]]:
    """Some connections ask for the widest report there is, again and again; how often they were answered."""
    over, answered = Event(), list[int]()

    def ask() -> None:
        while not over.is_set():
            status, _ = stack.admin("GET", WIDEST, authorization=f"Bearer {token}")
            answered.append(status)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        asking = [pool.submit(ask) for _ in range(CONNECTIONS)]
        try:
            yield lambda: answered.count(200)
        finally:
            over.set()
            for each in asking:
                each.result()
    assert set(answered) <= {200, 429}


def test_rows_of_others_come_while_a_member_asks_for_the_widest_report_again_and_again(stack: Stack) -> None:
    loud_tenant, loud = stack.tenant(1_000_000)
    tenant, key = stack.tenant(1_000_000)
    owner = stack.admin("GET", f"/tenants/{loud_tenant}")[1]["organization_id"]
    token = stack.make("admin-tokens", name="member", role="member", organization_id=owner)["token"]
    for number in range(30):
        assert stack.chat(loud, "3,4", x_tollkeeper_user=f"user {number}").status_code == 200
    stack.settled(loud_tenant, 31)
    counted = f"SELECT count(*) FROM token_ledger WHERE tenant_id = {tenant}"
    with flood(stack, token) as answered:
        for number in range(1, 4):
            wait_until(partial(_reaches, answered, number * CONNECTIONS))
            assert stack.chat(key, "5,6").status_code == 200
            wait_until(partial(_reaches, lambda: int(stack.rows(counted)[0][0]), 1 + number))
            assert stack.admin("GET", "/tenants?limit=1")[0] == 200, "staff are answered meanwhile"


def _reaches(count: Callable[[], int], number: int) -> bool:
    return count() >= number


def test_who_asks_while_the_process_for_people_dies_is_answered_by_the_next(stack: Stack) -> None:
    before, loops = for_people(stack), keeper(stack)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert status(stack, "/livez")[0] == 200
    assert for_people(stack) != before
    assert keeper(stack) == loops
    wait_until(
        lambda: 'tollkeeper_worker_restarts_total{why="died"} 1.0' in status(stack, "/metrics")[1].text
    )
    assert stack.admin("GET", "/tenants?limit=1")[0] == 200


def test_a_keeper_whose_loops_stand_still_is_not_ready_and_shows_no_old_numbers(stack: Stack) -> None:
    loops = keeper(stack)
    assert loops is not None
    os.kill(loops, signal.SIGSTOP)
    try:
        wait_until(lambda: status(stack, "/readyz")[0] == 503)
        assert json.loads(status(stack, "/readyz")[1].text)["dependencies"]["counters_verified"] is False
        wait_until(lambda: status(stack, "/metrics")[0] == 503)
        assert stack.admin("GET", "/tenants?limit=1")[0] == 200, "people are answered all the same"
    finally:
        os.kill(loops, signal.SIGCONT)
    wait_until(lambda: status(stack, "/readyz")[0] == status(stack, "/metrics")[0] == 200)


def test_the_process_for_people_ends_with_its_keeper_and_leaves_the_port_to_the_next(stack: Stack) -> None:
    loops, people = keeper(stack), for_people(stack)
    assert loops is not None
    assert people is not None
    os.kill(loops, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(people))
    wait_until(lambda: keeper(stack) not in {None, loops})
    wait_until(lambda: stack.admin("GET", "/tenants?limit=1")[0] == 200)


def test_its_connections_to_postgresql_are_told_apart(stack: Stack) -> None:
    names = {name for (name,) in stack.rows("SELECT DISTINCT application_name FROM pg_stat_activity")}
    assert {"tollkeeper-keeper", "tollkeeper-admin"} <= names


def test_asking_for_metrics_again_and_again_costs_next_to_nothing(stack: Stack) -> None:
    """An answer is written once a second, whoever asks: those between are the same, to the last byte."""
    bodies = [status(stack, "/metrics")[1].content for _ in range(50)]
    assert len(set(bodies)) < len(bodies)
