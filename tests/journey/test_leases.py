"""Plans that go on while Redis is away: within what was leased, charged once, and nothing stays held."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.journey.stack import Stack
from tests.waiting import wait_until

REASON = "x-tollkeeper-reason"


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def leased(stack: Stack, tenant: int, key: str, least: int) -> int:
    """Call until the workers hold so many tokens between calls; answers what they hold."""

    def held() -> int:
        assert stack.chat(key, "1,1").status_code == 200
        found: int = stack.quota(tenant)["tokens_held"]
        return found

    wait_until(lambda: held() >= least)
    found: int = stack.quota(tenant)["tokens_held"]
    return found


def consumed(stack: Stack, tenant: int) -> list[int]:
    rows = stack.ledger(tenant)
    return [row["amount"] for row in rows if row["transaction_type"] == "consume"]


def test_calls_go_on_within_their_lease_while_redis_is_away_and_are_charged_once(broken_stack: Stack) -> None:
    stack = broken_stack
    small, small_key = stack.tenant(1000, on_store_failure="allow", admission="strict")
    large, large_key = stack.tenant(100_000, on_store_failure="allow")
    _, denied = stack.tenant(2000)
    assert stack.chat(denied, "1,1").status_code == 200
    held = leased(stack, small, small_key, 150)

    with frozen(stack.pids["redis"]), ThreadPoolExecutor(4) as pool:
        for key in (denied, "tk_" + "0" * 40):
            refused = stack.chat(key, "1,1")
            assert (refused.status_code, refused.headers[REASON]) == (503, "counters_unavailable")
        answers = list(pool.map(lambda _: stack.chat(small_key, "4,6"), range(40)))
    done = [one for one in answers if one.status_code == 200]
    assert {one.headers[REASON] for one in answers if one.status_code != 200} == {"counters_unavailable"}
    # Since that look a lease may have been renewed: a tenth of the quota for each worker at most.
    assert 0 < 10 * len(done) <= max(held, 2 * 100)
    assert all("x-tollkeeper-tokens-remaining" in one.headers for one in done)
    assert wait_until(lambda: stack.chat(denied, "1,1").status_code == 200, 60)

    leased(stack, large, large_key, 15_000)
    with ThreadPoolExecutor(4) as pool:
        statuses = pool.map(
            lambda _: stack.chat(large_key, "4,6", x_demo_delay_s="0.05").status_code, range(80)
        )
        os.kill(stack.pids["redis"], signal.SIGKILL)
        assert set(statuses) == {200}

    for tenant, total, count in ((small, 1000, len(done)), (large, 100_000, 80)):
        wait_until(lambda tenant=tenant, count=count: consumed(stack, tenant).count(10) == count, 60)
        plan = stack.quota(tenant)["plan_id"]
        assert stack.admin("PATCH", f"/token-plans/{plan}", {"on_store_failure": "deny"})[0] == 200
        wait_until(lambda tenant=tenant: stack.quota(tenant)["tokens_held"] == 0, 60)
        amounts = consumed(stack, tenant)
        assert set(amounts) == {2, 10}
        assert stack.quota(tenant)["tokens_remaining"] == total - sum(amounts)
