"""Milliseconds of reports of usage: 10,000,000 calls of an organization in 30 days, 1,000 users, 20 models.

PostgreSQL makes the calls and adds them up by hour; the other spans are made by the statement of the flush.
Reports are asked over the Admin API: every grouping by every interval, for 30 days that begin and end within
months. Prints a table, slowest first: wall time, which another load of the machine makes longer, and the
processor time of keeper, client and PostgreSQL together, which it hardly does.
Usage: python -m tests.bench.usage [--calls N] [--rounds N] [--url URL of a filled database]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import combinations

import psycopg
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin.application import build
from gateway.core.accounts.usage import GROUPS
from persistence import engine as engines
from persistence.ledger import rollup
from persistence.schema import migrate
from tests.admin.conftest import ADMIN, MemoryCounters, ports_over
from tests.bench.console import BUDGET_MS, Measured, given, measured
from tests.bench.flush import postgres

CALLS, DAYS, USERS, MODELS, TENANTS, KEYS, PROJECTS, SERVICES = 10_000_000, 30, 1_000, 20, 10, 50, 40, 4
# 2026-10-13, a Tuesday: no whole month, and neither end is a week's.
FIRST_DAY = "2026-10-13"
SPAN = "from=2026-10-13T00:00:00Z&to=2026-11-12T00:00:00Z"
INTERVALS = ("none", "day", "hour", "month")

FILL = (
    """INSERT INTO organization (name) SELECT 'Acme'""",
    f"""INSERT INTO tenant (organization_id, name) SELECT o.id, 'Team ' || n
  FROM generate_series(1, {TENANTS}) AS n, organization AS o""",
    f"""INSERT INTO app_user (organization_id, external_id) SELECT o.id, 'user-' || n
  FROM generate_series(1, {USERS}) AS n, organization AS o""",
    f"""INSERT INTO api_key (tenant_id, name, digest, prefix)
SELECT 1 + n % {TENANTS}, 'key ' || n, encode(sha256(n::text::bytea), 'hex'), 'tk_abcde'
  FROM generate_series(1, {KEYS}) AS n""",
    # Each user is of one tenant, with a key of it and two projects; each model is of one service.
    f"""CREATE TEMP TABLE hours AS
SELECT 1::bigint AS organization_id, timestamptz '{FIRST_DAY}Z' + hour * interval '1 hour' AS start,
       (1 + person % {TENANTS})::bigint AS tenant_id, (1 + person % {KEYS})::bigint AS api_key_id,
       (1 + person)::bigint AS user_id, ((person + other) % {PROJECTS})::bigint AS project_id,
       (1 + model % {SERVICES})::bigint AS service_id, 'vendor/model-' || model AS model, 'USD' AS currency,
       count(*) AS requests, 0::bigint AS refused, sum(size) AS input, sum(size / 3) AS cache_read,
       sum(size / 9) AS cache_write, sum(size / 30) AS cache_write_1h,
       sum(size / 5) AS output, sum(size / 20) AS reasoning,
       sum(size + size / 3 + size / 9 + size / 5) AS tokens, 0::bigint AS credits, count(*) AS units,
       sum(size * (1 + model) * 1000) AS cost, 0::bigint AS estimated, 0::bigint AS unpriced
  FROM (SELECT n::bigint * 24 * {DAYS} / {{calls}} AS hour,
               mod(hashint8(n)::bigint + 2147483648, {USERS}) AS person,
               mod(hashint8(n + 1)::bigint + 2147483648, {MODELS}) AS model,
               mod(hashint8(n + 2)::bigint + 2147483648, 2) AS other,
               100 + mod(hashint8(n + 3)::bigint + 2147483648, 4000) AS size
          FROM generate_series(0, {{calls}} - 1) AS n) AS calls
 GROUP BY hour, person, model, other""",
    rollup.ADD_HOURS,
    "VACUUM ANALYZE",
)


def fill(url: str, calls: int = CALLS) -> None:
    """Fill a migrated database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET work_mem = '256MB'")
        connection.execute(f"SELECT ensure_partitions('{FIRST_DAY}Z', 2)")
        for statement in FILL:
            connection.execute(statement.replace("{calls}", str(calls)))  # type: ignore[arg-type]  # SQL of our own


def reports() -> list[str]:
    """Every grouping, by every interval."""
    every = [",".join(groups) for count in range(len(GROUPS) + 1) for groups in combinations(GROUPS, count)]
    return [
        f"interval={interval}" + (f"&group_by={groups}" if groups else "")
        for interval in INTERVALS
        for groups in every
    ]


async def measure(url: str, rounds: int, asked: Sequence[str]) -> list[Measured]:
    """What each of these reports takes."""
    engine = engines.create(url)
    found = []
    async with TestClient(TestServer(build(ports_over(engine, MemoryCounters(url))))) as client:
        for report in asked:

            async def ask(_: int, report: str = report) -> int:
                answer = await client.get(
                    f"/admin/v1/usage?{SPAN}&{report}", headers={"Authorization": f"Bearer {ADMIN}"}
                )
                body = await answer.read()
                assert answer.status == 200, (report, body[:500])
                return len(body)

            found.append(await measured(report, url, rounds, ask))
    await engine.dispose()
    return found


def main() -> int:
    """Fill, measure, print; 1 if a report takes longer than it may at p50."""
    parser = argparse.ArgumentParser(prog="usage")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="a database that is filled already")
    options = parser.parse_args()
    with given(options.url) if options.url else postgres() as url:
        if not options.url:
            migrate.upgrade(url)
            started = time.perf_counter()
            fill(url, options.calls)
            print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        found = asyncio.run(measure(url, options.rounds, reports()))
    print(f"{'report':72}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms':>9}{'kB':>7}")
    for each in sorted(found, key=lambda each: -each.p50):
        print(f"{each.name:72}{each.p50:9.1f}{each.p95:9.1f}{each.cpu:9.1f}{each.size / 1000:7.0f}")
    return int(any(each.p50 > BUDGET_MS for each in found))


if __name__ == "__main__":
    sys.exit(main())
