"""Credits used beyond the balance: what is owed for them, told credit by credit by another way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from gateway.errors import Conflict
from tests.persistence.april import April, april, at
from tests.persistence.billing.test_top_ups import post
from tests.persistence.credits import give
from tests.persistence.scenario import Account, rows_of

__all__ = ["april"]


async def customer(april: April, **more: object) -> int:
    terms: dict[str, object] = {"credit_limit": 10_000, "credit_unit_cost": Decimal("0.02")}
    made = await april.do("organizations", "create", name="Acme", **terms | more)
    tenant = await april.do("tenants", "create", name="Main", organization_id=made["id"])
    april.account = Account(made["id"], tenant["id"], None)
    return int(made["id"])


def spend(april: April, credits_: int) -> None:
    april.account.consume(None, credits_=credits_)
    april.flush()


async def invoice_of(april: April, owner: int, start: date, end: date) -> dict[str, Any]:
    made = await april.do(
        "invoices", "create", organization_id=owner, period_start=start, period_end=end
    )  # fmt: skip
    return await april.do("invoices", "finalize", made["id"])


async def of_april(april: April, owner: int) -> dict[str, Any]:
    await april.on(at(5, 2))
    return await invoice_of(april, owner, date(2026, 4, 1), date(2026, 5, 1))


async def owed(april: April, owner: int) -> list[tuple[str, str]]:
    return [(str(row["kind"]), str(row["amount"])) for row in await april.store.unbilled(owner)]


async def test_credits_used_beyond_the_balance_are_billed_and_granted_once_by_the_payment(
    april: April,
) -> None:
    owner = await customer(april)
    await april.on(at(4, 10))
    spend(april, 5_000)
    await april.on(at(4, 20))
    spend(april, 3_000)
    made = await of_april(april, owner)
    [line, told] = made["lines"]
    assert (line["kind"], line["quantity"], Decimal(line["unit_price"]), line["amount"]) == (
        "credits_postpaid", 8_000, Decimal("0.02"), "160.00",
    )  # fmt: skip
    assert line["description"] == "Credits used beyond the balance, 10 to 20 April 2026"
    assert (told["kind"], told["amount"]) == ("credits_consumed", "0.00")
    assert post(april) == 0
    pay = {"amount": Decimal("160.00")}
    await asyncio.gather(
        *(april.do("invoices", "payments", made["id"], **pay, reference="b") for _ in "1234")
    )
    assert (post(april), april.account.balance) == (8_000, 0)
    [(payment,)] = rows_of(april.url, "SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="back")
    await april.do("invoices", "payments", made["id"], **pay, reference="again")
    assert post(april) == 0
    await april.allocate()
    assert await owed(april, owner) == []


async def test_voiding_an_invoice_for_overused_credits_bills_again_only_credits_not_covered_since(
    april: April,
) -> None:
    owner = await customer(april)
    await april.on(at(4, 10))
    spend(april, 8_000)
    made = await of_april(april, owner)
    give(april.url, april.account, 3_000, category="promotional")
    april.flush()
    await april.allocate()
    await april.do("invoices", "void", made["id"])
    assert await owed(april, owner) == [("credits_postpaid", "100")]
    again = await invoice_of(april, owner, date(2026, 4, 1), date(2026, 5, 1))
    assert str(again["total_amount"]) == "100.00"
    await april.do("invoices", "payments", again["id"], amount=Decimal("100.00"), reference="b")
    assert (post(april), april.account.balance) == (5_000, 0)
    [(payment,)] = rows_of(april.url, "SELECT id FROM payment")
    await april.do("payments", "reverse", int(str(payment)), reference="back")
    with pytest.raises(Conflict, match="given with its payment"):
        await april.do("invoices", "void", again["id"])


async def noted(april: April, invoice: dict[str, Any], amount: str) -> int:
    asked = [{"position": 1, "amount": Decimal(amount)}]
    note = await april.do("invoices", "credit-note", invoice["id"], lines=asked)
    await april.do("invoices", "finalize", note["id"])
    return int(note["id"])


@pytest.mark.parametrize(
    ("notes", "rest", "given"),
    [
        (["40.00"], "120.00", 6_000),
        (["40.01"], "119.99", 6_000),  # 5,999.5 are paid for
        (["20.00", "20.01"], "119.99", 6_000),
        (["0.01"], "159.99", 8_000),
        (["0.01"] * 3, "159.97", 7_999),
        (["159.99"], "0.01", 1),
    ],
)
async def test_payment_after_a_partial_credit_note_grants_only_the_credits_paid_for(
    april: April, notes: list[str], rest: str, given: int
) -> None:
    owner = await customer(april)
    for day, credits_ in ((10, 5_000), (20, 3_000)):
        await april.on(at(4, day))
        spend(april, credits_)
    made = await of_april(april, owner)
    for amount in notes:
        await noted(april, made, amount)
    row = await april.do(
        "invoices", "payments", made["id"], amount=Decimal(rest), reference="b"
    )  # fmt: skip
    assert (row["payment_status"], post(april)) == ("paid", given)
    assert april.account.balance == given - 8_000
    await april.allocate()
    # What the note gave back is owed by nobody, though the balance goes on without it.
    assert await owed(april, owner) == []


async def test_voiding_a_credit_note_restores_the_amount_due_and_the_credits_granted_on_payment(
    april: April,
) -> None:
    owner = await customer(april)
    await april.on(at(4, 10))
    spend(april, 8_000)
    made = await of_april(april, owner)
    first, _ = await noted(april, made, "100.00"), await noted(april, made, "20.00")
    await april.do("invoices", "void", first)
    await april.do("invoices", "payments", made["id"], amount=Decimal("140.00"), reference="b")
    assert (post(april), await owed(april, owner)) == (7_000, [])


async def test_credit_note_after_the_payment_does_not_take_back_the_granted_credits(april: April) -> None:
    owner = await customer(april)
    await april.on(at(4, 10))
    spend(april, 8_000)
    made = await of_april(april, owner)
    await april.do("invoices", "payments", made["id"], amount=Decimal("160.00"), reference="b")
    assert post(april) == 8_000
    await noted(april, made, "60.00")
    row = await april.store.get("invoices", made["id"])
    assert (str(row["amount_due"]), post(april), april.account.balance) == ("0.00", 0, 0)
    await april.allocate()
    assert await owed(april, owner) == []


async def test_organization_owing_credits_may_not_be_deleted_or_change_currency(april: April) -> None:
    owner = await customer(april)
    spend(april, 8_000)
    await april.do("tenants", "delete", april.account.tenant_id)
    with pytest.raises(Conflict, match="USD 160 of credits_postpaid"):
        await april.do("organizations", "delete", owner)
    with pytest.raises(Conflict, match="beyond its balance"):
        await april.do("organizations", "change", owner, currency="EUR")


# A credit of debt: the day it was used on, what it costs (None: nothing), the invoice that has it.
Credit = tuple[date, Fraction | None, int | None]


@dataclass
class Books:
    """What is owed, credit by credit: no lots, no days added up, nothing from the database."""

    pool: int = 0
    debt: list[Credit] = field(default_factory=list)
    charged: Fraction = Fraction(0)
    invoices: dict[int, list[Credit]] = field(default_factory=dict)

    def use(self, credits_: int, day: date, price: Fraction | None) -> None:
        paid = min(self.pool, credits_)
        self.pool -= paid
        self.debt += [(day, price, None)] * (credits_ - paid)
        self.charged += (price or 0) * (credits_ - paid)

    def add(self, credits_: int, money: Fraction = Fraction(0), paid: int | None = None) -> None:
        """The oldest debt is covered first; with the payment of an invoice that which it billed."""
        self.charged += money
        lots = {(day, price) for day, price, _ in self.invoices.get(paid or 0, ())}
        places = {
            place: (invoice is None or invoice != paid, (day, price) not in lots, place)
            for place, (day, price, invoice) in enumerate(self.debt)
        }
        found = sorted(places, key=lambda place: places[place])[:credits_]
        covered = [self.debt[place] for place in found]
        self.debt = [credit for place, credit in enumerate(self.debt) if place not in set(found)]
        self.pool += credits_ - len(covered)
        self.charged -= sum(
            (price for _, price, invoice in covered if price and invoice is None), Fraction(0)
        )

    def bill(self, invoice: int, until: date) -> None:
        taken = [each for each in self.debt if each[1] and each[2] is None and each[0] < until]
        self.invoices[invoice] = taken
        self.debt = [
            (day, price, invoice) if price and of is None and day < until else (day, price, of)
            for day, price, of in self.debt
        ]

    def void(self, invoice: int) -> None:
        billed = sum((price for _, price, _ in self.invoices.pop(invoice) if price), Fraction(0))
        still = sum((price for _, price, of in self.debt if of == invoice and price), Fraction(0))
        self.charged -= billed - still
        self.debt = [(day, price, None if of == invoice else of) for day, price, of in self.debt]

    @property
    def balance(self) -> int:
        return self.pool - len(self.debt)
