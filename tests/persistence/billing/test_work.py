"""Four times the days are four times the work: no statement that finalizes compares each row with each."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event

from gateway.admin.resources.reports import ITEMS
from gateway.core.billing.finance import ReportPeriod
from persistence.dunning import DunningSchedule
from tests.persistence.april import April, april, at, invoiced, opened, plan, service, use
from tests.persistence.billing.test_due import act, customer
from tests.persistence.billing.test_top_ups import post
from tests.persistence.migrated import empty

__all__ = ["april"]

# A few rows more cost nothing. What each is compared with each of grows sixteenfold.
TIMES, FEW = 10, 300
# So many are looked at, at least.
STATEMENTS = 20
# PostgreSQL's own look-up of a referenced key: on a table of five rows it may read all of them.
OF_KEYS = "SELECT 1 FROM ONLY"


def rows_in(node: Mapping[str, Any]) -> int:
    """Rows that a plan had in hand, those it threw away as well."""
    removed = sum(int(count) for name, count in node.items() if name.startswith("Rows Removed"))
    own = int(node["Actual Rows"]) + removed
    return own * int(node["Actual Loops"]) + sum(map(rows_in, node.get("Plans", ())))


@asynccontextmanager
async def watched(april: April) -> AsyncIterator[Counter[str]]:
    """The rows of each statement within, by its text, those in functions too."""
    work = Counter[str]()

    def told(notice: Any) -> None:
        if "plan:" in notice.message_primary:
            said = json.loads(notice.message_primary.partition("plan:")[2])
            if not said["Query Text"].startswith(OF_KEYS):
                work[said["Query Text"]] += rows_in(said["Plan"])

    def connected(connection: Any, *_: object) -> None:
        connection.driver_connection.add_notice_handler(told)
        cursor = connection.cursor()
        cursor.execute("LOAD 'auto_explain'")
        more = {"min_duration": "0", "analyze": "on", "timing": "off", "format": "json", "level": "notice"}
        for name, value in (more | {"nested_statements": "on"}).items():
            cursor.execute(f"SET auto_explain.log_{name} = {value}")
        cursor.close()
        connection.commit()  # else a first use that only reads takes it back

    event.listen(april.pool.sync_engine, "connect", connected)
    await april.pool.dispose()  # a test before left it with connections
    try:
        yield work
    finally:
        event.remove(april.pool.sync_engine, "connect", connected)
        await april.pool.dispose()


@pytest.fixture
async def work(april: April) -> AsyncIterator[Counter[str]]:
    async with watched(april) as rows:
        yield rows


async def test_database_work_of_a_credit_note_is_not_quadratic_in_the_credited_days(
    april: April, work: Counter[str]
) -> None:
    done = []
    small = await plan(april, "Small", "10.00", 1_000)
    large = await plan(april, "Large", "100.00", 1_000)
    for interval in ("quarterly", "annual"):
        await april.on(at(4, 1, 1, 2027 if done else 2026))
        terms = {"billing": "advance", "billing_interval": interval}
        ids = await customer(april, large, april.now.date(), None, **terms)
        of = {"organization_id": ids["organization"], "source": "subscription_segment"}
        made = await april.do("invoices", "create", **of)
        billed = await april.do("invoices", "finalize", made["id"])
        analyze(april)
        await april.on(at(4, 3, 1, april.now.year))
        await act(april, ids, "change", plan_id=small, when="now")
        made = await april.do("invoices", "create", **of)
        work.clear()
        note = await april.do("invoices", "finalize", made["id"])
        assert (note["kind"], [each["number"] for each in note["corrects"]]) == (
            "credit_note",
            [billed["number"]],
        )
        done.append(work.copy())
    quarter, year = done
    assert len(year) > STATEMENTS
    grown = {said: (quarter[said], rows) for said, rows in year.items() if rows > quarter[said] * TIMES + FEW}
    assert not grown


DOCUMENTS = """
WITH made AS (
    INSERT INTO invoice (organization_id, kind, status, number, currency, period_start, period_end,
                         total_amount, finalized_at, due_date, payment_status)
    SELECT {of}, k.kind, 'finalized', concat_ws('-', {of}, k.kind, n), 'USD', '2026-03-01', '2026-04-01',
           k.amount, '2026-04-01', k.due_date, k.status
      FROM generate_series(1, {count}) AS n,
           LATERAL (VALUES ('invoice', 2, '2026-04-15'::date, 'open'), ('credit_note', -2, NULL, NULL))
             AS k (kind, amount, due_date, status) RETURNING id)
