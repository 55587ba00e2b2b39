"""A new database has prices of what people use, and what is set reaches the gateways' Redis at once."""

from __future__ import annotations

import json

import redis

from tests.stage import Stage
from tests.waiting import wait_until


def test_a_new_installation_knows_what_models_cost(stage: Stage) -> None:
    status, quote = stage.admin(
        "GET", "/prices/quote?model=claude-opus-4-5-20251101&input=3&cache_read=180000&cache_write=5000"
        "&cache_write_1h=15000&output=500&tools.web_search=7",
    )  # fmt: skip
    assert (status, quote["cost"], quote["source"]) == (200, "0.353765", "bundled")
    _, listed = stage.admin("GET", "/prices?model=gpt-4o&provider=openai&source=bundled")
    assert listed["items"]


def test_a_price_that_is_set_reaches_the_gateways(stage: Stage) -> None:
    client = redis.Redis.from_url(stage.redis_url)

    def told() -> set[str]:
        raw = client.get("tk:prices")
        assert isinstance(raw, bytes)
        return {price[0] for price in json.loads(raw)["prices"]}

    assert "gpt-4o" in told()
    since = "2026-01-01T00:00:00Z"
    stage.make("prices", model="House-1", currency="USD", effective_from=since, input="1")
    wait_until(lambda: "house-1" in told())
