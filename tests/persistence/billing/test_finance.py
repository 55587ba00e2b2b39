"""Reports for finance against a calculation of its own, over random histories of documents and payments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.rows import dict_row

from gateway.core.billing.finance import ReportPeriod, tax_by_month
from gateway.core.billing.money import PriceTier
from tests.connections import connected
from tests.persistence.april import TIERS, April, april, at, invoiced, plan, service
from tests.persistence.billing.drawn import some
from tests.persistence.billing.test_due import customer
from tests.persistence.billing.test_taxed_histories import told
from tests.persistence.billing.test_top_ups import own_invoice, post
from tests.persistence.credits import give, post_expiries
from tests.persistence.migrated import empty
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]

MONTHS = [date(2026, month, 1) for month in range(9, 13)] + [date(2027, month, 1) for month in (1, 2)]
CENT, NANO = Decimal("0.01"), Decimal("0.000000001")
MONEY = ("pay", "reverse", "note", "void", "give up", "use")
CREDITS = ("buy", "expiring", "spend", "spend", "spend unseen", "take back", "expire")
STEPS = st.lists(st.tuples(st.sampled_from(MONEY + CREDITS), st.integers(0, 99)), max_size=8)


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
    # Of credits: which addition, what became of them, how many, when, and when that was known.
    drawn: list[tuple[int, str, int, datetime, datetime]] = field(default_factory=list)
    # What was said of the months before one, once those were closed.
    closed: dict[date, Any] = field(default_factory=dict)

    async def finalize(self, made: dict[str, Any]) -> None:
        done = await self.april.do("invoices", "finalize", made["id"])
        self.documents[done["id"]] = {**done, "at": self.april.now, "void_at": None}

    def stands(self, document: int, until: datetime) -> Decimal | None:
        """What is left to pay of an invoice, or open of a note (below zero); None where there is none."""
        one = self.documents[document]
        if not (one["at"] < until and (one["void_at"] is None or one["void_at"] >= until)):
            return None
        rest = Decimal(one["total_amount"])
        for came, of, amount in self.payments:
            rest -= amount if of == document and came < until else 0
        read = "SELECT created_at, note_id, invoice_id, amount FROM note_application"
        for given_at, note, invoice, amount in self.april.rows(read):
            if given_at < until:  # type: ignore[operator]  # a moment
                rest += amount * ((note == document) - (invoice == document))  # type: ignore[operator]  # decimals
        return rest

    def aged(self, day: date) -> dict[str, Decimal]:
        """Receivables at the end of a day, one by one."""
        until, found = moment(day + timedelta(days=1)), defaultdict[str, Decimal](Decimal)
        for number, one in self.documents.items():
            rest = self.stands(number, until)
            if not rest:
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
    """An organization with a plan of 30.10 a month, 7 % tax, tiers; its term begins on the 11th."""
    empty(april.url)
    await april.on(moment(MONTHS[0], 1))
    offered = await plan(april, "Plan", "30.10", 1_000_000)
    tiers = [{"up_to": tier.up_to, "unit_price": str(tier.unit_price)} for tier in TIERS]
    rerank = await service(april, "rerank", "Pay-Per-Use", pricing={"tiers": tiers})
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal("0.07"), due_days=14)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    begins = MONTHS[0] + timedelta(days=10)
    await april.do(
        "organization-subscriptions", "create", organization_id=made["id"], plan_id=offered,
        start_date=begins, end_date=begins.replace(year=2027), billing_interval="quarterly",
        **({} if billing is None else {"billing": billing}),
    )  # fmt: skip
    return Books(april, made["id"]), rerank


def dated(april: April, known: int, drawn: Sequence[tuple[int, str, int, datetime, datetime]] = ()) -> int:
    """Have charges from then on been made now: the database has a clock of its own. Answers the last one.

    What was drawn of additions is kept by that clock too.
    """
    with connected(april.url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE charge SET created_at = %s WHERE id > %s", (april.now, known))
        found = connection.execute("SELECT coalesce(max(id), 0) FROM charge").fetchone()
        rows: dict[tuple[int, str, date], int] = defaultdict(int)
        for addition, kind, amount, when, seen in drawn:
            rows[addition, kind, entered(seen, when + timedelta(microseconds=1)).date()] += amount
        if rows:
            connection.execute("DELETE FROM credit_drawdown")
        for number, ((addition, kind, day), amount) in enumerate(rows.items(), 1_000_000):
            connection.execute(
                "INSERT INTO credit_drawdown (id, organization_id, credit_addition_id, kind, day, credits)"
                " SELECT %s, organization_id, id, %s, %s, %s FROM credit_addition WHERE id = %s",
                (number, kind, day, amount, addition),
            )
    assert found is not None
    return int(found[0])


async def allocated(books: Books) -> None:
    """Bring credits together, and note what was drawn of which addition, by its movement, until now."""
    april = books.april
    [(last,)] = april.rows("SELECT coalesce(max(id), 0) FROM credit_allocation")
    await april.allocate()
    assert await broken(april.url) == []
    made = april.rows(
        "SELECT credit_addition_id, seq, amount FROM credit_allocation"
        " WHERE id > %s AND credit_addition_id IS NOT NULL ORDER BY id", [last],
    )  # fmt: skip
    moved: Any = {
        seq: (kind, at)
        for seq, kind, at in april.rows(
            """SELECT seq, 'use', "timestamp" FROM credit_transaction UNION ALL SELECT seq,
            CASE WHEN kind = 'expiry' THEN 'expiry' ELSE 'return' END, created_at FROM credit_posting"""
        )
    }
    given: Any = dict(april.rows("SELECT credit_addition_id, created_at FROM credit_posting"))
    for addition, seq, amount in made:
        kind, at = moved[seq]
        books.drawn.append((int(str(addition)), kind, int(str(amount)), max(at, given[addition]), april.now))


async def credit_step(books: Books, what: str, number: int) -> None:
    """Buy credits, use them, take some back, let them expire; what is `unseen` is allocated later."""
    april, account = books.april, books.april.account
    if what == "expire":
        await allocated(books)
        for expired in await april.allocations.expired(account.at_ms, 10):
            assert await april.allocations.expire(expired, account.partition, account.credit_seq)
        post_expiries(april.url, account)
    elif what.startswith("spend"):
        account.service_id, account.tiers = Account(0, 0).service_id, ()
        account.consume(None, credits_=7 * number + 1)
    else:
        ends = account.at_ms + 20 * 86_400_000 if what == "expiring" else None
        amount, cost = (-number - 1, "0.0123") if what == "take back" else (37 * number + 11, "0.0123")
        give(april.url, account, amount, unit_cost="0.007" if ends else cost, expires_ms=ends)
    april.flush()
    if what != "spend unseen":
        await allocated(books)


async def step(books: Books, what: str, number: int, rerank: int) -> None:
    """One thing a person does, where it can be done."""
    april, now = books.april, books.april.now
    if what in CREDITS:
        await credit_step(books, what, number)
        return
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
        with connected(april.url) as connection:
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
        for hours in (1, 27):
            await april.on(moment(month) + timedelta(hours=hours))
            await april.charge(books.organization)
            known = dated(april, known, books.drawn)
        books.closed[month] = await read_before(april, month)
        previous = (month - timedelta(days=1)).replace(day=1)
        drafted = await april.do(
            "invoices", "create", organization_id=books.organization, period_start=previous, period_end=month
        )
        if drafted["lines"]:
            await books.finalize(drafted)
        else:
            await april.do("invoices", "delete", drafted["id"])
        known = dated(april, known)
        for place, (what, number) in enumerate(wanted):
            await april.on(moment(month + timedelta(days=4 + 3 * place), 3))
            await step(books, what, number, rerank)
            known = dated(april, known, books.drawn)
    return books


async def read_before(april: April, month: date) -> Any:
    """What the books say of the months before one, once it is closed."""
    asked = ReportPeriod(moment(month), moment(date(2026, 1, 1)))
    legs = [row async for batch in april.store.entries(asked) for row in batch]
    return (
        # Which invoice has a charge is said once there is one.
        [{name: row[name] for name in row if name not in {"invoice_id", "number"}} for row in legs],
        await april.store.report("revenue", asked, 0, 999),
        await april.store.report("deferred-revenue", ReportPeriod(moment(month)), 0, 999),
    )


async def legs(april: April, first: date, last: date) -> list[dict[str, Any]]:
    asked = ReportPeriod(moment(following(last)), moment(first))
    return [row async for batch in april.store.entries(asked) for row in batch]


def add_up(rows: Sequence[dict[str, Any]], name: str) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(Decimal)
    for row in rows:
        found[row[name]] += row["amount"]
    return {key: amount for key, amount in found.items() if amount}


@some(3)
@given(st.sampled_from((None, "advance", "arrears")), st.tuples(*(STEPS for _ in MONTHS)))
async def test_finance_reports_and_ledger_of_random_histories_match_an_independent_calculation(
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
    for day in (date(2026, 10, 20), date(2026, 12, 31), following(last) - timedelta(days=1)):
        rows = await store.report("receivables", ReportPeriod(moment(day + timedelta(days=1))), 0, 9)
        owed = {name: rows[0][name] for name in rows[0] if rows[0][name] and name in COUNTED} if rows else {}
        assert owed == books.aged(day)
        # The ledger's account says the same.
        upto = [row for row in whole if row["at"].date() <= day and row["account"] == "receivables"]
        assert add_up(upto, "account").get("receivables", 0) == owed.get("total", 0) + standing(books, day)

    with connected(april.url, row_factory=dict_row) as connection:
        charges = connection.execute("SELECT * FROM charge").fetchall()
    unbilled = sum((each["amount"] for each in charges if each["invoice_id"] is None), Decimal(0))
    assert add_up(whole, "account").get("unbilled", 0) == unbilled
    for day in (*MONTHS, end.date(), MONTHS[1] + timedelta(days=6)):
        rows = await store.report("unbilled", ReportPeriod(moment(day)), 0, 999)
        upto = add_up([row for row in whole if row["at"] < moment(day)], "account")
        assert sum((row["amount"] for row in rows), Decimal(0)) == upto.get("unbilled", 0), day
    rows = await store.report("revenue", ReportPeriod(end, moment(date(2026, 1, 1))), 0, 999)
    assert {(row["month"], row["kind"]): row["amount"] for row in rows} == earned(books, charges, end)
    sold = sum((each["amount"] for each in charges if each["source"] == "credit_addition"), Decimal(0))
    for day in (MONTHS[1] + timedelta(days=19), date(2026, 12, 31), MONTHS[-1] + timedelta(days=9)):
        until = moment(day + timedelta(days=1))
        rows = await store.report("deferred-revenue", ReportPeriod(until), 0, 999)
        assert add_up(rows, "month") == ahead(books, charges, until)
        upto = add_up([row for row in whole if row["at"] < until], "account")
        of_fees = sum((row["amount"] for row in rows if row["month"]), Decimal(0))
        assert (-upto.get("deferred", Decimal(0)), -upto.get("deferred_credits", Decimal(0))) == (
            of_fees, sum((row["amount"] for row in rows if not row["month"]), Decimal(0)),
        )  # fmt: skip
        # The reports may be added: what was earned or is deferred is on documents, or unbilled.
        revenue = await store.report("revenue", ReportPeriod(until, moment(date(2026, 1, 1))), 0, 999)
        open_ = await store.report("unbilled", ReportPeriod(until), 0, 999)
        assert sum(row["amount"] for row in open_) == upto.get("unbilled", 0)
        assert sum(row["amount"] for row in (*revenue, *rows)) == (
            upto.get("unbilled", 0) + upto.get("rounding", 0) + net_of(books, until)
        )
    # What credits have earned and what is deferred of them is what they were sold for.
    credits_ = {"deferred_credits", "revenue_credits_used", "revenue_credits_expired"}
    of_credits = add_up(whole, "account")
    assert -sum(of_credits.get(name, 0) for name in (*credits_, "revenue_credits_purchased")) == sold
    # Closed months were then what they are now.
    for month, said in books.closed.items():
        assert await read_before(april, month) == said
    for by in ("document", "supply"):
        asked = ReportPeriod(moment(date(2027, 12, 1)), moment(date(2026, 1, 1)), by=by)
        rows = await store.report("taxes", asked, 0, 999)
        net, tax = taxed(books)
        assert (sum(row["net"] for row in rows), sum(row["tax"] for row in rows)) == (net, tax)
        assert {row["rate"] for row in rows if row["tax"]} <= {Decimal("0.07")}


COUNTED = {
    "open", "overdue_1_30", "overdue_31_60", "overdue_61_90", "overdue_over_90", "to_pay_back",
    "uncollectible", "total",
}  # fmt: skip


def standing(books: Books, day: date) -> Decimal:
    """Behind giving up, everything goes to bad debt: open credit of notes over such invoices too."""
    until, never = moment(day + timedelta(days=1)), datetime.max.replace(tzinfo=UTC)
    notes = (
        books.stands(number, until) for number, one in books.documents.items()
        if books.given_up.get(one["corrects_id"], never) < one["at"]
    )  # fmt: skip
    return -sum((rest for rest in notes if rest is not None), Decimal(0))


def entered(known: datetime, ends: datetime) -> datetime:
    """When something is in the books that ended: late is what came a day behind the end of its month."""
    if known < ends:
        return known
    last = ends - timedelta(microseconds=1)
    closes = moment(following(last.date().replace(day=1))) + timedelta(days=1)
    return last if known < closes else known


def facts(charges: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charges but for those that an invoice made void turned round and owed again."""
    return [each for each in charges if each["reason"] not in {"void", "reissued"}]


