"""What people ask keeps nobody's rows waiting, and neither process of a keeper takes the other with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any

import psutil

from tests import plain_http
from tests.journey.stack import Stack
from tests.waiting import wait_until

CONNECTIONS = 8
WIDEST = (
    "/usage?group_by=organization,tenant,user,api_key,project,service,model&interval=hour"
    "&from=2026-01-01T00:00:00Z&limit=10000"
)


def for_people(stack: Stack) -> int | None:
    """The process that serves people."""
    keeper = stack.pids["keeper"]
    children = psutil.Process(keeper).children() if keeper else []
    return next((child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE), None)


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


def test_rows_of_others_come_while_a_member_asks_for_the_widest_report(
    broken_stack: Stack,
) -> None:
    stack = broken_stack
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


def test_who_asks_while_the_process_for_people_dies_is_answered_by_the_next(broken_stack: Stack) -> None:
    stack = broken_stack
    before, loops = for_people(stack), stack.pids["keeper"]
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert status(stack, "/livez")[0] == 200
    assert for_people(stack) != before
    assert stack.pids["keeper"] == loops
    wait_until(lambda: 'tollkeeper_worker_restarts_total{why="died"}' in status(stack, "/metrics")[1].text)
    assert stack.admin("GET", "/tenants?limit=1")[0] == 200


def test_a_keeper_whose_loops_stand_still_is_not_ready_and_shows_no_old_numbers(broken_stack: Stack) -> None:
    stack = broken_stack
    loops = stack.pids["keeper"]
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


def test_the_process_for_people_ends_with_its_keeper_and_leaves_the_port(
    broken_stack: Stack,
) -> None:
    stack = broken_stack
    loops, people = stack.pids["keeper"], for_people(stack)
    assert loops is not None
    assert people is not None
    os.kill(loops, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(people))
    wait_until(lambda: stack.pids.get("keeper") not in {None, loops})
    wait_until(lambda: stack.admin("GET", "/tenants?limit=1")[0] == 200)


def test_its_connections_to_postgresql_are_told_apart(broken_stack: Stack) -> None:
    stack = broken_stack
    names = {name for (name,) in stack.rows("SELECT DISTINCT application_name FROM pg_stat_activity")}
    assert {"tollkeeper-keeper", "tollkeeper-admin"} <= names
