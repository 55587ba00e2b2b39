"""Calls through the gateway, and the provider's report of them: made of what the upstream itself counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests import plain_http
from tests.features.provider_report.provider_fake import Vendor, vendor
from tests.journey.stack import ANSWER_S_MAX, ROOT, Stack
from tests.waiting import wait_until

VERSIONS = {"gpt-4o": "gpt-4o-2024-08-06", "claude-haiku-4-5": "claude-haiku-4-5-20251001"}
# As the providers' price lists say, for a million tokens: read, from a cache, written into one, output.
PRICES = {
    "gpt-4o": ("2.5", "1.25", "0", "10"),
    "text-embedding-3-small": ("0.02", "0", "0", "0"),
    "claude-haiku-4-5": ("1", "0.1", "1.25", "5"),
}
# What is dictated to the upstream: input, output, from a cache, reasoning, into a cache.
CHATS, EMBEDDED, MESSAGES = (
    ("1000,50,400", "77,3", "20503,500,18000,100"),
    ("400,0", "37,0"),
    ("3,500,180000,0,5000",),
)
PATHS = {"/v1/chat/completions": CHATS, "/v1/embeddings": EMBEDDED, "/v1/messages": MESSAGES}
ROOT_OF = {"openai": "/v1/organization", "anthropic": "/v1/organizations"}


@pytest.fixture
def reports() -> Iterator[Vendor]:
    with vendor() as server:
        yield server


def call(
    url: str, key: str, path: str, model: str, usage: str, *, stream: bool = False, status: int = 200
) -> None:
    said = [{"role": "user", "content": "hello there"}]
    body: dict[str, Any] = {"model": model, "messages": said, "max_tokens": 600, "stream": stream}
    if path.endswith("embeddings"):
        body = {"model": model, "input": "hello there"}
    headers = {"authorization": f"Bearer {key}", "x-demo-usage": usage}
    headers |= {"x-demo-status": str(status)} if status != 200 else {}
    answer = plain_http.post(f"{url}{path}", json=body, headers=headers, timeout=ANSWER_S_MAX)
    assert answer.status_code == status, answer.text


def counted(stack: Stack) -> dict[str, Counter[str]]:
    """What the upstream itself counted by model; only what a cache had is known from what was dictated."""
    found: dict[str, Counter[str]] = {}
    for one in plain_http.get(f"{stack.upstream_url}/demo/calls", timeout=ANSWER_S_MAX).json()["calls"]:
        sums = found.setdefault(one["model"], Counter(read=0, cached=0, written=0))
        sums.update({"requests": 1, "read": one["input"], "output": one["output"]})
    for path, usages in PATHS.items():
        for usage in usages:
            _, _, cached, _, written = map(int, f"{usage},0,0,0".split(",")[:5])
            # Each but embeddings is said twice, whole and as a stream.
            times = 1 if path.endswith("embeddings") else 2
            found[MODELS[path]].update(cached=cached * times, written=written * times)
    return found


MODELS = dict(zip(PATHS, ("gpt-4o", "text-embedding-3-small", "claude-haiku-4-5"), strict=True))


def publish(reports: Vendor, seen: dict[str, Counter[str]]) -> None:
    """Both providers' reports of usage and costs of today, over several pages."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin, end = int(today.timestamp()), int((today + timedelta(days=1)).timestamp())
    pages: dict[str, list[list[Any]]] = {}
    for model, sums in seen.items():
        prices = map(Decimal, PRICES.get(model, ("0",) * 4))
        uncached = sums["read"] - sums["cached"] - sums["written"]
        counts = (uncached, sums["cached"], sums["written"], sums["output"])
        dollars = (
            sum((count * price for count, price in zip(counts, prices, strict=True)), Decimal(0)) / 10**6
        )
        name = VERSIONS.get(model, model)
        if model.startswith("claude"):
            usage, bill = "usage_report/messages", "cost_report"
            result: dict[str, Any] = {
                "model": name, "uncached_input_tokens": uncached, "cache_read_input_tokens": sums["cached"],
                "cache_creation": {
                    "ephemeral_5m_input_tokens": sums["written"], "ephemeral_1h_input_tokens": 0,
                },
                "output_tokens": sums["output"],
            }  # fmt: skip
            cost: dict[str, Any] = {
                "model": name, "description": "Usage", "currency": "USD", "amount": str(dollars * 100)
            }  # fmt: skip
            times: dict[str, Any] = {
                "starting_at": today.isoformat(), "ending_at": (today + timedelta(days=1)).isoformat(),
            }  # fmt: skip
            root = ROOT_OF["anthropic"]
        else:
            kind = "embeddings" if "embedding" in model else "completions"
            usage, bill = f"usage/{kind}", "costs"
            result = {
                "object": f"organization.usage.{kind}.result", "model": name, "input_tokens": sums["read"],
                "num_model_requests": sums["requests"],
            }  # fmt: skip
            if kind == "completions":
                result |= {"input_cached_tokens": sums["cached"], "output_tokens": sums["output"]}
            cost = {
                "object": "organization.costs.result", "line_item": f"{name}, input",
                "amount": {"value": float(dollars), "currency": "usd"},
            }  # fmt: skip
            times, root = {"start_time": begin, "end_time": end}, ROOT_OF["openai"]
        for path, one in ((usage, result), (bill, cost)):
            pages.setdefault(f"{root}/{path}", []).append([{**times, "results": [one]}])
    reports.pages = pages


