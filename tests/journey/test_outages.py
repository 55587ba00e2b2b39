"""What a user sees while a part is away, and that nothing is lost or doubled by it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from tests.journey.apis import STREAMS, call
from tests.journey.exactness import Comparison, as_counted
from tests.journey.stack import Stack
from tests.waiting import wait_until


def test_everything_is_kept_over_a_restart_and_served_again(broken_stack: Stack) -> None:
    stack = broken_stack
    tenant, key = stack.tenant()
    stack.chat(key, "10,10")
    first = stack.api_key
    assert stack.stop() == 0
    stack.start()
    assert stack.api_key == first
    assert stack.quota(tenant)["tokens_remaining"] == 980
    assert stack.chat(key, "1,1").status_code == 200
    assert [row["amount"] for row in stack.settled(tenant, 3)] == [1000, 20, 2]


def test_a_keeper_stops_although_postgresql_is_frozen_and_loses_nothing(broken_stack: Stack) -> None:
    stack = broken_stack
    tenant, key = stack.tenant()
    keeper, children = stack.pids["keeper"], _tree(stack.pids["postgres"])
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert [stack.chat(key, "3,4").status_code for _ in range(3)] == [200] * 3
        # People are told, by somebody who does not wait for it himself.
        assert stack.admin("GET", "/organizations")[0] == 503
        os.kill(keeper, signal.SIGTERM)
        wait_until(lambda: stack.pids["keeper"] not in {None, keeper}, 60)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: stack.admin("GET", "/organizations")[0] == 200, 60)
    assert [row["amount"] for row in stack.settled(tenant, 4)] == [1000, 7, 7, 7]


def test_streams_that_end_without_redis_are_complete_and_charged_once(broken_stack: Stack) -> None:
    """Redis is frozen while they end, then killed; the second time the gateway is too, before it is back."""
    stack = broken_stack
    comparison = Comparison(stack)
    # Of the same organization, so that it is open again once the partition is.
    _, row = stack.admin("GET", f"/tenants/{comparison.tenant}")
    beside = stack.make(
        "tenants", name="beside", plan_id=row["plan_id"], organization_id=row["organization_id"]
    )
    other = stack.make("api-keys", tenant_id=beside["id"])["key"]
    request = STREAMS[0].request(comparison.key, comparison.model, {"words": "100", "pause_s": "0.05"})
    for done, workers_die in ((0, False), (4, True)):
        pids = stack.pids
        wait_until(lambda: stack.chat(other, "1,1").status_code == 200, 60)  # it is open again
        with ThreadPoolExecutor(4) as pool:
            streams = [pool.submit(call, stack.gateway_url, request) for _ in range(4)]
            wait_until(lambda: stack.quota(comparison.tenant)["tokens_held"] > 0)
            os.kill(pids["redis"], signal.SIGSTOP)
            assert all(stream.result().complete for stream in streams)
        if workers_die:
            os.kill(pids["gateway"][0], signal.SIGKILL)
        os.kill(pids["redis"], signal.SIGKILL)
        wait_until(lambda: stack.admin("GET", f"/tenant-quotas/{comparison.tenant}")[0] == 200, 60)
        stack.settled(comparison.tenant, done + 5, 60)
        wait_until(lambda: stack.quota(comparison.tenant)["tokens_held"] == 0, 60)
    compared = comparison.compare(as_counted)
    assert (compared.calls, compared.wrong) == (8, ())


def _tree(pid: int) -> list[int]:
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]
