"""Four times the days are four times the work: no statement that finalizes compares each row with each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Any

from sqlalchemy import event

from gateway.background.timed.dunning import Dunning
from gateway.core.billing.dunning import DunningSchedule
from gateway.core.billing.finance import Asked
from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import act, customer

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


def watched(april: April) -> Counter[str]:
    """The rows of each statement from now on, by its text, those in functions too."""
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

    event.listen(april.pool.sync_engine, "connect", connected)
    return work


async def test_a_note_over_four_times_the_days_is_four_times_the_work(april: April) -> None:
    work, done = watched(april), []
    small = await plan(april, "Small", "10.00", 1_000)
    large = await plan(april, "Large", "100.00", 1_000)
    for interval in ("quarterly", "annual"):
        await april.on(at(4, 1, 1, 2027 if done else 2026))
        terms = {"billing": "advance", "billing_interval": interval}
        ids = await customer(april, large, april.now.date(), None, **terms)
        of = {"organization_id": ids["organization"], "source": "subscription_segment"}
        made = await april.do("invoices", "create", **of)
        billed = await april.do("invoices", "finalize", made["id"])
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


async def test_credit_of_four_times_the_notes_is_four_times_the_work(april: April) -> None:
    """Whatever is due is given credit, dunned, reported; a document becomes final; one is void."""
    work, done = watched(april), []
    starter = await plan(april, "Starter", "10.00", 1_000)
    # Of somebody else there is more: a small table is read from its first to its last row.
    ids = await customer(april, starter, at(4, 1).date(), None)
    april.rows(DOCUMENTS.format(of=ids["organization"], count=5_000))
    april.rows(CHARGES, [ids["organization"]])
    await april.on(at(5, 2, 1))
    await Dunning(april.store).turn()
    for count in (250, 1_000):
        await april.on(at(4, 1, 1))
        ids = await customer(april, starter, april.now.date(), None)
        april.rows(DOCUMENTS.format(of=ids["organization"], count=count))
        april.connection.execute("ANALYZE")
        await april.on(at(5, 2, 1))
        work.clear()
        await Dunning(april.store, DunningSchedule((3,), 10)).turn()
        applied = "SELECT count(*) FROM note_application WHERE organization_id = %s"
        assert april.rows(applied, [ids["organization"]]) == [(count,)]
        april.connection.execute("ANALYZE")
        made = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
        await april.do("invoices", "void", made["id"])
        for report in ("receivables", "unbilled", "balances"):
            await april.store.report(report, Asked(april.now, organization_id=ids["organization"]), 0, 9)
        done.append(work.copy())
    few, many = done
    assert len(many) > STATEMENTS
    # Ten rows a document: each compared with each were a million.
    grown = {said: (few[said], rows) for said, rows in many.items() if rows > few[said] * TIMES + 10_000}
    assert not grown
