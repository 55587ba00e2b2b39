"""Seconds from a month of requests to a finalized invoice and its PDF, at the embedded PostgreSQL's settings.

Every request is a row of the token ledger; a third of them also used credits, a third units. Comparing
the accounts with the counters, as finalizing does first, is measured as the ledger's side of it.
Prints one line of JSON. Usage: python -m tests.bench.invoicing [--requests N] [--page PAGE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Row
from gateway.counters.redis.keys import partition_of
from gateway.features.documents.renderer import InvoiceRenderer
from persistence import engine
from persistence.keeper.verification import Accounts
from persistence.schema import migrate
from persistence.store import Store
from tests.bench.flush import postgres
from tests.bench.page import PAGE, publish
from tests.letterhead import LETTERHEAD

ACTOR = Actor("builtin:admin", "admin")
TENANTS = 5
NOW = datetime(2026, 5, 1, 6, tzinfo=UTC)
FILL = (
    """
INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at,
                          epoch, seq, cycle, request_id, service_id)
SELECT 1 + n % {tenants}, 'consume', 10, 1000000 - 10 * (1 + n / {tenants}), 'OUT',
       timestamptz '2026-04-01T00:00:00Z' + n * interval '30 days' / {requests},
       1, 2 + n / {tenants}, 1, gen_random_uuid(), 1 + n % 3
  FROM generate_series(0, {requests} - 1) AS n""",
    """
INSERT INTO credit_transaction (organization_id, tenant_id, feature_id, "timestamp", credits_used,
                                balance_after, epoch, seq, request_id)
SELECT 1, 1, 1, timestamptz '2026-04-01T00:00:00Z' + n * interval '90 days' / {requests}, 2,
       -2 * (n + 1), 1, n + 1, gen_random_uuid() FROM generate_series(0, {requests} / 3 - 1) AS n""",
    """
INSERT INTO feature_usage (organization_id, tenant_id, feature_id, "timestamp", usage_amount, spend,
                           spent_after, epoch, seq, request_id)
SELECT 1, 1, 2, timestamptz '2026-04-01T00:00:00Z' + n * interval '90 days' / {requests}, 3, 1,
       n + 1, 1, n + 1, gen_random_uuid() FROM generate_series(0, {requests} / 3 - 1) AS n""",
    """
INSERT INTO usage_daily (organization_id, tenant_id, service_id, day, requests, credits, usage_amount)
SELECT 1, t, s, date '2026-04-01' + d, 1,
       CASE WHEN s = 1 AND t = 1 THEN 2 * ({requests} / 90) ELSE 0 END,
       CASE WHEN s = 2 AND t = 1 THEN 3 * ({requests} / 90) ELSE 0 END
  FROM generate_series(1, {tenants}) AS t, generate_series(1, 3) AS s, generate_series(0, 29) AS d""",
    """
INSERT INTO usage_tier (organization_id, tenant_id, service_id, day, unit_price, first_unit, quantity)
SELECT organization_id, tenant_id, service_id, day, 0.001, 0, usage_amount FROM usage_daily
 WHERE usage_amount > 0""",
    """
UPDATE tenant_quota SET last_seq = 1 + {requests} / {tenants},
       tokens_remaining = 1000000 - 10 * ({requests} / {tenants})""",
    "UPDATE organization SET credit_last_seq = {requests} / 3, spend_last_seq = {requests} / 3",
    "ANALYZE",
)


@dataclass
class Bench:
    """A store whose month is over."""

    store: Store
    seconds: dict[str, float]

    async def do(self, resource: str, verb: str, row_id: int | None = None, **values: Any) -> Row:
        done = await self.store.write(Command(resource, verb, ACTOR, "bench", lambda _: {}, row_id, values))
        assert isinstance(done, CommittedWrite)
        return done.row

    async def timed(self, what: str, work: Awaitable[Any]) -> Any:
        started = time.perf_counter()
        done = await work
        self.seconds[what] = round(time.perf_counter() - started, 3)
        return done


async def measure(url: str, requests: int) -> dict[str, float]:
    """Fill a migrated, empty database with a month and invoice it; seconds by step."""
    pool = engine.create(url)
    bench = Bench(Store(pool, partition_of, lambda: NOW, letterhead=LETTERHEAD), {})
    try:
        await _set_up(bench)
        _fill(url, requests)
        seqs = {"credits:1": requests // 3, "spend:1": requests // 3}
        seqs |= {f"tenant:{tenant}": 1 + requests // TENANTS for tenant in range(1, TENANTS + 1)}
        await bench.timed("compare", Accounts(pool).accounts(seqs, deep=True))
        period = {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1)}
        draft = await bench.timed("draft", bench.do("invoices", "create", organization_id=1, **period))
        await bench.timed("finalize", bench.do("invoices", "finalize", int(str(draft["id"]))))
        row = RESOURCES["invoices"].render(await bench.store.get("invoices", int(str(draft["id"]))))
        await bench.timed("pdf", asyncio.to_thread(InvoiceRenderer(LETTERHEAD).pdf, row))
        bench.seconds["invoice"] = round(sum(bench.seconds.values()), 3)
        await bench.timed("usage_csv", _count(bench, int(str(draft["id"])), row))
    finally:
        await pool.dispose()
    return bench.seconds


async def _set_up(bench: Bench) -> None:
    plan = await bench.do(
        "token-plans", "create", name="Plan", total_amount=1_000_000, overage_policy="bill",
        overage_unit_price=Decimal("0.000003"),
    )  # fmt: skip
    offer = await bench.do(
        "subscription-plans", "create", name="Pro", monthly_cost=Decimal(99), annual_cost=Decimal(990),
        feature_access=[], token_plan_id=plan["id"],
    )  # fmt: skip
    await bench.do("organizations", "create", name="Acme", tax_rate=Decimal("0.2"))
    for number in range(TENANTS):
        await bench.do("tenants", "create", name=f"t{number}", organization_id=1)
    await bench.do(
        "organization-subscriptions", "create", organization_id=1, plan_id=offer["id"],
        start_date=date(2026, 4, 1), end_date=date(2027, 4, 1), billing_interval="monthly",
    )  # fmt: skip


def _fill(url: str, requests: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        # A tenant's first row is the reset that gave it its plan.
        connection.execute(
            "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
            " created_at, epoch, seq, cycle, control_write_id) SELECT substr(account, 8)::bigint, 'reset',"
            " 1000000, 1000000, 'IN', '2026-04-01', 1, 1, 1, id FROM control_write WHERE verb = 'plan'"
        )
        for statement in FILL:
            connection.execute(statement.format(requests=requests, tenants=TENANTS))  # type: ignore[arg-type]  # SQL of our own


async def _count(bench: Bench, invoice_id: int, invoice: Row) -> int:
    rows = 0
    async for piece in bench.store.usage(invoice_id):
        rows += piece.count(b"\n")
    assert rows, invoice
    return rows


def report(requests: int, seconds: Mapping[str, float]) -> str:
    """The figures as Markdown."""
    lines = [f"| {name} | {value:.2f} |" for name, value in seconds.items()]
    return "\n".join([f"| of a month of {requests:,} requests | seconds |", "|---|---:|", *lines])


def main() -> int:
    """Fill, invoice, print."""
    parser = argparse.ArgumentParser(prog="invoicing")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    options = parser.parse_args()
    with postgres() as url:
        migrate.upgrade(url)
        seconds = asyncio.run(measure(url, options.requests))
    print(json.dumps({"requests": options.requests, "seconds": seconds}))
    if options.page:
        publish(options.page, "invoicing", report(options.requests, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
