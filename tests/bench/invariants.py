"""Seconds of the invariants over 24 months of 2,400,000 movements.

A thousand organizations with a tenant each; every month is as large as the others, the last one is open. Half
of the movements are of tokens, the others of credits and of spend. The middle of the rounds is printed.
Usage: python -m tests.bench.invariants [--organizations N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from datetime import date
from statistics import median
from typing import Any

import psycopg

from persistence import engine as engines
from persistence.ledger.checkpoints import INVARIANTS, Checkpoints
from persistence.schema import migrate
from tests.bench.flush import postgres

ORGANIZATIONS, MONTHS, A_PAGE = 1_000, 24, 100
# Of an account in a month: 100 movements together.
TOKENS, CREDITS, SPENDS = 50, 25, 25
FIRST = "2024-12-01"
OPEN = date(2026, 11, 1)

_FILLED = (
    """
INSERT INTO organization (id, name, credit_balance, credit_last_seq, spend_last_seq, spent, spend_month)
       OVERRIDING SYSTEM VALUE
SELECT o, 'Organization ' || o, 1000000 - 3 * {months} * {credits}, {months} * {credits} + 1,
       {months} * {spends}, 5 * {spends}, date '{first}' + ({months} - 1) * interval '1 month'
  FROM generate_series(1, {organizations}) AS o""",
    """
INSERT INTO tenant (id, organization_id, name) OVERRIDING SYSTEM VALUE
SELECT id, id, 'Main' FROM organization""",
    """
INSERT INTO tenant_quota (tenant_id, total, tokens_remaining, tokens_used, last_seq, cycle, epoch)
SELECT id, 1000000, 1000000 - 7 * ({tokens} - 1), 7 * ({tokens} - 1), {months} * {tokens}, {months}, 1
  FROM tenant""",
    """
INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at, epoch,
       seq, cycle, request_id, service_id)
SELECT o, CASE WHEN first THEN 'reset' ELSE 'consume' END,
       CASE WHEN n = 0 THEN 1000000 WHEN first THEN 7 * ({tokens} - 1) ELSE 7 END,
       1000000 - n % {tokens} * 7, CASE WHEN first THEN 'IN' ELSE 'OUT' END, {token_at}, 1, n + 1,
       n / {tokens} + 1, CASE WHEN NOT first THEN {token_id} END,
       CASE WHEN NOT first THEN 1 END
  FROM {token_n}, LATERAL (SELECT n % {tokens} = 0 AS first) AS f""",
    """
INSERT INTO credit_posting (organization_id, kind, amount, balance_after, created_at, epoch, seq)
SELECT id, 'addition', 1000000, 1000000, timestamptz '{first}Z', 1, 1 FROM organization""",
    """
INSERT INTO credit_transaction (organization_id, tenant_id, credits_used, balance_after, "timestamp", epoch,
       seq, request_id, feature_id)
SELECT o, o, 3, 1000000 - 3 * (n + 1), {credit_at}, 1, n + 2, {credit_id}, 2
  FROM {credit_n}""",
    """
INSERT INTO feature_usage (organization_id, tenant_id, usage_amount, spend, spent_after, "timestamp", epoch,
       seq, request_id, feature_id)
SELECT o, o, 1, 5, 5 * (n % {spends} + 1), {spend_at}, 1, n + 1, {spend_id}, 3
  FROM {spend_n}""",
    """
INSERT INTO usage_daily (organization_id, tenant_id, day, service_id, requests, tokens, credits, usage_amount)
SELECT tenant_id, tenant_id, (at AT TIME ZONE 'UTC')::date, service_id, count(*), sum(tokens),
       sum(credits), sum(units)
  FROM (SELECT tenant_id, created_at AS at, service_id, amount AS tokens, 0 AS credits, 0 AS units
          FROM token_ledger WHERE transaction_type = 'consume'
        UNION ALL SELECT tenant_id, "timestamp", feature_id, 0, credits_used, 0 FROM credit_transaction
        UNION ALL SELECT tenant_id, "timestamp", feature_id, 0, 0, usage_amount FROM feature_usage) AS m
 GROUP BY 1, 2, 3, 4""",
    """
INSERT INTO usage_tier (organization_id, tenant_id, day, service_id, unit_price, first_unit, quantity)
SELECT organization_id, tenant_id, day, service_id, 0, 0, usage_amount
  FROM usage_daily WHERE usage_amount <> 0""",
    """
INSERT INTO credit_addition (organization_id, credits_added, spent, "timestamp")
SELECT id, 1000000, 3 * {months} * {credits}, timestamptz '{first}Z' FROM organization""",
    """
INSERT INTO credit_allocation (organization_id, seq, credit_addition_id, amount)
SELECT organization_id, seq, a.id, 3
  FROM credit_transaction JOIN credit_addition AS a USING (organization_id)""",
    "UPDATE organization SET allocated_seq = credit_last_seq",
    "VACUUM ANALYZE",
)


def fill(url: str, organizations: int, months: int = MONTHS) -> None:
    """Fill a migrated, empty database."""
    at = f"timestamptz '{FIRST}Z' + n / {{a}} * interval '1 month' + n % {{a}} * interval '9 hours'"
    numbers = f"generate_series(1, {organizations}) AS o, generate_series(0, {months} * {{a}} - 1) AS n"
    names: dict[str, object] = {"organizations": organizations, "months": months, "first": FIRST}
    for one, a_month in {"token": TOKENS, "credit": CREDITS, "spend": SPENDS}.items():
        names[f"{one}s"] = a_month
        # As a gateway makes them: ordered by time.
        ms = f"lpad(to_hex((extract(epoch FROM {at.format(a=a_month)}) * 1000)::bigint), 12, '0')"
        names[f"{one}_id"] = f"({ms} || '7' || substr(md5('{one}' || o || ' ' || n), 14))::uuid"
        names |= {f"{one}_at": at.format(a=a_month), f"{one}_n": numbers.format(a=a_month)}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SELECT ensure_partitions('{FIRST}Z', {months})")
        for statement in _FILLED:
            connection.execute(statement.format(**names))  # type: ignore[arg-type]  # SQL of our own


async def close(url: str) -> None:
    """Close all months, as a keeper does."""
    pool = engines.create(url)
    checkpoints, after = Checkpoints(pool), 0
    while page := await checkpoints.after(after, A_PAGE):
        await checkpoints.close_months(page, OPEN)
        after = page[-1]
    await pool.dispose()


def seconds(connection: psycopg.Connection[Any], view: str) -> float:
    """What asking a view takes; nothing may contradict itself."""
    begun = time.perf_counter()
    assert connection.execute(f"TABLE {view}".encode()).fetchall() == []
    return time.perf_counter() - begun


def main() -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="invariants")
    parser.add_argument("--organizations", type=int, default=ORGANIZATIONS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with postgres() as url:
        migrate.upgrade(url)
        fill(url, options.organizations)
        asyncio.run(close(url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE account_checkpoint")
            found = {
                name: median(seconds(connection, f"invariant_{name}") for _ in range(options.rounds))
                for name in INVARIANTS
            }
    for name, took in {**found, "all": sum(found.values())}.items():
        print(f"{name:16}{took:9.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
