"""Organizations with months of use and their charges, as the schedule finds them."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from decimal import Decimal

import psycopg

from gateway.background.verifying.verifier import Verifier
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Row
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from persistence import engine
from persistence.keeper.verification import LedgerReader
from persistence.store import Store

ACTOR = Actor("builtin:admin", "admin")
YEAR = 2026
UNIT_DAYS = 10
# The first organization, as often as there are to be organizations.
COPY = """
INSERT INTO {table} OVERRIDING SYSTEM VALUE
SELECT (jsonb_populate_record(of, jsonb_build_object({ids}))).*
  FROM {table} AS of, generate_series(2, {count}) AS n"""
COPIED = {
    "organization": "'id', n, 'name', 'Organization ' || n",
    "tenant": "'id', n, 'organization_id', n",
    "tenant_quota": "'tenant_id', n",
    "organization_subscription": "'id', n, 'organization_id', n",
    "subscription_segment": "'id', n, 'organization_id', n",
}
# What happened in each month, for every organization; and what the hourly loop had charged of it.
HAPPENED = (
    """
INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at, epoch,
                          seq, cycle)
SELECT o, 'reset', CASE m WHEN 1 THEN 1000000 ELSE 0 END, 1000000, 'IN', make_date({year}, m, 1), 1, m, m
  FROM generate_series(1, {count}) AS o, generate_series(1, {months}) AS m""",
    """
UPDATE tenant_quota SET total = 1000000, tokens_remaining = 1000000, last_seq = {months}, cycle = {months},
       epoch = 1, next_reset_at = '2999-01-01'""",
    """
INSERT INTO usage_daily (organization_id, tenant_id, service_id, day, requests, usage_amount)
SELECT o, o, 1, make_date({year}, m, d), 1, 100
  FROM generate_series(1, {count}) AS o, generate_series(1, {months}) AS m,
       generate_series(1, {days}) AS d""",
    """
INSERT INTO usage_tier (organization_id, tenant_id, service_id, day, unit_price, first_unit, quantity,
                        charged_quantity, charges)
SELECT organization_id, tenant_id, service_id, day, 0.001, 0, 100, 100, 1 FROM usage_daily""",
    """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, reason, fact, tenant_id, service_id, place)
SELECT organization_id, 'usage', day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC',
       100, 0.001, 0.1, 'USD', 'usage_tier', 'fact',
       format('units:%s:%s:%s:%s:0', tenant_id, day, service_id, unit_price), tenant_id, service_id, 0
  FROM usage_tier""",
    """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, fact)
SELECT o, 'subscription', day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC',
       1, fee, fee, 'USD', 'subscription_segment', o, 'fact', format('segment:%s:%s:0', o, day)
  FROM generate_series(1, {count}) AS o, (
       SELECT day, part(d + 1, whole) - part(d, whole) AS fee
         FROM generate_series(1, {months}) AS m, LATERAL (
              SELECT make_date({year}, m, 1) AS first, extract(
                         day FROM make_date({year}, m, 1) + interval '1 month - 1 day')::int AS whole) AS w,
              LATERAL generate_series(0, whole - 1) AS d,
              LATERAL (SELECT first + d AS day) AS on_) AS days""",
    "UPDATE subscription_segment SET charged_until = make_date({year}, {months}, 1) + interval '1 month'",
    "ANALYZE",
)
PART = """
CREATE FUNCTION pg_temp.part(days int, whole int) RETURNS numeric LANGUAGE sql IMMUTABLE AS
$$ SELECT div(2 * {cost} * 1000000000::numeric * days + whole, 2 * whole) / 1000000000 $$"""
COST = 29


async def fill(url: str, redis_url: str, organizations: int, months: int) -> None:
    """Make organizations with some months of use in a migrated, empty database; bring the counters to it."""
    pool, wire = engine.create(url), RedisConnection(parse_url(redis_url), time.monotonic)
    await wire.open()
    try:
        await _first(Store(pool, partition_of, lambda: datetime(YEAR, 1, 1, tzinfo=UTC)))
        _copy(url, organizations, months)
        await Verifier(LedgerReader(pool, partition_of), KeeperCounters(wire)).verify()
    finally:
        await wire.close()
        await pool.dispose()


async def _first(store: Store) -> None:
    async def do(resource: str, verb: str, **values: object) -> Row:
        done = await store.write(Command(resource, verb, ACTOR, "bench", lambda _: {}, None, values))
        assert isinstance(done, CommittedWrite)
        return done.row

    plan = await do(
        "token-plans", "create", name="Plan", total_amount=1_000_000, overage_policy="bill",
        overage_unit_price=Decimal("0.000003"), reset_interval="monthly",
    )  # fmt: skip
    offer = await do(
        "subscription-plans", "create", name="Pro", monthly_cost=Decimal(COST),
        annual_cost=Decimal(COST) * 10, feature_access=[], token_plan_id=plan["id"],
    )  # fmt: skip
    await do("organizations", "create", name="Organization 1", tax_rate=Decimal("0.2"))
    await do("tenants", "create", name="Main", organization_id=1)
    await do(
        "organization-subscriptions", "create", organization_id=1, plan_id=offer["id"],
        start_date=date(YEAR, 1, 1), end_date=None, billing_interval="monthly",
    )  # fmt: skip


def _copy(url: str, organizations: int, months: int) -> None:
    of = {"count": organizations, "months": months, "year": YEAR, "days": UNIT_DAYS, "cost": COST}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE control_write SET state = 'applied'")
        connection.execute(PART.format(**of))  # type: ignore[arg-type]  # SQL of our own
        connection.execute("SET search_path = public, pg_temp")
        for table, ids in COPIED.items():
            connection.execute(COPY.format(table=table, ids=ids, **of))  # type: ignore[arg-type]  # SQL of our own
        for statement in HAPPENED:
            connection.execute(statement.replace("part(", "pg_temp.part(").format(**of))  # type: ignore[arg-type]  # SQL of our own