def journal(stack: Stack, tenant: int) -> list[dict[str, Any]]:
    """The calls of a tenant."""
    status, found = stack.admin("GET", f"/calls?tenant_id={tenant}&limit=1000")
    assert status == 200
    items: list[dict[str, Any]] = found["items"]
    return items


def reconcile(stack: Stack, reports: Vendor, provider: str) -> tuple[int, dict[str, Any]]:
    """The command as a person runs it: its exit code, and rows by model."""
    today = datetime.now(UTC).date()
    ran = subprocess.run(
        [
            sys.executable, "-m", "gateway", "reconcile-provider", provider, "--api", reports.url, "--json",
            "--from", str(today), "--to", str(today + timedelta(days=1)),
        ],
        cwd=ROOT,
        env=os.environ
        | {"TOLLKEEPER_ADMIN_URL": stack.admin_url, "TOLLKEEPER_ADMIN_TOKEN": stack.admin_token}
        | {"OPENAI_ADMIN_KEY": "sk-admin", "ANTHROPIC_ADMIN_KEY": "sk-ant-admin"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    return ran.returncode, {row["model"]: row for row in json.loads(ran.stdout)["items"]}


def verdicts(rows: dict[str, Any]) -> dict[str, str]:
    return {model: row["verdict"] for model, row in rows.items()}


def test_the_provider_and_we_count_the_same_until_a_call_is_lost_or_added(
    own_stack: Callable[..., Stack], reports: Vendor
) -> None:
    # A day that ends between the calls and the comparison would be two.
    wait_until(lambda: datetime.now(UTC).strftime("%H:%M") < "23:57", within_s=300)
    stack = own_stack()
    tenant, key = stack.tenant(None)
    for path, usages in PATHS.items():
        for usage in usages:
            for stream in (False,) if path.endswith("embeddings") else (False, True):
                call(stack.gateway_url, key, path, MODELS[path], usage, stream=stream)
    stack.settled(tenant, 1 + sum(map(len, PATHS.values())) * 2 - len(EMBEDDED))
    # A call that fails at the provider uses nothing there.
    call(stack.gateway_url, key, "/v1/chat/completions", "gpt-4o", "5,7", status=500)
    wait_until(lambda: any(row["status"] == 500 for row in journal(stack, tenant)))
    seen = counted(stack)
    assert seen["gpt-4o"]["requests"] == 2 * len(CHATS)
    publish(reports, seen)

    code, rows = reconcile(stack, reports, "openai")
    assert (code, verdicts(rows)) == (0, {"gpt-4o": "matched", "text-embedding-3-small": "matched"}), rows
    assert (rows["gpt-4o"]["matched_by"], rows["gpt-4o"]["their_models"]) == ("date", [VERSIONS["gpt-4o"]])
    assert rows["gpt-4o"]["ours"]["cost"] == rows["gpt-4o"]["theirs"]["cost"]
    assert rows["gpt-4o"]["ours"]["cache_read"] == 36_800
    assert rows["gpt-4o"]["difference"]["requests"] == 1
    code, rows = reconcile(stack, reports, "anthropic")
    assert (code, verdicts(rows)) == (0, {"claude-haiku-4-5": "matched"}), rows
    assert rows["claude-haiku-4-5"]["ours"]["cache_write"] == 10_000

    # Two calls go past the gateway, one of them to a model that nobody asked us for.
    call(stack.upstream_url, "theirs", "/v1/chat/completions", "gpt-4o", "5,7")
    call(stack.upstream_url, "theirs", "/v1/chat/completions", "o3-mini-2025-01-31", "5,7")
    # And the provider's report has lost its embeddings.
    added = counted(stack)
    del added["text-embedding-3-small"]
    publish(reports, added)
    code, rows = reconcile(stack, reports, "openai")
    assert (code, verdicts(rows)) == (
        1, {"gpt-4o": "differs", "o3-mini-2025-01-31": "theirs only", "text-embedding-3-small": "ours only"},
    )  # fmt: skip
    difference = rows["gpt-4o"]["difference"]
    assert (difference["requests"], difference["input"], difference["output"]) == (0, -5, -7)
    assert Decimal(difference["cost"]) == -Decimal("0.0000825")
    assert reconcile(stack, reports, "anthropic")[0] == 0
