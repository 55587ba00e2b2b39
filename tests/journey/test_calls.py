"""Every request of somebody known is in the journal and in reports, however it ended and whatever broke."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from tests.journey.stack import Body, Stack
from tests.waiting import wait_until

CALLS, AT_ONCE = 2_000, 8
SAID = {"x_tollkeeper_project_id": "8", "x_tollkeeper_content_id": "7", "x_tollkeeper_feature_version": "v3"}


def calls(stack: Stack, **filters: object) -> list[Body]:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    status, body = stack.admin("GET", f"/calls?limit=1000&{query}")
    assert status == 200, body
    items: list[Body] = body["items"]
    return items


def reported(stack: Stack, tenant: int) -> tuple[int, int]:
    """Requests and refused ones of a tenant, by the report."""
    status, body = stack.admin("GET", f"/usage?group_by=tenant&tenant_id={tenant}")
    assert status == 200, body
    return sum(one["requests"] for one in body["items"]), sum(one["refused"] for one in body["items"])


def refused_by(stack: Stack, key: str, numbers: range) -> Counter[int]:
    """Calls of invented models by a key that may use none of them: how many were answered by which status."""
    where = urlsplit(stack.gateway_url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
    answered: Counter[int] = Counter()
    for number in numbers:
        asked = [{"role": "user", "content": "hi"}]
        body = {"model": f"invented-{number}", "messages": asked, "max_tokens": 1}
        fields = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "x-tollkeeper-project-id": str(number),
            "x-tollkeeper-user": f"user {number}",
        }
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), fields)
            answer = connection.getresponse()
            answer.read()
            answered[answer.status] += 1
            if answer.status != 403:
                Event().wait(0.05)
        except (http.client.HTTPException, ConnectionError):
            answered[0] += 1  # its worker ended: it is not known what became of this one
            connection.close()
    return answered


def test_each_way_a_call_ends_has_its_row(stack: Stack) -> None:
    tenant, key = stack.tenant(1000)
    limited = stack.make("api-keys", tenant_id=tenant, models=["demo-small"])["key"]
    slow = stack.make("api-keys", tenant_id=tenant, limits={"requests_per_minute": 1})["key"]
    session = f"s{time.monotonic_ns()}"
    said: dict[str, Any] = {**SAID, "x_tollkeeper_session": session}
    ended = [
        stack.chat(key, "5,5", **said),
        stack.chat(limited, model="gpt-of-nobody", **said),
        stack.chat(key, max_tokens="many", **said),
        stack.chat(key, x_demo_status="500", **said),
        *(stack.chat(slow, "1,1", **said) for _ in range(2)),
    ]
    wanted = {
        one.headers["x-request-id"]: (one.status_code, one.headers.get("x-tollkeeper-reason"))
        for one in ended
    }
    rows: list[Body] = wait_until(lambda: len(found := calls(stack, session=session)) >= len(ended) and found)
    assert [one.status_code for one in ended] == [200, 403, 400, 500, 200, 429]
    told = {row["request_id"]: (row["status"], row["reason"]) for row in rows}
    failed = ended[3].headers["x-request-id"]
    wanted[failed] = (ended[3].status_code, "upstream_error")
    assert told == wanted
    for row in rows:
        assert (row["project_id"], row["content_id"], row["feature_version"]) == (8, 7, "v3")
        if row["reason"]:
            assert (row["tokens"], row["credits"], float(row["cost"] or 0)) == (0, 0, 0)
    # By its request, from each ledger to its call.
    first = ended[0].headers["x-request-id"]
    [movement] = [row for row in stack.settled(tenant, 3) if row["request_id"] == first]
    assert (movement["project_id"], movement["content_id"], movement["feature_version"]) == (8, 7, "v3")
    [call] = calls(stack, request_id=movement["request_id"])
    assert (call["session"], call["tokens"]) == (session, 10)
    wait_until(lambda: reported(stack, tenant) == (3, 3))


def test_counts_stay_exact_while_redis_is_frozen_and_a_worker_ends(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack("--workers", "2")
    tenant, _ = stack.tenant(1000)
    key = stack.make("api-keys", tenant_id=tenant, models=["demo-small"])["key"]
    wait_until(lambda: stack.chat(key, "1,1").status_code == 200)
    share = CALLS // AT_ONCE
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [
            pool.submit(refused_by, stack, key, range(at * share, (at + 1) * share)) for at in range(AT_ONCE)
        ]
        os.kill(stack.pids["redis"], signal.SIGSTOP)
        end = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > end)
        os.kill(stack.pids["redis"], signal.SIGCONT)
        os.kill(stack.pids["gateway"][0], signal.SIGTERM)
        answered = sum((one.result() for one in asked), Counter[int]())
    assert answered.keys() <= {0, 403, 503}
    assert answered[403] > CALLS // 2
    assert answered[0] <= AT_ONCE
    # Whoever was not known while nobody could be asked is nobody's.
    refused = wait_until(lambda: (now := reported(stack, tenant)[1]) >= answered[403] and now)
    assert answered[403] <= refused <= CALLS
    [[rows]] = stack.rows(f"SELECT count(*) FROM call WHERE refused AND tenant_id = {tenant}")
    assert 0 < rows <= 2 * 2 * 600  # of two workers, within two minutes
    [[sums]] = stack.rows(f"SELECT count(*) FROM usage_rollup WHERE span = 'hour' AND tenant_id = {tenant}")
    assert sums < 2 * 1_100
    assert stack.rows("SELECT * FROM invariant_usage_adds_up") == []
    reasons = {reason for (reason,) in stack.rows("SELECT DISTINCT reason FROM call WHERE refused")}
    assert "model_not_allowed" in reasons
