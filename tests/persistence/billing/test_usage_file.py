"""What is behind an invoice, as a file: its amounts add up to each line, and a call's kinds to its cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.errors import NotFound
from persistence import engine
from persistence.billing.invoice_usage import InvoiceUsage
from tests.connections import connected
from tests.persistence.april import TIERS, April, april, at, invoiced, plan, set_up, use
from tests.persistence.billing.test_due import customer
from tests.persistence.billing.test_events import send
from tests.persistence.test_worked_example import live_through

__all__ = ["april"]

Line = Mapping[str, str]
IN_APRIL = (date(2026, 4, 1), date(2026, 5, 1))


async def read(april: April, invoice: Mapping[str, Any], rows_a_slice: int = 7) -> list[Line]:
    """The file of an invoice, in slices so small that there are several."""
    pool = engine.create(april.url)
    usage, today = InvoiceUsage(pool, rows_a_slice=rows_a_slice), april.now.date()
    pieces = [piece async for piece in usage.csv(invoice["id"], today)]
    await pool.dispose()
    return list(csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline="")))


def adds_up(rows: list[Line], invoice: Mapping[str, Any]) -> None:
    """Each line is what its rows come to, to the last digit; and credits are as many."""
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for row in rows:
        if row["amount"]:
            assert Fraction(row["amount"]) == Fraction(row["quantity"]) * Fraction(row["unit_price"] or 1)
            sums[row["line"]] += Fraction(row["amount"])
    for line in invoice["lines"]:
        assert sums.pop(str(line["position"]), 0) == Fraction(line["amount"]), line
        if line["kind"] == "credits_consumed":
            used = [row for row in rows if row["line"] == str(line["position"])]
            assert sum(int(row["quantity"]) for row in used) == line["quantity"]
    assert not any(sums.values())


def of(rows: list[Line], kind: str) -> list[Line]:
    return [row for row in rows if row["kind"] == kind]


async def test_usage_file_rows_add_up_to_each_invoice_line(april: April) -> None:
    ids = await set_up(april)
    await live_through(april, ids)
    here = {"organization_id": ids["organization"]}
    draft = await april.do("invoices", "create", **here, period_start=IN_APRIL[0], period_end=IN_APRIL[1])
    adds_up(await read(april, draft), draft)
    done = await april.do("invoices", "finalize", draft["id"])
    rows = await read(april, done)
    adds_up(rows, done)
    # A request that crosses a tier says what it cost in each, and what it used once.
    units = [(row["quantity"], row["unit_price"], row["line"]) for row in of(rows, "units")]
    assert units == [
        ("9999", "0.001", "6"),
        ("1", "0.001", "6"),
        ("1", "0.0008", "7"),
        ("31249", "0.0008", "7"),
    ]
    crossing = of(rows, "units")[1:3]
    assert len({row["request_id"] for row in crossing}) == 1
    assert [row["model"] for row in crossing] == ["gpt-4o", "gpt-4o"]
    # The tenant's balance tells what was beyond its plan.
    last = max(of(rows, "tokens"), key=lambda row: int(row["seq"]))
    assert (last["balance_after"], last["line"], last["tenant"]) == ("-2345678", "3", "Main")
    assert {row["service_name"] for row in of(rows, "units")} == {"rerank"}
    # Days of a fee, each for itself.
    assert len({row["period_start"] for row in of(rows, "subscription")}) == 30


async def test_usage_file_assigns_usage_to_the_invoice_line_with_the_tax_rate_of_the_day_of_use(
    april: April,
) -> None:
    ids = await set_up(april)
    for day, units in ((5, 9_000), (15, 2_000), (25, 400)):
        await april.on(at(4, day))
        use(april.account, ids["rerank"], units=units)
    april.flush()
    here = {"organization_id": ids["organization"]}
    await april.do("tax-rates", "create", **here, effective_from=date(2026, 4, 15), rate=Decimal("0.1"))
    await april.do("tax-rates", "create", **here, effective_from=date(2026, 4, 25), rate=Decimal("0.2"))
    draft = await april.do("invoices", "create", **here, period_start=IN_APRIL[0], period_end=IN_APRIL[1])
    done = await april.do("invoices", "finalize", draft["id"])
    rows = await read(april, done)
    adds_up(rows, done)
    rates = {str(line["position"]): line["tax_rate"] for line in done["lines"]}
    assert [(row["quantity"], rates[row["line"]]) for row in of(rows, "units")] == [
        ("9000", "0.2"), ("1000", "0.1"), ("1000", "0.1"), ("400", "0.2"),
    ]  # fmt: skip


# A call of 2,500 is above the first, and above a higher one; it is not above the second.
NO_TIERS = {"above": 500, "input": "98"}, {"above": 2500, "input": "99"}
TABLE = {
    "input": "2", "output": "9",
    "context_tiers": [{"above": 1000, "input": "3", "cache_read": None}, *NO_TIERS],
}  # fmt: skip
# By hand: 2,000 of input and 500 read of a cache cost the dearer prices, times a factor of a half.
LONG = (2000 * 6 + 500 * 6 + 100 * Decimal("22.5")) / 2 / 1_000_000 + Decimal("0.0005") + Decimal("0.03")
OF_TABLE = (2000 * 3 + 500 * 3 + 100 * Decimal(9)) / 1_000_000 + Decimal("0.001") + Decimal("0.03")


def thrice(cost: Decimal) -> Decimal:
    """A cost at an hour of three times the price; three searches stay 0.03."""
    return 3 * (cost - Decimal("0.03")) + Decimal("0.03")


@pytest.mark.parametrize(
    ("tier", "cost", "factor"),
    [("0.5", LONG, ""), (TABLE, OF_TABLE, ""), ("0.5", thrice(LONG), "3"), (TABLE, thrice(OF_TABLE), "3")],
)
async def test_call_cost_can_be_recomputed_from_the_row_in_the_usage_file(
    april: April, tier: Any, cost: Decimal, factor: str
) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    price = await april.do(
        "prices", "create", provider=None, model="m", match="exact", currency="USD", effective_from=at(3, 1),
        input=Decimal(3), output=Decimal(15), cache_read=Decimal("0.3"),
        context_tiers=[{"above": 1000, "input": "6", "output": "22.5", "cache_read": None}, *NO_TIERS],
        service_tiers={"batch": tier}, tools={"search": "10"}, request=Decimal("0.001"), source="operator",
    )  # fmt: skip
    facts = CallFacts(
        model="m", response_model="m-1", status=200, counts=(2000, 500, 0, 0, 100, 0, 0, 0, 0, 0), total=2600,
        units=1, tools={"search": 3}, service_tier="batch", cost=int(cost * 10**9), currency="USD",
        price_id=price["id"], hour=(1, factor) if factor else None,
    )  # fmt: skip
    account = april.account
    with connected(april.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO api_key (id, tenant_id, name, digest, prefix, limits)"
            " OVERRIDING SYSTEM VALUE VALUES (5, %s, '=key', repeat('a', 64), 'tk', '{}')",
            (account.tenant_id,),
        )
    use(account, ids["rerank"], units=3, metadata=write_facts(facts), user="@ada", attribution="7\t8\tv3")
    april.flush()
    await april.on(at(5, 1, 0))
    [row] = of(await read(april, await invoiced(april, ids, *IN_APRIL)), "units")
    told = ("input", "cache_read", "output", "cache_write", "response_model", "project_id", "user")
    assert [row[name] for name in told] == ["2000", "500", "100", "0", "m-1", "8", "'@ada"]
    assert row["price_id"] == str(price["id"])
    assert (row["api_key_id"], row["api_key"], row["cache_write_price"]) == ("5", "'=key", "")
    by_kind = sum(
        Fraction(row[kind]) * Fraction(row[f"{kind}_price"]) / 1_000_000
        for kind in ("input", "cache_read", "output")
    )
    assert row["tools"] == '{"search": 3}'
    assert row["tools_price"] == '{"search": "10"}'
    assert (
        by_kind + Fraction(row["request_price"]) + 3 * Fraction(10, 1000)
        == Fraction(row["cost"])
        == Fraction(cost)
    )


async def test_usage_files_of_other_invoices_do_not_change_when_an_invoice_is_voided_and_redone(
    april: April,
) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    use(april.account, ids["rerank"], units=10_100)
    april.flush()
    first = await invoiced(april, ids, *IN_APRIL)
    await april.on(at(5, 2))
    april.account.service_id = ids["rerank"]
    use(april.account, ids["rerank"], units=70)
    april.flush()
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    before = await read(april, may)
    adds_up(before, may)
    await april.on(at(5, 3))
    await april.do("invoices", "void", first["id"])
    assert await read(april, may) == before
    await april.on(at(5, 4))
    adds_up(await read(april, first), first)
    again = await invoiced(april, ids, *IN_APRIL)
    rows = await read(april, again)
    adds_up(rows, again)
    requests = {row["request_id"] for row in of(rows, "units")}
    assert requests == {row["request_id"] for row in of(await read(april, first), "units")}
    assert not requests & {row["request_id"] for row in of(before, "units")}


async def test_usage_file_row_of_a_refund_names_the_corrected_request_and_the_reason(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    call = april.account
    use(call, ids["rerank"], units=10_100, request_id="00000000-0000-4000-8000-000000000001")
    april.flush()
    first = await invoiced(april, ids, date(2026, 4, 1), date(2026, 4, 11))
    adds_up(await read(april, first), first)
    corrects = b'{"corrects":"00000000-0000-4000-8000-000000000001","reason":"counted twice"}'
    call.tiers = TIERS
    call.consume(None, units=-300, kind=EventKind.ADJUST, metadata=corrects)
    april.flush()
    second = await invoiced(april, ids, date(2026, 4, 11), date(2026, 5, 1))
    rows = await read(april, second)
    adds_up(rows, second)
    told = ("quantity", "amount", "corrects", "reason")
    assert [tuple(row[name] for name in told) for row in of(rows, "units")] == [
        ("-200", "-0.2", "00000000-0000-4000-8000-000000000001", "counted twice"),
        ("-100", "-0.08", "00000000-0000-4000-8000-000000000001", "counted twice"),
    ]
    note = await april.do("invoices", "credit-note", first["id"])
    adds_up(await read(april, note), note)
    done = await april.do("invoices", "finalize", note["id"])
    adds_up(await read(april, done), done)


async def test_usage_file_ignores_a_reason_sent_by_the_caller_in_metadata(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    call = april.account
    theirs = b'{"reason":"=HYPERLINK(\\"http://example.com\\",\\"given back\\")","model":"m"}'
    call.service_id = ids["rerank"]
    call.consume(7, credits_=3, units=10_100, metadata=theirs)
    april.flush()
    first = await invoiced(april, ids, *IN_APRIL)
    rows = await read(april, first)
    adds_up(rows, first)
    used = [row for row in rows if row["kind"] in {"tokens", "credits", "units"}]
    assert {row["kind"] for row in used} == {"tokens", "credits", "units"}
    assert {row["reason"] for row in used} == {""}


async def test_usage_file_lists_late_events_of_an_ended_cycle_by_event_id(april: April) -> None:
    starter = await plan(april, "Starter", "0.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(1_800_000)
    april.flush()
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    await invoiced(april, ids, *IN_APRIL)
    await april.on(at(5, 2))
    await send(april, ids["tenant"], at(4, 21), 1_200_000, "late-1")
    with connected(april.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE use_event SET created_at = %s", (april.now,))
    await april.on(at(6, 1, 6))
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    rows = await read(april, may)
    adds_up(rows, may)
    [late] = of(rows, "late_tokens")
    assert (late["quantity"], late["event_id"], late["used_at"]) == (
        "1200000",
        "late-1",
        "2026-04-21T12:00:00Z",
    )
    assert (late["tenant"], late["service_name"] != "") == ("Main", True)
    [beyond] = of(rows, "overage")
    assert (beyond["quantity"], beyond["amount"]) == ("1000000", "3")


async def test_usage_file_adds_a_row_for_the_amount_of_old_units_stored_without_a_price(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 1))
    use(april.account, ids["rerank"], units=10_100)
    april.flush()
    await april.on(at(4, 2))
    use(april.account, ids["rerank"], units=50)
    april.flush()
    with connected(april.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE feature_usage SET unit_prices = NULL")
    await april.on(at(5, 1, 0))
    made = await invoiced(april, ids, *IN_APRIL)
    rows = await read(april, made)
    adds_up(rows, made)
    # The second day had one price; of the first it is not known which units cost what.
    assert [row["amount"] for row in of(rows, "units")] == ["", "0.04"]
    assert [row["amount"] for row in of(rows, "usage")] == ["10", "0.08"]


async def test_usage_file_of_an_unknown_invoice_is_not_found(april: April) -> None:
    with pytest.raises(NotFound):
        await read(april, {"id": 77})
