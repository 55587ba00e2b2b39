"""A plan that weighs kinds of tokens: what its tenant's quota, ledger, journal and reports then say."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX, Body
from tests.stage import Stage

CACHED = {"cache_read": "0.1"}
# Input, output, read from a cache, reasoning, written to a cache: 200,503 tokens.
MOSTLY_CACHED = "3,500,180000,0,20000"
COUNTS = 3 + 500 + 18_000 + 20_000


def message(stage: Stage, key: str, usage: str, **fields: Any) -> httpx.Response:
    """One call of Anthropic's API, whose upstream reports this use."""
    headers = {name.replace("_", "-"): fields.pop(name) for name in list(fields) if name.startswith("x_")}
    body = {
        "model": "demo-small",
        "max_tokens": 600,
        "messages": [{"role": "user", "content": "hello there"}],
    }
    return plain_http.post(
        f"{stage.gateway_url}/v1/messages",
        json=body | fields,
        headers={"x-api-key": key, "anthropic-version": "2023-06-01", "x-demo-usage": usage} | headers,
        timeout=ANSWER_S_MAX,
    )


def consumed(stage: Stage, tenant: int, rows: int = 2) -> Body:
    """The last row of a tenant's ledger that has so many."""
    return stage.settled(tenant, rows)[-1]


def test_a_cached_read_counts_a_tenth_of_the_quota_and_all_of_it_elsewhere(stage: Stage) -> None:
    tenant, key = stage.tenant(1_000_000, weights=CACHED)
    answer = message(stage, key, MOSTLY_CACHED)
    assert answer.status_code == 200, answer.text
    row = consumed(stage, tenant)
    assert (row["amount"], row["total_remaining"]) == (COUNTS, 1_000_000 - COUNTS)
    told = row["metadata"]
    assert (told["input"], told["output"], told["cached"]) == (200_003, 500, 180_000)
    quota = stage.quota(tenant)
    assert (quota["tokens_used"], quota["tokens_remaining"], quota["tokens_held"]) == (
        COUNTS,
        1_000_000 - COUNTS,
        0,
    )
    _, found = stage.admin("GET", f"/calls?tenant_id={tenant}")
    (call,) = found["items"]
    assert (call["tokens"], call["usage"]["cache_read"]) == (200_503, 180_000)
    used = plain_http.get(f"{stage.gateway_url}/.tollkeeper/usage", headers={"x-api-key": key}).json()
    assert (used["tokens_used"], used["tokens_remaining"]) == (COUNTS, 1_000_000 - COUNTS)
