"""What a user sees while a part is away, and that nothing is lost or doubled by it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from redis import Redis

from tests.conftest import free_port
from tests.journey.apis import STREAMS, call
from tests.journey.exactness import Comparison, as_counted
from tests.journey.stack import Stack
from tests.waiting import wait_until

Start = Callable[..., Stack]


def test_refusing_and_hanging_upstreams_charge_nothing_and_release_the_hold(own_stack: Start) -> None:
    stack = own_stack("--upstream", f"http://127.0.0.1:{free_port()}")
    tenant, key = stack.tenant()
    answer = stack.chat(key)
    assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (502, "upstream_unreachable")
    quota = stack.quota(tenant)
    assert (quota["tokens_remaining"], quota["tokens_held"]) == (1000, 0)
    assert len(stack.settled(tenant, 1)) == 1


def test_hanging_upstream_is_504_and_charges_the_input_it_took(own_stack: Start) -> None:
    stack = own_stack(TOLLKEEPER_UPSTREAM_FIRST_BYTE_S="0.5")
    tenant, key = stack.tenant()
    answer = stack.chat(key, x_demo_delay_s="5")
    assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (504, "upstream_timeout")
    *_, row = stack.settled(tenant, 2)
    assert row["metadata"]["estimated"] is True
    quota = stack.quota(tenant)
    assert (1000 - quota["tokens_remaining"], quota["tokens_held"]) == (row["amount"], 0)
    assert 0 < row["amount"] < 100


def test_everything_is_kept_over_a_restart_and_served_again(own_stack: Start) -> None:
    stack = own_stack()
    tenant, key = stack.tenant()
    stack.chat(key, "10,10")
    first = stack.api_key
    assert stack.stop() == 0
    stack.start()
    assert stack.api_key == first
    assert stack.quota(tenant)["tokens_remaining"] == 980
    assert stack.chat(key, "1,1").status_code == 200
    assert [row["amount"] for row in stack.settled(tenant, 3)] == [1000, 20, 2]


def test_traffic_goes_on_without_postgresql_and_rows_arrive_later(own_stack: Start) -> None:
    stack = own_stack()
    tenant, key = stack.tenant()
    postgres = stack.pids["postgres"]
    children = _tree(postgres)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert [stack.chat(key, "3,4").status_code for _ in range(5)] == [200] * 5
        # People are told, by somebody who does not wait for it himself.
        assert stack.admin("GET", "/organizations")[0] == 503
        assert stack.admin("POST", "/organizations", {"name": "later"})[0] == 503
    finally:
        for pid in children:
            os.kill(pid, signal.SIGCONT)
    assert [row["amount"] for row in stack.settled(tenant, 6)] == [1000, 7, 7, 7, 7, 7]


def test_a_keeper_stops_although_postgresql_is_frozen_and_loses_nothing(own_stack: Start) -> None:
    stack = own_stack(TOLLKEEPER_SHUTDOWN_GRACE_S="1")
    tenant, key = stack.tenant()
    keeper, children = stack.pids["keeper"], _tree(stack.pids["postgres"])
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert [stack.chat(key, "3,4").status_code for _ in range(3)] == [200] * 3
        os.kill(keeper, signal.SIGTERM)
        wait_until(lambda: _pids(stack)["keeper"] != keeper, 60)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: stack.admin("GET", "/organizations")[0] == 200, 60)
    assert [row["amount"] for row in stack.settled(tenant, 4)] == [1000, 7, 7, 7]


def test_frozen_redis_is_503_and_killed_redis_comes_back_verified(own_stack: Start) -> None:
    stack = own_stack()
    tenant, key = stack.tenant()
    assert stack.chat(key, "1,1").status_code == 200
    redis = stack.pids["redis"]
    os.kill(redis, signal.SIGSTOP)
    try:
        refused = stack.chat(key, "1,1")  # it waits for no thaw
        assert (refused.status_code, refused.headers["x-tollkeeper-reason"]) == (503, "counters_unavailable")
    finally:
        os.kill(redis, signal.SIGCONT)
    wait_until(lambda: stack.chat(key, "1,1").status_code == 200, 60)
    with Redis.from_url(stack.redis_url, single_connection_client=True) as client:
        client.set("written", "last")
        client.execute_command("WAITAOF", 1, 0, 30_000)  # what came before is safe too
    os.kill(redis, signal.SIGKILL)
    wait_until(lambda: stack.chat(key, "1,1").status_code == 200, 60)

    def caught_up() -> list[dict[str, object]]:
        rows, quota = stack.ledger(tenant), stack.quota(tenant)
        return rows if rows[-1]["total_remaining"] == quota["tokens_remaining"] else []

    rows = wait_until(caught_up)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))


def test_killed_workers_and_keeper_are_restarted_and_lose_nothing(own_stack: Start) -> None:
    stack = own_stack("--workers", "2")
    tenant, key = stack.tenant(1_000_000)

    answered: list[int] = []

    def call(_: int) -> int:
        try:
            status = stack.chat(key, "3,4").status_code
        except Exception:  # noqa: BLE001  # a killed worker breaks its connections, in any way it likes
            return 0
        answered.append(status)
        return status

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(call, range(200))
        wait_until(lambda: len(answered) > 10)
        os.kill(stack.pids["gateway"][0], signal.SIGKILL)
        os.kill(stack.pids["keeper"], signal.SIGKILL)
        complete = sum(status == 200 for status in results)
    assert complete > 100

    def consumed() -> list[int]:
        return [row["amount"] for row in stack.ledger(tenant) if row["transaction_type"] == "consume"]

    wait_until(lambda: stack.admin("GET", f"/tenant-quotas/{tenant}")[0] == 200, 60)
    wait_until(lambda: stack.quota(tenant)["tokens_held"] == 0, 60)
    amounts = wait_until(lambda: sum(a := consumed()) == stack.quota(tenant)["tokens_used"] and a, 60)
    assert len(amounts) >= complete
    assert 1_000_000 - stack.quota(tenant)["tokens_remaining"] == sum(amounts)


def test_streams_that_end_without_redis_are_complete_and_charged_once(own_stack: Start) -> None:
    """Redis is frozen while they end, then killed; the second time the gateway is too, before it is back."""
    stack = own_stack()
    comparison = Comparison(stack)
    _, other = stack.tenant(1000)
    request = STREAMS[0].request(comparison.key, comparison.model, {"words": "40", "pause_s": "0.05"})
    for done, workers_die in ((0, False), (4, True)):
        pids = json.loads((Path(stack.data_dir) / "pids.json").read_text())
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


def _pids(stack: Stack) -> dict[str, object]:
    """The process ids as they are now."""
    pids: dict[str, object] = json.loads((Path(stack.data_dir) / "pids.json").read_text())
    return pids


def _tree(pid: int) -> list[int]:
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]
