"""From an SDK call to a ledger row, as README promises it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from openai import OpenAI, RateLimitError

from tests.journey.stack import ROOT, Stack
from tests.waiting import wait_until


def client(stack: Stack, key: str) -> OpenAI:
    return OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=key, max_retries=0)


def test_sdk_chat_is_soon_in_the_ledger(stack: Stack) -> None:
    tenant, key = stack.tenant()
    answer = client(stack, key).chat.completions.create(
        model="demo-small",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=64,
        extra_headers={"x-demo-usage": "17,25"},
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 42
    rows = wait_until(lambda: [r for r in stack.ledger(tenant) if r["transaction_type"] == "consume"])
    assert [(r["amount"], r["direction"], r["total_remaining"]) for r in rows] == [(42, "OUT", 958)]
    assert rows[0]["metadata"]["model"] == "demo-small"
    assert (rows[0]["metadata"]["input"], rows[0]["metadata"]["output"]) == (17, 25)
    assert rows[0]["metadata"]["estimated"] is False
    stored = stack.rows(
        f"select amount, total_remaining, seq from token_ledger where tenant_id = {tenant} order by seq"
    )
    assert stored == [(1000, 1000, 1), (42, 958, 2)]
    assert stack.quota(tenant)["tokens_used"] == 42


def test_sdk_stream_is_charged_and_its_usage_frame_kept_only_if_asked_for(stack: Stack) -> None:
    tenant, key = stack.tenant()
    chunks = list(
        client(stack, key).chat.completions.create(
            model="demo-small",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            extra_headers={"x-demo-usage": "11,7"},
        )
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    asked = list(
        client(stack, key).chat.completions.create(
            model="demo-small",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-demo-usage": "3,4"},
        )
    )
    assert asked[-1].usage is not None
    assert asked[-1].usage.total_tokens == 7
    rows = stack.settled(tenant, 3)
    assert [r["amount"] for r in rows] == [1000, 18, 7]
    assert rows[1]["metadata"]["streamed"] is True


def test_usage_command_shows_the_tokens(stack: Stack) -> None:
    tenant, key = stack.tenant()
    stack.chat(key, "30,12")
    stack.settled(tenant, 2)
    shown = subprocess.run(
        [sys.executable, "-m", "gateway", "usage", "--tenant", str(tenant), "--json"],
        cwd=ROOT,
        env=os.environ
        | {"TOLLKEEPER_ADMIN_URL": stack.admin_url, "TOLLKEEPER_ADMIN_TOKEN": stack.admin_token},
        capture_output=True,
        check=True,
    )
    assert (
        f'"tenant_id": {tenant}' in shown.stdout.decode() or f'"tenant_id":{tenant}' in shown.stdout.decode()
    )
    assert "42" in shown.stdout.decode()


def test_exceeding_is_delivered_then_refused_as_the_sdks_rate_limit_error(stack: Stack) -> None:
    tenant, key = stack.tenant(50, reset_interval="daily")
    assert stack.chat(key, "30,40").status_code == 200
    quota = stack.quota(tenant)
    assert (quota["tokens_remaining"], quota["is_blocked"]) == (-20, True)
    with pytest.raises(RateLimitError) as refused:
        client(stack, key).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert refused.value.code == "insufficient_quota"
    headers = refused.value.response.headers
    assert headers["x-tollkeeper-reason"] == "quota_exceeded"
    assert 0 < int(headers["retry-after"]) <= 86400
