"""Units told after they were supplied: taxed by the day of supply, and given back as they were billed."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from gateway.core.accounts.outbox import EventKind
from gateway.core.billing import events
from gateway.core.billing.money import read_tiers
from persistence.billing import charges
from tests.persistence.april import TIERS, April, april, at, invoiced, set_up
from tests.persistence.billing.test_usage_file import adds_up, of, read
from tests.persistence.scenario import broken, document, rows_of

__all__ = ["april"]

IN_APRIL, IN_MAY = (date(2026, 4, 1), date(2026, 5, 1)), (date(2026, 5, 1), date(2026, 6, 1))
SAID = ("corrects", "reason", "supplied_on", "told_on")


@pytest.fixture
async def ids(april: April) -> dict[str, int]:
    """Taxed with a fifth in April, with a tenth from May on; no fees stand in the way."""
    await april.on(at(4, 1))
    made = await set_up(april)
    await april.do("organization-subscriptions", "cancel", made["subscription"], when="now")
    april.follow()
    await rated(april, made, "0.1", date(2026, 5, 1))
    april.account.service_id, april.account.tiers = made["rerank"], TIERS
    return made


async def rated(april: April, ids: dict[str, int], rate: str, since: date) -> None:
    here = {"organization_id": ids["organization"]}
    await april.do("tax-rates", "create", **here, rate=Decimal(rate), effective_from=since)


def written(april: April, verb: str) -> list[tuple[str, dict[str, Any]]]:
    """What waits for the counters."""
    found: Any = april.rows(
        "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = %s"
        " RETURNING id::text, payload",
        [verb],
    )
    return list(found)


async def told(april: April, moment: datetime, units: int) -> str:
    """An event of use, as it reaches the ledger; its request."""
    event = {
        "id": str(uuid.uuid4()), "source": "test", "type": "use", "time": moment,
        "subject": f"tenant:{april.account.tenant_id}", "data": {"service": "rerank", "units": units},
    }  # fmt: skip
    await april.do("events", "create", events=[(0, event)], rejected=[])
    [(request, payload)] = written(april, "use")
    used = events.read(payload)
    april.account.consume(None, units=used.units, request_id=request, metadata=str(payload["facts"]).encode())
    april.flush()
    return request


async def amended(april: April, request: str, units: int, direction: str = "IN") -> None:
    """An amendment, as it reaches the ledger."""
    asked = {"request_id": request, "reason": "a test", "direction": direction, "units": units}
    await april.do("amendments", "create", **asked)
    account, tiers = april.account, april.account.tiers
    for write, payload in written(april, "amend"):
        account.tiers = read_tiers(bytes.fromhex(payload["tiers"]))
        account.consume(
            None, units=-payload["units"], request_id=write, kind=EventKind.ADJUST,
            metadata=document(**{name: payload[name] for name in SAID}),
        )  # fmt: skip
    account.tiers = tiers
    april.flush()


def called(april: April, units: int) -> str:
    request = str(uuid.uuid4())
    april.account.consume(None, units=units, request_id=request)
    april.flush()
    return request


def said(invoice: dict[str, Any]) -> list[tuple[str, Decimal]]:
    """Uses and taxes of an invoice, with what each comes to."""
    lines = [line for line in invoice["lines"] if line["kind"] in {"usage", "tax"}]
    return [(line["description"], Decimal(str(line["amount"]))) for line in lines]


async def test_units_told_late_have_the_tax_of_their_day_and_month(april: April, ids: dict[str, int]) -> None:
    await april.on(at(5, 10))
    called(april, 4_000)
    request = await told(april, at(4, 20), 3_000)
    # Their price is that of the month they are told in, so they cost as they did.
    await april.on(at(6, 1, 6))
    made = await invoiced(april, ids, *IN_MAY)
    due = [
        ("rerank, April 2026", Decimal("3.00")), ("rerank, May 2026", Decimal("4.00")),
        ("Tax 20 %", Decimal("0.60")), ("Tax 10 %", Decimal("0.40")),
    ]  # fmt: skip
    assert said(made) == due
    [line] = [line for line in made["lines"] if line["description"] == "rerank, April 2026"]
    assert (line["period_start"], line["period_end"]) == ("2026-04-20", "2026-04-21")
    rows = await read(april, made)
    adds_up(rows, made)
    [row] = [row for row in of(rows, "units") if row["request_id"] == request]
    assert (row["line"], row["quantity"], row["used_at"]) == ("1", "3000", "2026-04-20T12:00:00Z")
    assert await broken(april.url) == []
    # What is owed again is of the same days.
    await april.do("invoices", "void", made["id"])
    made = await invoiced(april, ids, *IN_MAY)
    assert said(made) == due
    note = await april.do("invoices", "credit-note", made["id"])
    note = await april.do("invoices", "finalize", note["id"])
    assert Decimal(str(note["total_amount"])) == Decimal("-8.00")
    assert await broken(april.url) == []


async def test_what_is_told_before_its_month_is_billed_is_on_its_invoice(
    april: April, ids: dict[str, int]
) -> None:
    await april.on(at(4, 10))
    called(april, 1_000)
    await april.on(at(5, 3))
    called(april, 4_000)
    request = await told(april, at(4, 20), 3_000)
    first = await invoiced(april, ids, *IN_APRIL)
    assert said(first) == [("rerank, April 2026", Decimal("4.00")), ("Tax 20 %", Decimal("0.80"))]
    await april.on(at(6, 1, 6))
    second = await invoiced(april, ids, *IN_MAY)
    assert said(second) == [("rerank, May 2026", Decimal("4.00")), ("Tax 10 %", Decimal("0.40"))]
    files = [await read(april, invoice) for invoice in (first, second)]
    for rows, invoice in zip(files, (first, second), strict=True):
        adds_up(rows, invoice)
    told_in = [row["request_id"] for row in of(files[0], "units")]
    assert request in told_in
    assert len(told_in) == 2
    assert len(of(files[1], "units")) == 1


@pytest.mark.parametrize("is_late", [False, True])
async def test_what_is_taken_back_has_the_tax_it_was_billed_with(
    april: April, ids: dict[str, int], is_late: bool
) -> None:
    await april.on(at(4, 10))
    request = "" if is_late else called(april, 5_000)
    if is_late:
        await april.on(at(4, 12))
        request = await told(april, at(4, 10), 5_000)
    await april.on(at(5, 2))
    assert said(await invoiced(april, ids, *IN_APRIL))[-1] == ("Tax 20 %", Decimal("1.00"))
    # From now on the day has another rate: for what is added to it, not for what was billed.
    await rated(april, ids, "0.05", date(2026, 4, 1))
    await amended(april, request, 2_000)
    await told(april, at(4, 10), 1_000)
    await april.on(at(6, 1, 6))
    made = await april.do(
        "invoices",
        "create",
        organization_id=ids["organization"],
        period_start=IN_MAY[0],
        period_end=IN_MAY[1],
    )
    taxes = {what: amount for what, amount in said(made) if what.startswith("Tax")}
    assert taxes == {"Tax 20 %": Decimal("-0.40"), "Tax 5 %": Decimal("0.05")}
    adds_up(await read(april, made), made)
    assert await broken(april.url) == []


async def test_what_is_taken_back_before_it_is_billed_leaves_no_tax(
    april: April, ids: dict[str, int]
) -> None:
    await april.on(at(4, 10))
    called(april, 5_000)
    await april.on(at(5, 2))
    await invoiced(april, ids, *IN_APRIL)
    await rated(april, ids, "0.05", date(2026, 4, 1))
    # All of it comes and goes on one day, so the day's own sum stands still: still it is charged.
    await amended(april, await told(april, at(4, 10), 3_000), 3_000)
    async with april.pool.connect() as connection:
        due = await connection.run_sync(charges.charges_due, april.now.date(), 0, 9)
    assert due == [ids["organization"]]
    await april.charge(ids["organization"])
    here = (
        "SELECT sum(quantity), sum(amount), count(*) FROM charge WHERE invoice_id IS NULL AND kind = 'usage'"
    )
    assert rows_of(april.url, here) == [(0, 0, 2)]
    await april.on(at(6, 1, 6))
    made = await april.do(
        "invoices",
        "create",
        organization_id=ids["organization"],
        period_start=IN_MAY[0],
        period_end=IN_MAY[1],
    )
    assert said(made) == []
    assert await broken(april.url) == []


async def test_what_was_charged_on_the_day_it_was_told_is_given_back_there(
    april: April, ids: dict[str, int]
) -> None:
    await april.on(at(5, 10))
    request = await told(april, at(4, 20), 3_000)
    with psycopg.connect(april.url, autocommit=True) as connection:
        connection.execute("DELETE FROM usage_told")  # as a keeper of before stored it
    await april.on(at(6, 1, 6))
    assert said(await invoiced(april, ids, *IN_MAY))[-1] == ("Tax 10 %", Decimal("0.30"))
    await rated(april, ids, "0.05", date(2026, 4, 1))
    await amended(april, request, 3_000)
    await april.on(at(7, 1, 6))
    made = await invoiced(april, ids, date(2026, 6, 1), date(2026, 7, 1))
    assert said(made) == [
        ("rerank, May 2026, given back", Decimal("-3.00")), ("Tax 10 %", Decimal("-0.30")),
    ]  # fmt: skip
    assert await broken(april.url) == []


async def test_a_keeper_of_before_leaves_what_a_new_one_puts_right(april: April, ids: dict[str, int]) -> None:
    await april.on(at(5, 10))
    await told(april, at(4, 20), 3_000)
    with psycopg.connect(april.url, autocommit=True) as connection:
        # It charges the day's sum as it is, and knows of no other.
        connection.execute("UPDATE usage_told SET quantity = 0")
    await april.charge(ids["organization"])
    with psycopg.connect(april.url, autocommit=True) as connection:
        connection.execute("UPDATE usage_told SET quantity = 3000")
    await april.on(at(6, 1, 6))
    made = await invoiced(april, ids, *IN_MAY)
    assert said(made) == [("rerank, April 2026", Decimal("3.00")), ("Tax 20 %", Decimal("0.60"))]
    assert await broken(april.url) == []