def sold_at(books: Books, charges: Sequence[dict[str, Any]]) -> dict[int, list[tuple[datetime, str, Any]]]:
    """What happened to each addition: charged with how much, and by the day drawn by how many credits."""
    found = defaultdict[int, list[tuple[datetime, str, Any]]](list)
    for each in facts(charges):
        if each["source"] == "credit_addition":
            at = each["created_at"]
            if each["reason"] == "fact":
                at = entered(at, each["period_end"])
            found[each["source_id"]].append((at, "charge", each["amount"]))
    days: dict[tuple[int, datetime, str], int] = defaultdict(int)
    for addition, kind, amount, when, seen in books.drawn:
        day = entered(seen, when + timedelta(microseconds=1)).date()
        days[addition, moment(day + timedelta(days=1)) - timedelta(microseconds=1), kind] += amount
    for (addition, at, kind), amount in days.items():
        found[addition].append((at, kind, amount))
    return {addition: sorted(moves, key=lambda one: one[:2]) for addition, moves in found.items()}


def deferred_of(added: int, moves: Sequence[tuple[datetime, str, Any]]) -> Decimal:
    """What is left of an addition's price behind all of this."""
    price = sum((Fraction(amount) for _, what, amount in moves if what == "charge"), Fraction(0))
    left = added - sum(amount for _, what, amount in moves if what != "charge")
    nano = price * left / added * 10**9
    halves = int(abs(nano) * 2)  # half up, on either side
    return Decimal((halves + 1) // 2 * (1 if nano > 0 else -1)) * NANO


def earned(
    books: Books, charges: Sequence[dict[str, Any]], until: datetime
) -> dict[tuple[date, str], Decimal]:
    """What each month earned, by kind, of all that is in the books before a moment."""
    found: dict[tuple[date, str], Decimal] = defaultdict(Decimal)
    for each in facts(charges):
        if each["source"] == "credit_addition":
            continue
        is_ahead = each["created_at"] < each["period_start"]
        at = each["period_end"] - timedelta(microseconds=1) if is_ahead else entered(
            each["created_at"], each["period_end"]
        )  # fmt: skip
        if at < until:
            found[at.date().replace(day=1), each["kind"]] += each["amount"]
    kinds = {"use": "credits_used", "expiry": "credits_expired"}
    added: Any = dict(books.april.rows("SELECT id, credits_added FROM credit_addition"))
    for addition, moves in sold_at(books, charges).items():
        before = Decimal(0)
        for number, (at, what, amount) in enumerate(moves):
            left = deferred_of(added[addition], moves[: number + 1]) if added[addition] > 0 else Decimal(0)
            came = amount if what == "charge" else Decimal(0)
            if at < until:
                kind = kinds.get(what, "credits_purchased")
                found[at.date().replace(day=1), kind] += came - (left - before)
            before = left
    return {place: amount for place, amount in found.items() if amount}


def ahead(books: Books, charges: Sequence[dict[str, Any]], until: datetime) -> dict[date | None, Decimal]:
    """What was charged by then for supply behind it, by month, and of credits what is left of them."""
    found = defaultdict[date | None, Decimal](Decimal)
    for each in facts(charges):
        is_known = each["created_at"] < min(until, each["period_start"])
        if each["source"] != "credit_addition" and is_known and each["period_end"] > until:
            found[each["period_start"].date().replace(day=1)] += each["amount"]
    added: Any = dict(books.april.rows("SELECT id, credits_added FROM credit_addition"))
    for addition, moves in sold_at(books, charges).items():
        if added[addition] > 0:
            found[None] += deferred_of(added[addition], [one for one in moves if one[0] < until])
    return {month: amount for month, amount in found.items() if amount}


def net_of(books: Books, until: datetime) -> Decimal:
    """What documents that were in force then came to before tax."""
    return sum(
        (
            Decimal(line["amount"])
            for each, one in books.documents.items()
            if books.stands(each, until) is not None
            for line in one["lines"]
            if line["kind"] != "tax"
        ),
        Decimal(0),
    )


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
def test_tax_split_by_month_adds_up_to_the_total_tax(tax: int, nets: dict[date, Decimal]) -> None:
    found = tax_by_month(Decimal(tax) / 100, nets, "USD")
    assert sum(found.values()) == Decimal(tax) / 100
    assert found.keys() == nets.keys()
    assert all(part == part.quantize(CENT) for part in found.values())


@pytest.mark.parametrize("month", [date(2026, 7, 1), date(2026, 12, 1)])
async def test_usage_reported_within_a_day_of_month_end_is_revenue_of_the_month_of_use(
    april: April, month: date
) -> None:
    """30.00 a month with 100 tokens, 1.00 beyond them, 0.50 a unit; some of all on the last evening."""
    after = following(month)
    await april.on(moment(month, 1))
    offered = await plan(april, "Plan", "30.00", 100, overage_unit_price=Decimal(1))
    ids = await customer(april, offered, month, None)
    await april.on(moment(month, 2))
    tiers = (PriceTier(None, Decimal("0.5")),)
    flat = {"tiers": [{"up_to": None, "unit_price": "0.5"}]}
    april.account.service_id = await service(april, "rerank", "Pay-Per-Use", pricing=flat)
    april.account.tiers = tiers
    april.account.consume(140, units=10)
    april.flush()
    known = 0
    for when, units in ((moment(after) - timedelta(hours=4), 100), (moment(after, 1), 0)):
        await april.on(when)
        if units:
            april.account.consume(None, units=units)
        else:
            april.account.reset()
        april.flush()
        await april.charge(ids["organization"])
        known = dated(april, known)

    async def earned_in(first: date) -> dict[str, Decimal]:
        asked = ReportPeriod(moment(following(first)), moment(first))
        rows = await april.store.report("revenue", asked, 0, 9)
        return {row["kind"]: row["amount"] for row in rows}

    assert await earned_in(month) == {"subscription": 30, "overage": 40, "usage": 55}
    assert await earned_in(after) == {}
    # What is told of it a day behind its end is of that moment.
    await april.on(moment(after + timedelta(days=2)))
    await told(april, moment(month, 5), 6)
    await april.charge(ids["organization"])
    dated(april, known)
    assert await earned_in(month) == {"subscription": 30, "overage": 40, "usage": 55}
    assert (await earned_in(after))["usage"] == 3


async def left_of_credits(april: April, day: date) -> Decimal:
    """Credits that were sold and not used by the end of a day, as the report has them."""
    rows = await april.store.report("deferred-revenue", ReportPeriod(moment(day + timedelta(days=1))), 0, 999)
    assert {(row["month"], row["kind"]) for row in rows} <= {(None, "credits_purchased")}
    return sum((row["amount"] for row in rows), Decimal(0))


async def test_credit_purchase_is_deferred_revenue_until_the_credits_are_used_or_expire(april: April) -> None:
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal(0))
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    days = [date(2026, 4, day) for day in (1, 5, 10, 15, 20, 25)]
    books, known = Books(april, made["id"]), 0

    async def on(day: int) -> None:
        nonlocal known
        await allocated(books)
        known = dated(april, known, books.drawn)
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
    await on(26)
    # Of the first 1,000 at 0.01: 1,000, 700, 600, 400, none. Of 200 at 0.02: all, and fifty in the end.
    expected = ["10.00", "7.00", "10.00", "8.00", "4.00", "1.00"]
    assert [await left_of_credits(april, day) for day in days] == [Decimal(each) for each in expected]
    # In the end it is what is left of the additions, at what they cost.
    sums = "SELECT sum((credits_added - spent) * unit_cost) FROM credit_addition WHERE category = 'paid'"
    assert [(await left_of_credits(april, days[-1]),)] == rows_of(april.url, sums)
    assert await broken(april.url) == []
    revenue = await april.store.report("revenue", ReportPeriod(at(5, 1), at(4, 1)), 0, 9)
    assert {row["kind"]: row["amount"] for row in revenue} == {"credits_used": 9, "credits_expired": 4}
    # What a note gives back is deferred no more, and was not earned.
    note = await april.do("invoices", "credit-note", second["id"])
    await april.do("invoices", "finalize", note["id"])
    await on(27)
    assert await left_of_credits(april, date(2026, 4, 26)) == 0
    revenue = await april.store.report("revenue", ReportPeriod(at(5, 1), at(4, 1)), 0, 9)
    assert {row["kind"]: row["amount"] for row in revenue} == {
        "credits_used": 9, "credits_expired": 4, "credits_purchased": -3,
    }  # fmt: skip


