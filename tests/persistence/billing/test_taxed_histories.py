"""Random histories under rates of tax that have dates: what each document taxes, told fact by fact.

Rates are written before and after what they are for is billed. Units are told late, taken back and added to,
before and after they are billed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.outbox import EventKind, EventNote
from gateway.core.billing import events
from gateway.core.billing.money import PriceTier, read_tiers
from gateway.core.times import ms_of
from persistence.billing import charges
from tests.connections import connected
from tests.persistence.april import TIERS, April, april, at, invoiced, opened, plan, set_up
from tests.persistence.billing.drawn import over_years, some
from tests.persistence.billing.owed import DAY, Term, days
from tests.persistence.billing.papers import to_cents
from tests.persistence.billing.test_due import customer
from tests.persistence.billing.test_usage_file import adds_up, of, read
from tests.persistence.credits import give
from tests.persistence.migrated import empty
from tests.persistence.scenario import broken, document, rows_of

BEGINS = date(2026, 4, 1)
FIRST, RATES = "0.2", ("0", "0.07", "0.19", "0.255")
# Units are dear: an amount that is taxed with another rate shows.
PRICE, UNIT_COST = Fraction("3.331"), Fraction("1.2345")
STEPS = st.one_of(
    st.tuples(st.just("units"), st.integers(1, 50)),
    st.tuples(st.just("units"), st.integers(1, 50)),
    st.tuples(st.just("late"), st.tuples(st.integers(1, 90), st.integers(1, 50))),
    st.tuples(st.just("late"), st.tuples(st.integers(1, 90), st.integers(1, 50))),
    st.tuples(st.just("back"), st.tuples(st.integers(0, 9), st.integers(1, 50))),
    st.tuples(st.just("back"), st.tuples(st.integers(0, 9), st.integers(1, 50))),
    st.tuples(st.just("more"), st.tuples(st.integers(0, 9), st.integers(1, 50))),
    st.tuples(st.just("buy"), st.integers(1, 50)),
    st.tuples(st.just("tax"), st.tuples(st.integers(-60, 60), st.sampled_from(RATES))),
    st.tuples(st.just("tax"), st.tuples(st.integers(-20, 20), st.sampled_from(RATES))),
    st.tuples(st.just("wait"), st.integers(1, 25)),
    st.tuples(st.just("wait"), st.integers(1, 25)),
    st.tuples(st.just("bill"), st.integers(-5, 40)),
    st.tuples(st.just("void"), st.integers(0, 9)),
    st.tuples(st.just("note"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.just(0)),
)


@dataclass(eq=False)
class Supply:
    """Something of a day, which document has it and with which rate; `backs` is what it takes back."""

    day: date
    amount: Fraction
    is_fee: bool = False
    paper: int | None = None
    rate: Fraction = Fraction(0)
    noted: bool = False
    backs: Supply | None = None


@dataclass(eq=False)
class Call:
    """Units of a request, as they were told."""

    request: str
    count: int
    supply: Supply


class Taxed:
    """The same steps in the database and in a list of what was supplied."""

    def __init__(self, april: Any) -> None:
        self.april, self.today, self.until = april, BEGINS, BEGINS
        self.rates: list[tuple[date, int, Fraction]] = [(date.min, 0, Fraction(FIRST))]
        self.supplies: list[Supply] = []
        self.term = Term(Fraction(30), 1, BEGINS, BEGINS, date.max)
        self.fees_until = BEGINS
        self.open: list[int] = []
        self.calls: list[Call] = []
        # What was told on a day of another one, once: so it is known which of it is billed.
        self.told: set[tuple[date, date]] = set()

    async def begin(self) -> None:
        await self._on(BEGINS)
        monthly = await plan(
            self.april, "Monthly", "30.00", 1, overage_policy="block", overage_unit_price=None
        )
        self.ids = await customer(self.april, monthly, BEGINS, None)
        await self.april.do(
            "tax-rates", "create", organization_id=self.ids["organization"], rate=Decimal(FIRST),
            effective_from=date(1970, 1, 2),
        )  # fmt: skip
        self.april.account.tiers = (PriceTier(None, Decimal("3.331")),)
        await self._on(BEGINS)

    async def units(self, count: int) -> None:
        self._use(self.today, count)

    async def late(self, how: tuple[int, int]) -> None:
        """As an event that did not pass the gateway."""
        ago, count = how
        day = self.today - ago * DAY
        facts = CallFacts(used_ms=ms_of(datetime.combine(day, time(6), UTC)), units=count)
        self._use(day, count, metadata=write_facts(facts), note=int(EventNote.LATE))

    async def back(self, how: tuple[int, int]) -> None:
        """Some of a call, or all of it."""
        if self.calls:
            call = self.calls.pop(how[0] % len(self.calls))
            count = min(how[1], call.count)
            await self._amend(call, count, "IN")
            self.supplies.append(Supply(call.supply.day, -count * PRICE, backs=call.supply))

    async def more(self, how: tuple[int, int]) -> None:
        number, count = how
        if self.calls and self._is_new(self.calls[number % len(self.calls)].supply.day):
            call = self.calls.pop(number % len(self.calls))
            await self._amend(call, count, "OUT")
            self.supplies.append(Supply(call.supply.day, count * PRICE))

    def _is_new(self, day: date) -> bool:
        """Whether nothing of a day was told today; now something is."""
        if (self.today, day) in self.told:
            return False
        self.told.add((self.today, day))
        return True

    def _use(self, day: date, count: int, **facts: Any) -> None:
        if self._is_new(day):
            request = str(uuid.uuid4())
            self.april.account.consume(None, units=count, request_id=request, **facts)
            self.april.flush()
            self.supplies.append(Supply(day, count * PRICE))
            self.calls.append(Call(request, count, self.supplies[-1]))

    async def _amend(self, call: Call, count: int, direction: str) -> None:
        """As the keeper and `settle` move what differs."""
        asked = {"request_id": call.request, "reason": "a test", "direction": direction, "units": count}
        await self.april.do("amendments", "create", **asked)
        found: Any = self.april.rows(
            "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'amend'"
            " RETURNING id::text, payload"
        )
        [(request, payload)] = found
        said = document(**{name: payload[name] for name in ("corrects", "reason", "supplied_on", "told_on")})
        units = -payload["units"]
        self.april.account.consume(
            None, units=units, request_id=request, metadata=said, kind=EventKind.ADJUST
        )
        self.april.flush()

    async def buy(self, count: int) -> None:
        give(self.april.url, self.april.account, count, unit_cost="1.2345")
        self.april.flush()
        self.supplies.append(Supply(self.today, count * UNIT_COST))

    async def tax(self, how: tuple[int, str]) -> None:
        begins, rate = self.today + how[0] * DAY, how[1]
        await self.april.do(
            "tax-rates", "create", organization_id=self.ids["organization"], rate=Decimal(rate),
            effective_from=begins,
        )  # fmt: skip
        self.rates.append((begins, len(self.rates), Fraction(rate)))

    async def wait(self, length: int) -> None:
        await self._on(self.today + length * DAY)

    async def cancel(self, _: int) -> None:
        """Days that were billed come back, those that a note gave back have done so."""
        if self.term.end <= self.today:
            return
        await self.april.do("organization-subscriptions", "cancel", self.ids["subscription"], when="now")
        self.term.end = self.today
        for fee in [each for each in self.supplies if each.is_fee and each.day >= self.today]:
            if fee.paper is None:
                self.supplies.remove(fee)
            elif not fee.noted:
                self.supplies.append(Supply(fee.day, -fee.amount, backs=fee))

    async def bill(self, ahead: int) -> None:
        until = max(self.today + ahead * DAY, self.until + DAY)
        for day in days(self.fees_until, min(until, self.term.end)):
            self.supplies.append(Supply(day, self.term.fee(day), is_fee=True))
        self.fees_until = max(self.fees_until, until)
        made = await self.april.do(
            "invoices", "create", organization_id=self.ids["organization"], period_start=self.until,
            period_end=until,
        )  # fmt: skip
        taken = [
            each
            for each in self.supplies
            if each.paper is None
            and (each.day < until or (each.backs is not None and each.backs.paper is not None))
        ]
        if not made["lines"]:
            await self.april.do("invoices", "delete", made["id"])
            assert sum(each.amount for each in taken) == 0
            return
        made = await self.april.do("invoices", "finalize", made["id"])
        for each in taken:
            origin = each.backs
            billed = origin is not None and origin.paper is not None
            each.rate = origin.rate if origin is not None and billed else self._rate(each.day)
        self._compare(made, taken)
        for each in taken:
            each.paper = made["id"]
        self.until = until
        self.open.append(made["id"])

    async def void(self, number: int) -> None:
        if not self.open:
            return
        made = self.open.pop(number % len(self.open))
        await self.april.do("invoices", "void", made)
        for each in [each for each in self.supplies if each.paper == made]:
            each.paper = None
        # What is owed again and to be given back is not owed.
        for back in [each for each in self.supplies if each.backs is not None and each.paper is None]:
            assert back.backs is not None
            if back.backs.is_fee and back.backs.paper is None:
                self.supplies.remove(back)
                self.supplies.remove(back.backs)

    async def note(self, number: int) -> None:
        if not self.open:
            return
        made = self.open[number % len(self.open)]
        mine = [each for each in self.supplies if each.paper == made]
        lost = any(each.backs is not None or (each.is_fee and each.day >= self.term.end) for each in mine)
        row = await self.april.store.get("invoices", made)
        if lost or row["kind"] != "invoice":
            return
        self.open.remove(made)
        note = await self.april.do("invoices", "credit-note", made)
        note = await self.april.do("invoices", "finalize", note["id"])
        assert note["total_amount"] == -Decimal(str(row["total_amount"]))
        for each in mine:
            each.noted = True

    def _compare(self, made: dict[str, Any], taken: list[Supply]) -> None:
        """With each rate what was supplied under it, but for a cent a line; its tax to the cent."""
        expected: defaultdict[Fraction, Fraction] = defaultdict(Fraction)
        nets: defaultdict[Fraction, Fraction] = defaultdict(Fraction)
        lines: defaultdict[Fraction, int] = defaultdict(int)
        for each in taken:
            expected[each.rate] += each.amount
        taxes: dict[Fraction, Fraction] = {}
        read = "SELECT kind, amount, tax_rate FROM invoice_line WHERE invoice_id = %s"
        for kind, amount, rate in self.april.rows(read, [made["id"]]):
            if kind == "tax":
                taxes[Fraction(str(rate))] = Fraction(str(amount))
            else:
                nets[Fraction(str(rate))] += Fraction(str(amount))
                lines[Fraction(str(rate))] += 1
        for rate in expected.keys() | nets.keys():
            assert abs(nets[rate] - expected[rate]) <= Fraction(lines[rate], 100), rate
            assert taxes.get(rate, Fraction(0)) == to_cents(rate * nets[rate])
        assert Fraction(str(made["total_amount"])) == sum(nets.values()) + sum(taxes.values())

    def _rate(self, day: date) -> Fraction:
        return max(each for each in self.rates if each[0] <= day)[2]

    async def _on(self, day: date) -> None:
        self.today = day
        await self.april.on(datetime.combine(day, time(12), UTC))


@some(4)
@given(steps=over_years(STEPS, 12, 30))
def test_usage_in_random_histories_is_taxed_with_the_rate_of_the_day_of_use(
    migrated: str, steps: list[tuple[str, Any]]
) -> None:
    asyncio.run(live(migrated, steps))


async def live(url: str, steps: list[tuple[str, Any]]) -> None:
    empty(url)
    async with opened(url, datetime.combine(BEGINS, time(12), UTC)) as made:
        taxed = Taxed(made)
        await taxed.begin()
        for what, how in steps:
            await getattr(taxed, what)(how)
        await taxed.wait(1)
        await taxed.bill(0)
        assert made.broken() == []


# --- supplied ---------------------------------------------------------------------------
# Units told after they were supplied: taxed by the day of supply, and given back as they were billed.


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


async def test_units_reported_late_are_invoiced_and_taxed_by_the_day_of_use(
    april: April, ids: dict[str, int]
) -> None:
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


async def test_units_reported_late_and_amended_to_zero_before_billing_are_not_taxed(
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


async def test_refund_of_units_taxed_by_report_day_in_an_older_version_uses_the_same_tax_rate(
    april: April, ids: dict[str, int]
) -> None:
    await april.on(at(5, 10))
    request = await told(april, at(4, 20), 3_000)
    with connected(april.url, autocommit=True) as connection:
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


async def test_upgraded_keeper_moves_late_units_to_the_day_of_use_before_invoicing(
    april: April, ids: dict[str, int]
) -> None:
    await april.on(at(5, 10))
    await told(april, at(4, 20), 3_000)
    with connected(april.url, autocommit=True) as connection:
        # It charges the day's sum as it is, and knows of no other.
        connection.execute("UPDATE usage_told SET quantity = 0")
    await april.charge(ids["organization"])
    with connected(april.url, autocommit=True) as connection:
        connection.execute("UPDATE usage_told SET quantity = 3000")
    await april.on(at(6, 1, 6))
    made = await invoiced(april, ids, *IN_MAY)
    assert said(made) == [("rerank, April 2026", Decimal("3.00")), ("Tax 20 %", Decimal("0.60"))]
