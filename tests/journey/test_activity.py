"""Who is busy, from a call at the gateway to the Admin API and `tollkeeper top`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.journey.stack import ROOT, Stack
from tests.waiting import wait_until


def test_calls_and_refusals_of_a_tenant_are_seen_within_seconds(stack: Stack) -> None:
    tenant, key = stack.tenant(total=50)
    assert stack.chat(key, "10,5").status_code == 200
    assert stack.chat(key, "30,15").status_code == 200
    assert stack.chat(key).status_code == 429

    def mine() -> Any:
        status, report = stack.admin("GET", "/activity?limit=100")
        assert status == 200
        found = [item for item in report["items"] if item["tenant_id"] == tenant]
        return found if found and found[0]["requests"] == 2 and found[0]["refused"] else None

    [item] = wait_until(mine)
    assert (item["tokens"], item["refused"]) == (60, {"quota_exceeded": 1})
    looked = subprocess.run(
        [sys.executable, "-m", "gateway", "top", "--once", "--json", "--window", "60", "--limit", "100"],
        cwd=ROOT,
        env=os.environ
        | {"TOLLKEEPER_ADMIN_URL": stack.admin_url, "TOLLKEEPER_ADMIN_TOKEN": stack.admin_token},
        capture_output=True,
        text=True,
        check=True,
    )
    look = json.loads(looked.stdout)
    assert item["tenant"] in {row["tenant"] for row in look["tenants"]}
    assert look["latency_s"]["p99"] > 0
    assert look["outbox"]["entries"] is not None


def test_usage_shows_a_call_right_after_its_answer(stack: Stack) -> None:
    tenant, key = stack.tenant(total=50)
    request_id = stack.chat(key, "10,5").headers["x-request-id"]
    environ = {
        "TOLLKEEPER_ADMIN_URL": stack.admin_url, "TOLLKEEPER_ADMIN_TOKEN": stack.admin_token, "COLUMNS": "200",
    }  # fmt: skip
    shown = subprocess.run(
        [sys.executable, "-m", "gateway", "usage", "--tenant", str(tenant)],
        cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert request_id in shown
    assert wait_until(lambda: stack.admin("GET", "/activity")[1]["waiting_s"] is None)
