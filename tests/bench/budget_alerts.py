"""What it takes to look at budgets for news: many accounts, a part of them over a threshold.

The embedded PostgreSQL, filled with budgets of a month and with everybody's accounts, also of months
before. Prints a line of JSON for each number of accounts: milliseconds of a look that finds nothing
new, and of a forecast.
Usage: python -m tests.bench.budget_alerts [--accounts 1000 10000 100000] [--months 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence import engine
from persistence.keeper import news
from persistence.schema import migrate
from tests.bench.flush import postgres

NOW = datetime(2026, 11, 20, 13, tzinfo=UTC)
ROUNDS = 7
# A tenth of the accounts are budgets of their own, the others are everybody's of a hundred budgets.
FILL = (
    "INSERT INTO organization (name, currency) SELECT 'o' || n, 'EUR' FROM generate_series(1, 100) AS n",
    "INSERT INTO webhook (url, secret) VALUES ('https://example.com/', 's')",
    """INSERT INTO budget (organization_id, name, unit, amount, "interval", each, created_at)
       SELECT 1 + n % 100, 'b' || n, 'money', 100, 'month', CASE WHEN n < 100 THEN 'user' END, '2020-01-01'
         FROM generate_series(0, 99 + {accounts} / 10) AS n""",
    """INSERT INTO budget_use (budget_id, start, value, used)
       SELECT b.id, start, CASE WHEN each IS NULL THEN '' ELSE 'u' || n END,
              (20000000000 + (b.id * 7919 + n * 104729) % 79 * 1000000000)::bigint
         FROM budget AS b,
              generate_series('2026-11-01Z'::timestamptz - interval '{months} months', '2026-11-01Z',
                              '1 month') AS start,
              generate_series(1, {accounts} * 9 / 1000) AS n WHERE each IS NOT NULL OR n = 1""",
    "ANALYZE",
)


def main() -> int:
    """Measure each number of accounts in a database of its own."""
    parser = argparse.ArgumentParser(prog="told")
    parser.add_argument("--accounts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--months", type=int, default=3)
    options = parser.parse_args()
    for accounts in options.accounts:
        with postgres() as url:
            migrate.upgrade(url)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SET timezone TO 'UTC'")
                for statement in FILL:
                    connection.execute(statement.format(accounts=accounts, months=options.months))
            print(json.dumps(asyncio.run(_measure(url, accounts))), flush=True)
    return 0


async def _measure(url: str, accounts: int) -> dict[str, object]:
    pool = engine.create(url)
    try:
        first = await _milliseconds(news.reached_budgets, pool, NOW)
        await news.foresee_budgets(pool, NOW)
        looks = [await _milliseconds(news.reached_budgets, pool, NOW) for _ in range(ROUNDS)]
        minutes = [NOW + timedelta(minutes=minute) for minute in range(1, ROUNDS + 1)]
        forecasts = [await _milliseconds(news.foresee_budgets, pool, minute) for minute in minutes]
    finally:
        await pool.dispose()
    return {
        "accounts": accounts,
        "first_look_ms": round(first),
        "look_ms": round(statistics.median(looks), 1),
        "forecast_ms": round(statistics.median(forecasts), 1),
    }


async def _milliseconds(
    look: Callable[[AsyncEngine, datetime], Awaitable[None]], pool: AsyncEngine, now: datetime
) -> float:
    began = time.perf_counter()
    await look(pool, now)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    raise SystemExit(main())
