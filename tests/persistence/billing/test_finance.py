"""Reports for finance against a calculation of its own, over random histories of documents and payments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st
from psycopg.rows import dict_row

from gateway.background.timed.top_ups import TopUps
from gateway.core.billing.finance import Asked, tax_by_month
from tests.persistence.april import TIERS, April, april, at, invoiced, plan, service
from tests.persistence.billing.drawn import some
from tests.persistence.billing.test_top_ups import own_invoice, post
from tests.persistence.credits import give, post_expiries
from tests.persistence.migrated import empty
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]

MONTHS = [date(2026, month, 1) for month in range(4, 10)]
CENT = Decimal("0.01")
STEPS = st.lists(
    st.tuples(st.sampled_from(("pay", "reverse", "note", "void", "give up", "use")), st.integers(0, 99)),
    max_size=5,
)


def moment(day: date, hour: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def following(month: date) -> date:
    return (month + timedelta(days=32)).replace(day=1)


@dataclass
class Books:
    """What happened, noted as it was asked for: amounts are those that people were told."""

    april: April
    organization: int = 0
    # Finals: when, when void, total, whom a note corrects, the day it is due, lines.
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)
    # When, of which document, how much.
    payments: list[tuple[datetime, int, Decimal]] = field(default_factory=list)
    given_up: dict[int, datetime] = field(default_factory=dict)

    async def finalize(self, made: dict[str, Any]) -> None:
        done = await self.april.do("invoices", "finalize", made["id"])
        self.documents[done["id"]] = {**done, "at": self.april.now, "void_at": None}

    def stands(self, document: int, until: datetime) -> Decimal | None:
        """What is left to pay of an invoice; None where there is none then."""
        one = self.documents[document]
        if not (one["at"] < until and (one["void_at"] is None or one["void_at"] >= until)):
            return None
        notes = (
            each["total_amount"]
            for each in self.documents.values()
            if each["corrects_id"] == document and self.stands(each["id"], until) is not None
        )
        paid = (amount for at, of, amount in self.payments if of == document and at < until)
        return Decimal(one["total_amount"]) + sum(map(Decimal, notes), Decimal(0)) - sum(paid, Decimal(0))

    def aged(self, day: date) -> dict[str, Decimal]:
        """Receivables at the end of a day, one by one."""
        until, found = moment(day + timedelta(days=1)), defaultdict[str, Decimal](Decimal)
        for number, one in self.documents.items():
            rest = self.stands(number, until)
            if one["corrects_id"] is not None or not rest:
                continue
            if rest < 0:
                found["to_pay_back"] -= rest
            elif number in self.given_up and self.given_up[number] < until:
                found["uncollectible"] += rest
                continue
            else:
                late = 0 if one["due_date"] is None else (day - one["due_date"]).days
                name = "open" if late <= 0 else "overdue_over_90"
                for least, most in ((1, 30), (31, 60), (61, 90)):
                    if least <= late <= most:
                        name = f"overdue_{least}_{most}"
                found[name] += rest
            found["total"] += rest
        return {name: amount for name, amount in found.items() if amount}


async def begin(april: April, billing: str | None) -> tuple[Books, int]:
    """An organization with a plan of 30.10 a month, 7 % tax, tiers; its term begins on 11 April."""
    empty(april.url)
    await april.on(moment(date(2026, 4, 1), 1))
    offered = await plan(april, "Plan", "30.10", 1_000_000)
    tiers = [{"up_to": tier.up_to, "unit_price": str(tier.unit_price)} for tier in TIERS]
    rerank = await service(april, "rerank", "Pay-Per-Use", pricing={"tiers": tiers})
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal("0.07"), due_days=14)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    await april.do(
        "organization-subscriptions", "create", organization_id=made["id"], plan_id=offered,
        start_date=date(2026, 4, 11), end_date=date(2027, 4, 11), billing_interval="quarterly",
        **({} if billing is None else {"billing": billing}),
    )  # fmt: skip
    return Books(april, made["id"]), rerank


def dated(april: April, known: int) -> int:
    """Have charges from then on been made now: the database has a clock of its own. Answers the last one."""
    with psycopg.connect(april.url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE charge SET created_at = %s WHERE id > %s", (april.now, known))
        found = connection.execute("SELECT coalesce(max(id), 0) FROM charge").fetchone()
    assert found is not None
    return int(found[0])


async def step(books: Books, what: str, number: int, rerank: int) -> None:
    """One thing a person does, where it can be done."""
    april, now = books.april, books.april.now
    if what == "use":
        april.account.service_id, april.account.tiers = rerank, TIERS
        april.account.consume(None, units=137 * number + 1)
        april.flush()
        return
    until = now + timedelta(microseconds=1)
    invoices = [
        each for each, one in books.documents.items()
        if one["kind"] == "invoice" and books.stands(each, until) is not None
    ]  # fmt: skip
    if not invoices:
        return
    chosen = invoices[number % len(invoices)]
    rest = books.stands(chosen, until) or Decimal(0)
    paid = sum((amount for _, of, amount in books.payments if of == chosen), Decimal(0))
    noted = any(one["corrects_id"] == chosen and one["void_at"] is None for one in books.documents.values())
    if what == "pay" and rest > 0:
        amount = max(CENT, (rest * (number + 1) / 100).quantize(CENT, ROUND_HALF_UP))
        await april.do("invoices", "payments", chosen, amount=amount, reference=f"r{len(books.payments)}")
        books.payments.append((now, chosen, amount))
    elif what == "reverse" and paid > 0:
        with psycopg.connect(april.url) as connection:
            found = connection.execute(
                "SELECT p.id, p.amount FROM payment AS p WHERE p.invoice_id = %s AND p.amount > 0"
                " AND NOT EXISTS (SELECT FROM payment AS b WHERE b.corrects_id = p.id)"
                " ORDER BY id LIMIT 1", (chosen,)
            ).fetchone()  # fmt: skip
        if found is not None:
            await april.do("payments", "reverse", found[0], reference=f"r{len(books.payments)}")
            books.payments.append((now, chosen, -found[1]))
    elif what == "note" and not noted:
        lines = [line for line in books.documents[chosen]["lines"] if Decimal(line["amount"]) > 1]
        if lines and lines[0]["kind"] != "tax":
            asked = [{"position": lines[0]["position"], "amount": Decimal("0.37")}]
            await books.finalize(await april.do("invoices", "credit-note", chosen, lines=asked))
    elif what == "void" and not noted and not paid:
        await april.do("invoices", "void", chosen)
        books.documents[chosen]["void_at"] = now
    elif what == "give up" and rest > 0 and chosen not in books.given_up:
        await april.do("invoices", "uncollectible", chosen)
        books.given_up[chosen] = now


async def live(april: April, billing: str | None, steps: Sequence[Sequence[tuple[str, int]]]) -> Books:
    """Months in which an invoice becomes final on the second day, and things happen from the fifth on."""
    books, rerank = await begin(april, billing)
    known = 0
    for month, wanted in zip(MONTHS, steps, strict=True):
        await april.on(moment(month + timedelta(days=1), 3))
        await april.store.charge(books.organization)
        known = dated(april, known)
        previous = (month - timedelta(days=1)).replace(day=1)
        drafted = await april.do(
            "invoices", "create", organization_id=books.organization, period_start=previous, period_end=month
        )
        if drafted["lines"]:
            await books.finalize(drafted)
        else:
            await april.do("invoices", "delete", drafted["id"])
        known = dated(april, known)
        if month.month == 5:
            give(april.url, april.account, 1_000, unit_cost="0.0123")
            april.flush()
            known = dated(april, known)
        for place, (what, number) in enumerate(wanted):
            await april.on(moment(month + timedelta(days=4 + 3 * place), 3))
            await step(books, what, number, rerank)
            known = dated(april, known)
    return books


async def legs(april: April, first: date, last: date) -> list[dict[str, Any]]:
    asked = Asked(moment(following(last)), moment(first))
    return [row async for batch in april.store.entries(asked) for row in batch]


def add_up(rows: Sequence[dict[str, Any]], name: str) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(Decimal)
    for row in rows:
        found[row[name]] += row["amount"]
    return {key: amount for key, amount in found.items() if amount}


@some(3)
@given(st.sampled_from((None, "advance", "arrears")), st.tuples(*(STEPS for _ in MONTHS)))
async def test_reports_are_what_happened(
    april: April, billing: str | None, steps: tuple[list[tuple[str, int]], ...]
) -> None:
    books = await live(april, billing, steps)
    assert await broken(april.url) == []
    store, last = april.store, MONTHS[-1]
    closed = {month: await legs(april, month, month) for month in MONTHS[:-1]}
    whole = await legs(april, date(2026, 1, 1), last)
    # Each entry's debits are its credits, and a month's too; names are for ever.
    assert not add_up(whole, "entry_id")
    assert all(not add_up(rows, "currency") for rows in closed.values())
    for month, rows in closed.items():
        assert [row for row in whole if month <= row["at"].date() < following(month)] == rows

    end = moment(following(last))
    for day in (date(2026, 5, 20), date(2026, 7, 31), following(last) - timedelta(days=1)):
        rows = await store.report("receivables", Asked(moment(day + timedelta(days=1))), 0, 9)
        told = {name: rows[0][name] for name in rows[0] if rows[0][name] and name in COUNTED} if rows else {}
        assert told == books.aged(day)
        # The ledger's account says the same.
        upto = [row for row in whole if row["at"].date() <= day and row["account"] == "receivables"]
        assert add_up(upto, "account").get("receivables", 0) == told.get("total", 0) + standing(books, day)

    with psycopg.connect(april.url, row_factory=dict_row) as connection:
        charges = connection.execute("SELECT * FROM charge").fetchall()
    unbilled = sum((each["amount"] for each in charges if each["invoice_id"] is None), Decimal(0))
    assert add_up(whole, "account").get("unbilled", 0) == unbilled
    earned: dict[Any, Decimal] = defaultdict(Decimal)
    for each in charges:
        earned[max(each["created_at"], each["period_start"]).date().replace(day=1)] += each["amount"]
    rows = await store.report("revenue", Asked(end, moment(date(2026, 1, 1))), 0, 999)
    assert add_up(rows, "month") == {
        month: amount for month, amount in earned.items() if amount and month <= last
    }  # fmt: skip
    for day in (date(2026, 5, 20), date(2026, 8, 31)):
        rows = await store.report("deferred-revenue", Asked(moment(day + timedelta(days=1))), 0, 999)
        assert add_up(rows, "month") == ahead(books, charges, day)
    for by in ("document", "supply"):
        asked = Asked(moment(date(2027, 6, 1)), moment(date(2026, 1, 1)), by=by)
        rows = await store.report("taxes", asked, 0, 999)
        net, tax = taxed(books)
        assert (sum(row["net"] for row in rows), sum(row["tax"] for row in rows)) == (net, tax)
        assert {row["rate"] for row in rows if row["tax"]} <= {Decimal("0.07")}


COUNTED = {
    "open", "overdue_1_30", "overdue_31_60", "overdue_61_90", "overdue_over_90", "to_pay_back",
    "uncollectible", "total",
}  # fmt: skip


def standing(books: Books, day: date) -> Decimal:
    """Behind giving up, everything goes to bad debt: what is to be paid back of such invoices too."""
    until = moment(day + timedelta(days=1))
    rests = (books.stands(each, until) for each, at in books.given_up.items() if at < until)
    return sum((-rest for rest in rests if rest is not None and rest < 0), Decimal(0))


def ahead(books: Books, charges: Sequence[dict[str, Any]], day: date) -> dict[date | None, Decimal]:
    """What was billed by then for supply behind it, by month; of credits all, since none are used here."""
    until, found = moment(day + timedelta(days=1)), defaultdict[date | None, Decimal](Decimal)
    for each in charges:
        one, are_credits = books.documents.get(each["invoice_id"]), each["kind"] == "credits_purchased"
        if one is not None and (each["period_start"] >= until or are_credits):
            came = one["void_at"] if each["reason"] in {"void", "credit_void"} else one["at"]
            if came < until:
                month = None if are_credits else each["period_start"].date().replace(day=1)
                found[month] += each["amount"]
    return {month: amount for month, amount in found.items() if amount}


def taxed(books: Books) -> tuple[Decimal, Decimal]:
    """Net and tax of all documents: what was made void came and went."""
    net = tax = Decimal(0)
    for one in books.documents.values():
        if one["void_at"] is None:
            for line in one["lines"]:
                amount = Decimal(line["amount"])
                net, tax = (net, tax + amount) if line["kind"] == "tax" else (net + amount, tax)
    return net, tax


@given(
    st.integers(-10_000, 10_000),
    st.dictionaries(st.sampled_from(MONTHS), st.integers(-9_999, 9_999).map(Decimal), min_size=1),
)
def test_tax_in_months_adds_up(tax: int, nets: dict[date, Decimal]) -> None:
    found = tax_by_month(Decimal(tax) / 100, nets, "USD")
    assert sum(found.values()) == Decimal(tax) / 100
    assert found.keys() == nets.keys()
    assert all(part == part.quantize(CENT) for part in found.values())


async def left_of_credits(april: April, day: date) -> Decimal:
    """Credits that were sold and not used by the end of a day, as the report has them."""
    rows = await april.store.report("deferred-revenue", Asked(moment(day + timedelta(days=1))), 0, 999)
    assert {(row["month"], row["kind"]) for row in rows} <= {(None, "credits_purchased")}
    return sum((row["amount"] for row in rows), Decimal(0))


async def test_credits_are_deferred_until_they_are_used_or_expire(april: April) -> None:
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal(0))
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    days = [date(2026, 4, day) for day in (1, 5, 10, 15, 20, 25)]

    async def on(day: int) -> None:
        await april.allocate()
        await april.on(at(4, day))

    async def bill(first: int, last: int) -> dict[str, Any]:
        ids = {"organization": made["id"]}
        return await invoiced(april, ids, date(2026, 4, first), date(2026, 4, last + 1))

    await on(1)
    ends = int(at(4, 20, 0).timestamp() * 1000)
    give(april.url, april.account, 1_000, unit_cost="0.01", expires_ms=ends)
    give(april.url, april.account, 500, category="promotional", priority=900)
    april.flush()
    await bill(1, 1)
    await on(5)
    april.account.consume(None, credits_=300)
    april.flush()
    await on(10)
    give(april.url, april.account, 200, unit_cost="0.02")
    april.account.consume(None, credits_=100)
    april.flush()
    second = await bill(2, 12)
    await on(15)
    april.account.consume(None, credits_=200)
    april.flush()
    await on(20)
    for expired in await april.allocations.expired(april.account.at_ms, 10):
        assert await april.allocations.expire(expired, april.account.partition, april.account.credit_seq)
    assert post_expiries(april.url, april.account) == 400
    april.flush()
    await on(25)
    april.account.consume(None, credits_=150)
    april.flush()
    await april.allocate()
    # Of the first 1,000 at 0.01: 1,000, 700, 600, 400, none. Of 200 at 0.02: all, and fifty in the end.
    expected = ["10.00", "7.00", "10.00", "8.00", "4.00", "1.00"]
    assert [await left_of_credits(april, day) for day in days] == [Decimal(each) for each in expected]
    # In the end it is what is left of the additions, at what they cost.
    sums = "SELECT sum((credits_added - spent) * unit_cost) FROM credit_addition WHERE category = 'paid'"
    assert [(await left_of_credits(april, days[-1]),)] == rows_of(april.url, sums)
    assert await broken(april.url) == []
    # What a note gives back is deferred no more.
    note = await april.do("invoices", "credit-note", second["id"])
    await april.do("invoices", "finalize", note["id"])
    assert await left_of_credits(april, days[-1]) == 0


async def test_credits_that_wait_for_their_payment_are_deferred_as_they_are_paid(april: April) -> None:
    """10,000 at 0.01 and 20 % tax: 120.00 are asked for, and nobody has to pay them."""
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal("0.20"))
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)

    async def left(day: int) -> Decimal:
        await april.allocate()
        return await left_of_credits(april, date(2026, 4, day))

    async def pay(day: int, amount: str) -> None:
        await april.on(at(4, day))
        await april.do("invoices", "payments", invoice["id"], amount=Decimal(amount), reference=f"r{day}")

    await april.on(at(4, 1))
    sold = await april.do(
        "credit-additions", "create", organization_id=made["id"], invoicing="prepaid", credits_added=10_000,
        unit_cost=Decimal("0.01"),
    )  # fmt: skip
    assert await TopUps(april.store).turn() == 1
    invoice = await own_invoice(april, sold)
    assert await left(1) == 0
    await pay(3, "30.00")
    assert (await left(2), await left(3)) == (0, 25)
    # A note over 20.00 and its tax leaves 96.00 to ask for: 30.00 are five sixteenths of 80.00.
    await april.on(at(4, 5))
    asked = [{"position": 1, "amount": Decimal("20.00")}]
    note = await april.do("invoices", "credit-note", invoice["id"], lines=asked)
    await april.do("invoices", "finalize", note["id"])
    assert (await left(4), await left(5)) == (25, 25)
    await pay(7, "66.00")
    assert (await left(6), await left(7)) == (25, 80)
    await april.on(at(4, 8))
    assert post(april) == 10_000
    await april.on(at(4, 9))
    april.account.consume(None, credits_=2_500)
    april.flush()
    assert await left(9) == 60
    # Once the credits are there they are owed, whoever takes money back.
    await april.on(at(4, 11))
    [(payment,)] = rows_of(april.url, "SELECT id FROM payment WHERE reference = 'r7'")
    await april.do("payments", "reverse", int(str(payment)), reference="back")
    assert await left(11) == 60
    assert [await left(day) for day in (1, 3, 5, 7)] == [0, 25, 25, 80]
    assert await broken(april.url) == []


async def test_what_is_given_up_and_paid_in_one_moment_is_the_same_in_report_and_ledger(april: April) -> None:
    books, _ = await begin(april, None)
    await april.on(moment(date(2026, 5, 2), 3))
    await april.store.charge(books.organization)
    dated(april, 0)
    period = {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1)}
    drafted = await april.do("invoices", "create", organization_id=books.organization, **period)
    await books.finalize(drafted)
    total = Decimal(books.documents[drafted["id"]]["total_amount"])
    await april.on(moment(date(2026, 5, 9), 3))
    await april.do("invoices", "payments", drafted["id"], amount=Decimal(1), reference="first")
    await april.do("invoices", "uncollectible", drafted["id"])
    given_up = april.now
    await april.on(moment(date(2026, 5, 20), 3))
    await april.do("invoices", "payments", drafted["id"], amount=Decimal(2), reference="late")
    for until, open_, lost in (
        (given_up, total, 0),
        (given_up + timedelta(microseconds=1), 0, total - 1),
        (april.now + timedelta(microseconds=1), 0, total - 3),
    ):
        [row] = await april.store.report("receivables", Asked(until), 0, 10)
        assert (row["open"] + row["overdue_1_30"], row["uncollectible"]) == (open_, lost)
        asked = Asked(until, moment(date(2026, 1, 1)))
        legs = [leg async for batch in april.store.entries(asked) for leg in batch]
        balances = add_up(legs, "account")
        assert (balances.get("receivables", 0), balances.get("bad_debt", 0)) == (open_, lost)