async def test_each_partial_payment_of_prepaid_credits_becomes_deferred_revenue(april: April) -> None:
    """10,000 at 0.01 and 20 % tax: 120.00 are asked for, and nobody has to pay them."""
    made = await april.do("organizations", "create", name="Acme", tax_rate=Decimal("0.20"))
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)

    books, known = Books(april, made["id"]), 0

    async def left(day: int) -> Decimal:
        nonlocal known
        await allocated(books)
        known = dated(april, known, books.drawn)
        until = moment(date(2026, 4, day + 1))
        legs = [leg async for batch in april.store.entries(ReportPeriod(until, at(3, 1))) for leg in batch]
        assert not add_up(legs, "entry_id")
        balances = add_up(legs, "account")
        found = await left_of_credits(april, date(2026, 4, day))
        assert -balances.get("deferred_credits", Decimal(0)) == found
        asked = {leg["entry_id"]: leg["amount"] for leg in legs if leg["account"] == "unbilled"}
        sold_for = sum(amount for entry, amount in asked.items() if entry.startswith("charge:"))
        used = 20 if day >= 9 else 0
        assert -balances.get("unpaid_credits", Decimal(0)) == sold_for - found - used
        return found

    async def pay(day: int, amount: str) -> None:
        await april.on(at(4, day))
        await april.do("invoices", "payments", invoice["id"], amount=Decimal(amount), reference=f"r{day}")

    await april.on(at(4, 1))
    sold = await april.do(
        "credit-additions", "create", organization_id=made["id"], invoicing="prepaid", credits_added=10_000,
        unit_cost=Decimal("0.01"),
    )  # fmt: skip
    assert await april.loop("top-ups").turn() == 1
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


