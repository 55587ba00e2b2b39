"""Redis is frozen for a moment: who was told that nobody knows holds nothing, and is charged nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx2 as httpx

from tests.journey.stack import Stack
from tests.waiting import wait_until

CALLERS, SLOTS, FROZEN_S = 8, 10, 1.6
BUSY = 429, "concurrency_limited"


def test_a_frozen_redis_leaves_no_slot_taken_and_no_refusal_charged(own_stack: Callable[..., Stack]) -> None:
    """Eight callers on ten slots, holds that are charged whole where nobody settles them."""
    stack = own_stack("--workers", "1", TOLLKEEPER_RECLAIM="charge_hold", TOLLKEEPER_HOLD_TTL_S="3")
    tenant, key = stack.tenant(None)
    status, _ = stack.admin("PATCH", f"/tenants/{tenant}", {"limits": {"concurrency": SLOTS}})
    assert status == 200
    wait_until(lambda: stack.chat(key, "5,5").status_code == 200)
    outcomes: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            answer = stack.chat(key, "5,5")
            outcomes[answer.status_code, answer.headers.get("x-tollkeeper-reason", "")] += 1
            if answer.status_code != httpx.codes.OK:
                over.wait(0.05)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for one in callers:
        one.start()
    wait_until(lambda: outcomes[200, ""] >= CALLERS)
    redis = stack.pids["redis"]
    os.kill(redis, signal.SIGSTOP)
    end = time.monotonic() + FROZEN_S
    wait_until(lambda: time.monotonic() > end)
    os.kill(redis, signal.SIGCONT)
    served = outcomes[200, ""]
    wait_until(lambda: outcomes[200, ""] > served + 5 * CALLERS)
    # What was given up may still have had its slots when the first came again.
    waited, served = outcomes[BUSY], outcomes[200, ""]
    wait_until(lambda: outcomes[200, ""] > served + 5 * CALLERS)
    over.set()
    for one in callers:
        one.join()
    assert outcomes[BUSY] == waited
    assert outcomes[503, "counters_unavailable"] > 0
    assert outcomes.keys() <= {(200, ""), (503, "counters_unavailable"), BUSY}
    wait_until(lambda: stack.quota(tenant)["tokens_held"] == 0)
    # 10 of the first call; what a reclaim charged would come after the holds' life.
    assert stack.quota(tenant)["tokens_used"] == 10 * (outcomes[200, ""] + 1)