SELECT count(*) FROM made"""

CHARGES = """
WITH made AS (
    INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount,
                        currency, source, source_id, reason, fact)
    SELECT %s, 'usage', '2020-04-01', '2020-04-02', 1, 1, 1, 'USD', 'usage_tier', n, 'fact', 'x:' || n
      FROM generate_series(1, 5000) AS n RETURNING id)
SELECT count(*) FROM made"""


async def test_database_work_of_applying_credit_is_not_quadratic_in_the_credit_notes(
    april: April, work: Counter[str]
) -> None:
    """Whatever is due is given credit, dunned, reported; a document becomes final; one is void."""
    april.is_sound = False  # its rows are made by hand
    done = []
    starter = await plan(april, "Starter", "10.00", 1_000)
    # Of somebody else there is more: a small table is read from its first to its last row.
    ids = await customer(april, starter, at(4, 1).date(), None)
    april.rows(DOCUMENTS.format(of=ids["organization"], count=5_000))
    april.rows(CHARGES, [ids["organization"]])
    await april.on(at(5, 2, 1))
    await april.dun()
    for count in (250, 1_000):
        await april.on(at(4, 1, 1))
        ids = await customer(april, starter, april.now.date(), None)
        april.rows(DOCUMENTS.format(of=ids["organization"], count=count))
        april.rows("ANALYZE")
        await april.on(at(5, 2, 1))
        work.clear()
        await april.dun(DunningSchedule((3,), 10))
        applied = "SELECT count(*) FROM note_application WHERE organization_id = %s"
        assert april.rows(applied, [ids["organization"]]) == [(count,)]
        april.rows("ANALYZE")
        made = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
        await april.do("invoices", "void", made["id"])
        for report in ("receivables", "unbilled", "balances"):
            await april.store.report(
                report, ReportPeriod(april.now, organization_id=ids["organization"]), 0, 9
            )
        done.append(work.copy())
    few, many = done
    assert len(many) > STATEMENTS
    # Ten rows a document: each compared with each were a million.
    grown = {said: (few[said], rows) for said, rows in many.items() if rows > few[said] * TIMES + 10_000}
    assert not grown


CREDITS = """
WITH bill AS (
    INSERT INTO invoice (organization_id, kind, status, number, currency, period_start, period_end,
                         total_amount, finalized_at, due_date, payment_status)
    SELECT {of}, 'invoice', 'finalized', concat_ws('-', 'credits', {of}, n), 'USD', '2026-03-01',
           '2026-04-01', 90, '2026-04-01', '2026-04-15', 'open' FROM generate_series(1, {count}) AS n
    RETURNING id
), addition AS (
    INSERT INTO credit_addition (organization_id, credits_added, spent, category, unit_cost, invoicing,
                                 invoice_id, control_write_id)
    SELECT {of}, 90, 30, 'paid', 1, k, CASE k WHEN 'prepaid' THEN id END, gen_random_uuid()
      FROM bill, (VALUES ('next'), ('prepaid')) AS kinds (k) RETURNING id, invoice_id
), paid AS (
    INSERT INTO payment (organization_id, invoice_id, amount, currency, reference, created_at)
    SELECT {of}, id, 1, 'USD', n::text, '2026-04-05' FROM bill, generate_series(1, 3) AS n
), drawn AS (
    INSERT INTO credit_drawdown (organization_id, credit_addition_id, kind, day, credits)
    SELECT {of}, id, 'use', date '2026-04-05' + n, 3 FROM addition, generate_series(1, 10) AS n
)
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, fact, created_at)
SELECT {of}, 'credits_purchased', '2026-04-01', '2026-04-02', 90, 1, 90, 'USD', 'credit_addition', id, 'fact',
       'addition:' || id, '2026-04-01' FROM addition RETURNING id"""


async def test_database_work_of_revenue_reports_is_not_quadratic_in_the_credit_purchases(
    april: April, work: Counter[str]
) -> None:
    april.is_sound = False  # its rows are made by hand
    done = []
    starter = await plan(april, "Starter", "10.00", 1_000)
    ids = await customer(april, starter, at(4, 1).date(), None)
    april.rows(CREDITS.format(of=ids["organization"], count=1_000))
    for count in (50, 200):
        ids = await customer(april, starter, at(4, 1).date(), None)
        april.rows(CREDITS.format(of=ids["organization"], count=count))
        analyze(april)
        asked = ReportPeriod(at(5, 1, 0), at(4, 1, 0), ids["organization"])
        work.clear()
        for report in ("revenue", "deferred-revenue"):
            await april.store.report(report, asked, 0, 9)
        legs = [leg async for batch in april.store.entries(asked) for leg in batch]
        assert len({leg["entry_id"] for leg in legs if leg["source"] == "use"}) == 20 * count
        done.append(work.copy())
    few, many = done
    grown = {said: (few[said], rows) for said, rows in many.items() if rows > few[said] * TIMES + 10_000}
    assert many
    assert not grown


# Days of an organization, and charges a day: its fee, what is off it, units, credits beyond the balance.
DAYS, A_DAY = 625, 4
TODAY = date(2036, 1, 1)


async def lived(april: April, days: int) -> dict[str, int]:
    """An organization that used something each day, and of which nothing is charged that is no fee."""
    begins = april.now
    await april.on(begins)
    starter = await plan(april, f"Starter {days}", "30.00", 1_000)
    rerank = await service(april, f"rerank-{days}", "Pay-Per-Use")
    ids = await customer(april, starter, begins.date(), None, discount_rate=Decimal("0.1"))
    terms: dict[str, object] = {"credit_limit": 10**9, "credit_unit_cost": Decimal("0.02")}
    await april.do("organizations", "change", ids["organization"], **terms)
    for day in range(days):
        april.account.at_ms = int((begins + timedelta(days=day)).timestamp() * 1000)
        use(april.account, rerank, units=3, credits_=2)
        if day % 200 == 0:
            april.flush()
    april.flush()
    return ids


def analyze(april: April) -> None:
    """What PostgreSQL does by itself once rows have come."""
    april.rows("ANALYZE")


async def everything(april: April, ids: dict[str, int], days: int) -> None:
    """What is billed, paid, given back, reported and ended of an organization."""
    begins, owner = TODAY - timedelta(days=days), ids["organization"]
    await april.on(datetime.combine(TODAY, time(1), UTC))
    await april.allocate()
    await april.store.unbilled(owner)
    await april.charge(owner)
    analyze(april)
    # The second half alone at first, so that a note and the rest meet documents.
    for until in (begins + timedelta(days=days // 2), TODAY):
        start = until - timedelta(days=300)
        made = await april.do(
            "invoices", "create", organization_id=owner, period_start=start, period_end=until
        )
        billed = await april.do("invoices", "finalize", made["id"])
        analyze(april)
    await april.do("invoices", "payments", billed["id"], amount=Decimal("1.00"), reference=f"first {days}")
    note = await april.do("invoices", "credit-note", made["id"])
    note = await april.do("invoices", "finalize", note["id"])
    analyze(april)
    await april.do("invoices", "void", note["id"])
    await april.do("organization-subscriptions", "terms", ids["subscription"], **{"from": begins}, quantity=2)
    await april.do(
        "credit-additions", "create", organization_id=owner, credits_added=days, category="promotional"
    )
    post(april)
    await april.allocate()
    await april.charge(owner)
    await april.store.unbilled(owner)
    now = april.now
    asked = ReportPeriod(now, now - timedelta(days=2 * days), owner)
    for report in ITEMS.keys() - {"ledger"}:
        await april.store.report(report, asked, 0, 100_000)
    async for _ in april.store.entries(asked):
        pass
    async for _ in april.store.usage(billed["id"]):
        pass
    await april.dun(DunningSchedule((3, 10), 20))
    await act(april, ids, "cancel", when="now")
    await april.charge(owner)


async def work_of(url: str, days: int) -> Counter[str]:
    empty(url)
    async with opened(url, datetime.combine(TODAY - timedelta(days=days), time(12), UTC)) as april:
        async with watched(april) as work:
            ids = await lived(april, days)
            work.clear()
            await everything(april, ids, days)
        [(charges,)] = april.rows("SELECT count(*) FROM charge WHERE reason = 'fact'")
        assert int(str(charges)) >= A_DAY * days
        return work


def test_database_work_of_billing_and_reports_is_not_quadratic_in_the_charges(migrated: str) -> None:
    """Of one organization alone with 2,500 charges, and of one with 10,000."""
    few, many = (asyncio.run(work_of(migrated, days)) for days in (DAYS, 4 * DAYS))
    assert len(many) > 3 * STATEMENTS
    grown = {said: (few[said], rows) for said, rows in many.items() if rows > few[said] * TIMES + FEW}
    assert not grown