async def test_receivables_report_equals_ledger_for_a_payment_and_write_off_at_the_same_moment(
    april: April,
) -> None:
    books, _ = await begin(april, None)
    await april.on(moment(date(2026, 10, 2), 3))
    await april.charge(books.organization)
    dated(april, 0)
    period = {"period_start": date(2026, 9, 1), "period_end": date(2026, 10, 1)}
    drafted = await april.do("invoices", "create", organization_id=books.organization, **period)
    await books.finalize(drafted)
    total = Decimal(books.documents[drafted["id"]]["total_amount"])
    await april.on(moment(date(2026, 10, 9), 3))
    await april.do("invoices", "payments", drafted["id"], amount=Decimal(1), reference="first")
    await april.do("invoices", "uncollectible", drafted["id"])
    given_up = april.now
    await april.on(moment(date(2026, 10, 20), 3))
    await april.do("invoices", "payments", drafted["id"], amount=Decimal(2), reference="late")
    for until, open_, lost in (
        (given_up, total, 0),
        (given_up + timedelta(microseconds=1), 0, total - 1),
        (april.now + timedelta(microseconds=1), 0, total - 3),
    ):
        [row] = await april.store.report("receivables", ReportPeriod(until), 0, 10)
        assert (row["open"] + row["overdue_1_30"], row["uncollectible"]) == (open_, lost)
        asked = ReportPeriod(until, moment(date(2026, 1, 1)))
        legs = [leg async for batch in april.store.entries(asked) for leg in batch]
        balances = add_up(legs, "account")
        assert (balances.get("receivables", 0), balances.get("bad_debt", 0)) == (open_, lost)
