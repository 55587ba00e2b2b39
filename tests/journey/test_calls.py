"""Every request of somebody known is in the journal and in reports, however it ended and whatever broke."""

from __future__ import annotations

import time
from typing import Any

from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until

SAID = {"x_tollkeeper_project_id": "8", "x_tollkeeper_content_id": "7", "x_tollkeeper_feature_version": "v3"}


def calls(stage: Stage, **filters: object) -> list[Body]:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    status, body = stage.admin("GET", f"/calls?limit=1000&{query}")
    assert status == 200, body
    items: list[Body] = body["items"]
    return items


def reported(stage: Stage, tenant: int) -> tuple[int, int]:
    """Requests and refused ones of a tenant, by the report."""
    status, body = stage.admin("GET", f"/usage?group_by=tenant&tenant_id={tenant}")
    assert status == 200, body
    return sum(one["requests"] for one in body["items"]), sum(one["refused"] for one in body["items"])


def test_each_way_a_call_ends_has_its_row(stage: Stage) -> None:
    tenant, key = stage.tenant(1000)
    limited = stage.make("api-keys", tenant_id=tenant, models=["demo-small"])["key"]
    slow = stage.make("api-keys", tenant_id=tenant, limits={"requests_per_minute": 1})["key"]
    session = f"s{time.monotonic_ns()}"
    said: dict[str, Any] = {**SAID, "x_tollkeeper_session": session}
    ended = [
        stage.chat(key, "5,5", **said),
        stage.chat(limited, model="gpt-of-nobody", **said),
        stage.chat(key, max_tokens="many", **said),
        stage.chat(key, x_demo_status="500", **said),
        *(stage.chat(slow, "1,1", **said) for _ in range(2)),
    ]
    wanted = {
        one.headers["x-request-id"]: (one.status_code, one.headers.get("x-tollkeeper-reason"))
        for one in ended
    }
    rows: list[Body] = wait_until(lambda: len(found := calls(stage, session=session)) >= len(ended) and found)
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
    [movement] = [row for row in stage.settled(tenant, 3) if row["request_id"] == first]
    assert (movement["project_id"], movement["content_id"], movement["feature_version"]) == (8, 7, "v3")
    [call] = calls(stage, request_id=movement["request_id"])
    assert (call["session"], call["tokens"]) == (session, 10)
    wait_until(lambda: reported(stage, tenant) == (3, 3))
