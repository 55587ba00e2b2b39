"""A stopped account over the wire: others go on, its calls have a bound, and nothing of it is lost."""

from __future__ import annotations

import os
import signal

import httpx2 as httpx
import redis

from gateway.counters.redis.keys import partition_of
from tests import plain_http
from tests.journey.stack import Stack
from tests.persistence.scenario import stop
from tests.stacks import BREAKABLE
from tests.waiting import wait_until

MAX = int(BREAKABLE["WAITING_ENTRIES_MAX"])


def stopped(stack: Stack, tenant_id: int) -> None:
    [(owner,)] = stack.rows(f"SELECT organization_id FROM tenant WHERE id = {tenant_id}")
    stop(stack.database_url, partition_of(owner), owner, tenant_id)


def release(stack: Stack, tenant_id: int) -> None:
    def released() -> bool:
        _, found = stack.admin("GET", f"/quarantine?tenant_id={tenant_id}&released=false")
        return bool(found) and all(
            stack.admin("POST", f"/quarantine/{one['id']}/release", {"reason": "a test"})[0] == 200
            for one in found["items"]
        )

    wait_until(released)


def charged(stack: Stack, tenant_id: int) -> int:
    return sum(row["transaction_type"] == "consume" for row in stack.ledger(tenant_id))


def waiting(stack: Stack) -> float:
    """How many entries wait; -1 where nobody says."""
    try:
        text = plain_http.get(f"{stack.admin_url}/metrics").text
    except httpx.TransportError:
        return -1
    found = [line for line in text.splitlines() if line.startswith("tollkeeper_waiting_entries ")]
    return float(found[0].split()[1]) if found else -1


def test_calls_are_refused_where_too_much_waits_and_none_is_lost(broken_stack: Stack) -> None:
    stack = broken_stack
    (tenant, key), (other, other_key) = stack.tenant(10_000), stack.tenant(10_000)
    stack.settled(tenant, 1)
    stopped(stack, tenant)
    answers: list[httpx.Response] = []

    def refused() -> bool:
        answers.append(stack.chat(key))
        return answers[-1].status_code != 200

    wait_until(refused)
    assert (answers[-1].status_code, answers[-1].headers["x-tollkeeper-reason"]) == (403, "tenant_blocked")
    assert "too much of its use waits to be stored" in answers[-1].json()["error"]["message"]
    served = len(answers) - 1
    assert served > MAX
    wait_until(lambda: waiting(stack) >= served)
    assert '"too much waits, calls refused"' in stack.log.read_text()
    # Nobody else notices, nor does it end with the keeper.
    assert stack.chat(other_key).status_code == 200
    stack.settled(other, 2)
    os.kill(stack.pids["keeper"], signal.SIGKILL)
    wait_until(lambda: waiting(stack) >= served)
    assert stack.chat(key).headers["x-tollkeeper-reason"] == "tenant_blocked"
    assert charged(stack, tenant) == 0
    release(stack, tenant)
    wait_until(lambda: charged(stack, tenant) == served)
    stack.act(tenant, "unblock")
    wait_until(lambda: stack.chat(key).status_code == 200)
    wait_until(lambda: charged(stack, tenant) == served + 1)
    wait_until(lambda: waiting(stack) == 0)


def test_what_waited_in_a_redis_that_is_emptied_comes_back(broken_stack: Stack) -> None:
    """By the workers' logs: behind what is stored, as everything that Redis forgot."""
    stack = broken_stack
    tenant, key = stack.tenant(10_000)
    stack.settled(tenant, 1)
    stopped(stack, tenant)
    for _ in range(MAX - 1):
        assert stack.chat(key).status_code == 200
    wait_until(lambda: waiting(stack) == MAX - 1)
    with redis.Redis.from_url(stack.redis_url) as client:
        client.flushall()
    wait_until(lambda: stack.chat(key).status_code == 200, within_s=60)
    release(stack, tenant)
    wait_until(lambda: charged(stack, tenant) == MAX, within_s=60)
    wait_until(lambda: waiting(stack) == 0)
    assert stack.quota(tenant)["tokens_used"] == sum(
        row["amount"] for row in stack.ledger(tenant) if row["transaction_type"] == "consume"
    )
