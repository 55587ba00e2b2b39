"""A price that is about more calls than one transaction rates again: all are, each once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gateway.admin.http import requests
from gateway.admin.resources.catalogue import PriceCreate
from gateway.core.billing.price_book import KINDS
from persistence.billing.amendments import PIECE_CALLS_MAX
from tests.persistence.april import April, april, at
from tests.persistence.scenario import rows_of

__all__ = ["april"]

CALLS = PIECE_CALLS_MAX + 3_007
TOKENS, MARKUP = 1_000, 2
# Calls at cost of one model, and those of another one that the price is not about.
FILL = """
WITH of AS (SELECT (md5(n::text)::uuid) AS request, n,
                   CASE WHEN n %% 3 = 0 THEN 'other' ELSE 'dated' END AS model
              FROM generate_series(1, %s) AS n),
     used AS (INSERT INTO feature_usage (organization_id, "timestamp", epoch, seq, usage_amount, spend,
                                         spent_after, in_money, request_id, feature_id, tenant_id)
              SELECT %s, %s, 1, n, %s, 0, 0, true, request, %s, %s FROM of RETURNING 1)
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, service_id, model, {kinds},
                  tokens, credits, units, cost, currency, price_id, status, streamed, estimated, refused,
                  duration_ms)
SELECT request, %s, %s, %s, 0, %s, model, {zeros}, %s, 0, 1, %s, 'USD',
       CASE model WHEN 'dated' THEN %s ELSE %s END, 200, false, false, false, 1
  FROM of, (SELECT count(*) FROM used) AS u
RETURNING 1"""


async def price(april: April, model: str, rate: str, day: int) -> int:
    asked = {"model": model, "currency": "USD", "input": rate, "effective_from": at(4, day).isoformat()}
    return int((await april.do("prices", "create", **requests.check_body(PriceCreate, asked)))["id"])


async def used(april: April) -> dict[str, Any]:
    """An organization with a service at cost, and many calls of it on 10 April at 1.00 a million tokens."""
    await april.on(at(4, 1))
    first, other = await price(april, "dated", "1", 1), await price(april, "other", "1", 1)
    [(model,)] = rows_of(april.url, "SELECT id FROM business_model WHERE name = 'Pay-Per-Use'")
    service = await april.do(
        "services", "create", name="At cost", key="at-cost", credits=0, service_type="Pay-As-You-Go",
        business_model_id=model, pricing={"at_cost": {"markup": str(MARKUP)}},
    )  # fmt: skip
    tenant = await april.do("tenants", "create", name="Main")
    owner, when, cost = tenant["organization_id"], at(4, 10), TOKENS * 1_000
    kinds = ["input"] + [kind for kind in KINDS if kind != "input"]
    statement = FILL.format(kinds=", ".join(kinds), zeros=", ".join([str(TOKENS), *["0"] * (len(kinds) - 1)]))
    values = [
        CALLS, owner, when, MARKUP * cost, service["id"], tenant["id"],
        when, owner, tenant["id"], service["id"], TOKENS, cost, first, other,
    ]  # fmt: skip
    assert len(rows_of(april.url, statement, values)) == CALLS
    return {"owner": owner, "first": first, "other": other}


async def test_all_of_many_calls_are_rated_in_the_end(april: April) -> None:
    made = await used(april)
    await april.on(at(4, 20))
    dearer = await price(april, "dated", "1.5", 5)
    count = "SELECT count(*) FROM rerating WHERE price_id = %s"
    [(at_once,)] = rows_of(april.url, count, [dearer])
    about = CALLS - CALLS // 3
    assert 0 < at_once < about
    # Another one comes before the first is done: what that one had left is rated by the one in force.
    cheaper = await price(april, "dated", "0.5", 6)
    rating = april.loop("rating")
    while await rating.turn():
        pass
    left = "SELECT count(*) FROM rerating_left"
    assert rows_of(april.url, left) == [(0,)]
    assert rows_of(april.url, count, [cheaper]) == [(about,)]
    told = "SELECT price_id, count(*), min(cost), max(cost), sum(rerated) FROM call GROUP BY 1 ORDER BY 1"
    assert rows_of(april.url, told) == [
        (made["other"], CALLS // 3, TOKENS * 1_000, TOKENS * 1_000, 0),
        (cheaper, about, TOKENS * 500, TOKENS * 500, Decimal(-about * TOKENS * 500)),
    ]
    # The counters hear of each call's difference: at last half of what it was charged.
    moved = "SELECT sum((payload->>'units')::bigint)::bigint FROM control_write WHERE verb = 'amend'"
    assert rows_of(april.url, moved) == [(about * MARKUP * TOKENS * 500,)]


async def test_a_price_for_days_to_come_leaves_nothing(april: April) -> None:
    await april.on(at(4, 1))
    await price(april, "later", "1", 20)
    assert rows_of(april.url, "SELECT count(*) FROM rerating_left") == [(0,)]
