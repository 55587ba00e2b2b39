"""Random histories over years with everything that moves money: late prices, amendments of all kinds and both
ways, credits beyond the balance, automatic top-ups, dated taxes, payments that come and go, and dunning.

What is owed, paid and blocked is counted by another way, by fractions, of what happened.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.finance import ReportPeriod
from gateway.errors import Conflict
from persistence.dunning import DunningSchedule
from tests.persistence.april import April
from tests.persistence.billing.called import Called
from tests.persistence.billing.drawn import over_years, some
from tests.persistence.billing.histories import CARRIED, DAY, FIRST, live
from tests.persistence.billing.papers import Paper, apply_open, to_cents
from tests.persistence.billing.whole_histories import MORE, TOLD, TOLD_BACK
from tests.persistence.credits import give

REMINDERS, BLOCK, DUE_DAYS = (3, 10), 20, 14
CREDIT_PRICES = ("0.02", "0.0000000001", None, "0.333333")
AUTO: dict[str, object] = {"threshold": 100, "credits": 4_000, "unit_cost": "0.0123", "monthly_max": 100}
NUMBERS, WAY = st.integers(0, 9), st.sampled_from(["IN", "IN", "OUT"])
KINDS = st.sampled_from(["tokens", "units", "credits", "amount"])
CHANGES = st.tuples(st.just("change_call"), st.tuples(KINDS, NUMBERS, st.integers(1, 100), WAY))
STEPS = st.one_of(
    MORE,
    MORE,
    st.tuples(st.just("wait"), st.integers(1, 90)),
    st.tuples(st.just("wait"), st.integers(1, 90)),
    st.tuples(st.just("cost_call"), st.tuples(st.integers(0, 900_000), st.integers(0, 90_000))),
    st.tuples(st.just("cost_call"), st.tuples(st.integers(0, 900_000), st.integers(0, 90_000))),
    st.tuples(st.just("cost_event"), st.tuples(st.integers(0, 300), st.integers(0, 900_000))),
    st.tuples(st.just("price"), st.tuples(st.integers(-20, 200), st.integers(0, 10**10))),
    st.tuples(st.just("right"), st.tuples(st.integers(0, 9), st.integers(0, 10**10))),
    st.tuples(st.just("unit_call"), st.integers(1, 3_000)),
    st.tuples(st.just("credit_call"), st.integers(1, 900)),
    st.tuples(st.just("credit_call"), st.integers(1, 900)),
    st.tuples(st.just("credit_price"), st.integers(0, len(CREDIT_PRICES) - 1)),
    CHANGES,
    CHANGES,
    st.tuples(st.just("reverse"), st.tuples(NUMBERS, st.sampled_from([1, 2, 3]))),
    st.tuples(st.just("give_up"), NUMBERS),
    st.tuples(st.just("note"), NUMBERS),
    st.tuples(st.just("apply"), st.tuples(NUMBERS, st.sampled_from([1, 2]))),
    st.tuples(st.just("refund"), st.tuples(NUMBERS, st.sampled_from([1, 2, 3]))),
    st.tuples(st.just("auto"), st.sampled_from([None, "now", "prepaid"])),
    st.tuples(st.just("tax"), st.tuples(st.integers(-90, 60), st.sampled_from(["0", "0.07", "0.19", "0.2"]))),
)

# What met once: a late price and a note, a payment and an older invoice, a tier and an amendment.
MET: list[tuple[str, Any]] = [
    ("cost_call", (900_000, 0)), ("wait", 2), ("invoice", 0), ("note", 0), ("price", (5, 10**9)),
    ("credit_price", 0), ("credit_call", 500), ("wait", 1), ("invoice", 0),
    ("credit_call", 300), ("wait", 3), ("invoice", 0), ("pay", (1, 1)), ("void", 0),
    ("unit_call", 2_500), ("change_call", ("units", 0, 70, "IN")),
    ("top_up", ("prepaid", 500, 9_000)), ("pay", (1, 3)), ("note", 1),
]  # fmt: skip
# Prices are set right: of calls that no invoice has, that one has, and that a late price has rated before.
RIGHT: list[tuple[str, Any]] = [
    ("cost_call", (900_000, 10_000)), ("cost_event", (3, 500_000)), ("right", (0, 10**9)), ("wait", 2),
    ("invoice", 0), ("right", (0, 3 * 10**9)), ("wait", 31), ("invoice", 0), ("cost_call", (1_000, 7)),
    ("price", (40, 5 * 10**9)), ("right", (1, 2 * 10**9)), ("right", (0, 0)), ("wait", 40), ("invoice", 0),
    ("note", 1),
]  # fmt: skip
# Two invoices are unpaid. One blocks and is given back, so the other does, and goes on once it is given up.
PASSED_ON: list[tuple[str, Any]] = [
    ("top_up", ("prepaid", 500, 9_000)), ("wait", 1), ("top_up", ("prepaid", 600, 9_000)),
    ("wait", 20), ("wait", 20), ("wait", 5), ("note", 0), ("wait", 5), ("give_up", 0), ("wait", 5),
]  # fmt: skip
# A note gives back what was ordered; the same terms order no other, those that are switched on again do.
ORDERED_AGAIN: list[tuple[str, Any]] = [
    ("auto", "prepaid"), ("note", 8), ("auto", "prepaid"),
    ("auto", None), ("auto", "prepaid"), ("pay", (0, 1)),
]  # fmt: skip
# Plans that come back within a cycle, one that bills and is told of late, debt that goes from plan to plan.
FORTH_AND_BACK: list[tuple[str, Any]] = [
    ("change", ("Blocks", "now")), ("call", 2_500), ("change", ("Small", "now")),
    ("change", ("Blocks", "now")), ("call", 2_000), ("change", ("Owes", "now")),
    ("change_call", ("tokens", 0, 90, "IN")), ("wait", 12), ("change", ("Blocks", "now")), ("wait", 33),
    ("tokens", 5_000), ("change", ("Carries", "now")), ("change", ("Blocks", "now")), ("wait", 30),
    ("change", ("Small", "now")), ("tokens", 950), ("change", ("Blocks", "period_end")), ("wait", 32),
    ("tokens", 4_000), ("cancel", "now"),
]  # fmt: skip
BILLED_BEHIND: list[tuple[str, Any]] = [
    ("call", 900), ("wait", 4), ("change", ("Large", "now")), ("late", (2, 1_300)), ("wait", 30),
    ("late", (33, 400)), ("amend", (0, 30)), ("wait", 31), ("change_call", ("tokens", 0, 50, "OUT")),
    ("change", ("Carries", "now")), ("call", 900), ("wait", 31), ("late", (20, 3_000)),
    ("change", ("Small", "now")), ("wait", 1), ("change", ("Blocks", "now")), ("wait", 32),
    ("amend", (0, 50)),
]  # fmt: skip
DEBT: list[tuple[str, Any]] = [
    ("change", ("Blocks", "now")), ("tokens", 4_990), ("change", ("Owes", "now")), ("tokens", 600),
    ("change", ("Carries", "now")), ("wait", 2), ("late", (1, 300)), ("wait", 31),
    ("change", ("Owes", "period_end")), ("wait", 32), ("tokens", 200), ("change", ("Blocks", "now")),
    ("late", (40, 5)), ("change", ("Owes", "now")), ("wait", 33), ("edit", ("Owes", False)), ("wait", 31),
    ("tokens", 10), ("wait", 3),
]  # fmt: skip
# Credits before there is a price, at a tiny one, at none again; bought, billed, void, paid and given back.
BEYOND: list[tuple[str, Any]] = [
    ("credit_call", 500), ("credit_price", 1), ("credit_call", 70), ("credit_price", 2), ("credit_call", 9),
    ("buy", (501, 0)), ("credit_price", 0), ("credit_call", 800), ("buy", (900, 100)), ("wait", 2),
    ("invoice", 0), ("credit_call", 700), ("wait", 31), ("invoice", 0), ("buy", (300, 0)), ("void", 1),
    ("wait", 1), ("invoice", 0), ("pay", (1, 1)), ("credit_call", 600), ("wait", 1), ("invoice", 0),
    ("note", 2),
]  # fmt: skip


YEARLY = {"name": "Large", "billing_interval": "annual", "billing": "advance", "renews": True}
# A trial with a minimum, a year in arrears, months ahead that are void, a year in advance; changed or ended.
AGREED: list[tuple[str, Any]] = [
    ("commit", "50.00"), ("cancel", "now"), ("wait", 1),
    ("subscribe", FIRST | {"name": "Blocks", "trial": 14, "billing": "advance"}), ("wait", 9),
    ("cancel", "now"), ("wait", 2), ("commit", None),
    ("subscribe", FIRST | YEARLY | {"name": "Blocks", "billing": "arrears"}), ("wait", 30), ("cancel", "now"),
    ("wait", 1), ("commit", "100.00"), ("subscribe", FIRST | {"renews": True}), ("wait", 3), ("invoice", 40),
    ("tokens", 3_000), ("recharge", 400), ("wait", 10), ("change", ("Blocks", "now")), ("wait", 31),
    ("void", 0), ("invoice", 0), ("wait", 20), ("note", 0), ("cancel", "now"), ("wait", 1), ("commit", None),
    ("subscribe", FIRST | YEARLY | {"name": "Small"}), ("wait", 20), ("invoice", 0),
    ("change", ("Blocks", "now")), ("wait", 3), ("void", 0), ("wait", 1), ("invoice", 0), ("tokens", 10),
]  # fmt: skip
# A year in advance is given back in part, applied, paid back, and taken back; money of it bounces.
NETTED: list[tuple[str, Any]] = [
    ("cancel", "now"), ("wait", 1), ("subscribe", FIRST | YEARLY), ("wait", 2), ("invoice", 0),
    ("change", ("Small", "now")), ("wait", 1), ("invoice", 0), ("pay", (0, 1)), ("cancel", "now"),
    ("wait", 2), ("invoice", 0), ("reverse", (0, 2)), ("apply", (0, 2)), ("refund", (0, 3)), ("wait", 20),
    ("reverse", (1, 1)), ("top_up", ("prepaid", 500, 9_000)), ("wait", 20), ("void", 0), ("wait", 40),
    ("note", 0), ("wait", 1), ("void_note", 0), ("wait", 9),
]  # fmt: skip


class EveryHistory(Called):
    """One organization through years, with everything that moves money."""

    def __init__(self, april: April) -> None:
        super().__init__(april)
        self.taxes: list[tuple[date, int, Fraction]] = [(date.min, 0, Fraction(0))]
        self.credit_price: Fraction | None = None
        self.auto: dict[str, object] | None = None
        # What is bought by itself and not there yet, and the invoice that it waits for.
        self.ordered: str | None = None
        self.ordered_on: int | None = None
        self.is_blocked = False
        self.schedule = DunningSchedule(REMINDERS, BLOCK)

    async def end(self) -> None:
        await self._auto(None)
        await super().end()
        await self._all_again()
        assert self.april.account.balance == self.owed.books.balance

    async def _check(self) -> None:
        await super()._check()
        await self._on_balance()

    async def step(self, what: str, how: Any) -> None:
        await super().step(what, how)
        await self._sell()
        assert self.april.account.balance == self.owed.books.balance
        self._on_account()
        if what in {"void", "note", "void_note", "apply", "refund", "reverse", "invoice"}:
            await self._on_balance()

    # Credits.

    async def _buy(self, how: tuple[int, int]) -> None:
        credits_, cost = how
        unit_cost = Fraction(cost, 10_000)
        give(self.april.url, self.april.account, credits_, unit_cost=str(Decimal(cost) / 10_000))
        self.owed.others += credits_ * unit_cost
        if credits_ > 0:
            self._came(credits_)
        else:
            self._spent(-credits_)
        await self._flush()

    async def _credit_price(self, number: int) -> None:
        self.april.now += timedelta(minutes=1)
        self.april.account.at_ms = max(self.april.account.at_ms, int(self.april.now.timestamp() * 1000))
        cost = CREDIT_PRICES[number]
        said = None if cost is None else Decimal(cost)
        await self.april.do("organizations", "change", self.ids["organization"], credit_unit_cost=said)
        self.credit_price = None if cost is None else Fraction(cost)
        self.april.account.at_ms += 1

    async def _auto(self, invoicing: str | None) -> None:
        had, self.auto = self.auto, None if invoicing is None else AUTO | {"invoicing": invoicing}
        await self.april.do("organizations", "change", self.ids["organization"], auto_top_up=self.auto)
        if self.auto != had:
            self._looked()
        await self._sell()

    async def _top_up(self, how: tuple[str, int, int]) -> None:
        invoicing, credits_, _ = how
        if await self._ordered(how):
            await self._sell(credits_ if invoicing == "prepaid" else 0)

    def _came(self, credits_: int, paid: int | None = None) -> None:
        self.owed.books.add(credits_, paid=paid)
        self._looked()

    def _spent(self, credits_: int) -> None:
        self.owed.books.use(credits_, self.today, self.credit_price)
        self._looked()

    def _looked(self) -> None:
        """Whoever moves a balance to its threshold orders, where none is on its way."""
        if self.auto is not None and self.ordered is None and self.owed.books.balance <= 100:
            self.ordered = "ordered"

    async def _sell(self, prepaid: int = 0) -> None:
        while True:
            known = set(self.papers)
            if self.ordered == "ordered":
                self.ordered = str(self.auto["invoicing"]) if self.auto else None
                if self.ordered is not None:
                    self.owed.others += 4_000 * Fraction("0.0123")
                if self.ordered == "prepaid":
                    prepaid = 4_000
            await self.april.loop("top-ups").turn()
            if arrived := self._arrived():
                await self._flush()
                await self.april.loop("top-ups").turn()
            paid = False
            for made in sorted(set(self._final()) - known):
                assert set(self._keep(made, prepaid)) == {self._tax_on(self.today)}
                if self.ordered == "prepaid" and self.ordered_on is None:
                    self.ordered_on = made
                prepaid = 0
                paid |= self._apply_open(everything=True)
            if not arrived and not paid and self.ordered != "ordered":
                return

    def _arrived(self) -> bool:
        """Have the account get what waits for it; whether something did."""
        writes = self._writes("credits")
        for request, payload in writes:
            read = "SELECT invoicing, invoice_id FROM credit_addition WHERE control_write_id = %s"
            [(invoicing, made)] = self.april.rows(read, [request])
            self.april.account.credit(int(payload["amount"]), request)
            if self.ordered == "now" and payload["amount"] == 4_000:
                self.ordered = None
            self._came(int(payload["amount"]), int(str(made)) if invoicing == "postpaid" else None)
        return bool(writes)

    # Invoices.

    async def _invoice(self, ahead: int) -> None:
        known = set(self._final())
        await super()._invoice(ahead)
        for made in set(self._final()) - known:
            until = self.invoiced_until
            self.owed.books.bill(made, until)
            self._keep(made)
            taken = {told: units for told, units in self.at_cost.items() if told[1] < until and units}
            self.papers[made].at_cost = taken
            self.at_cost = {told: units for told, units in self.at_cost.items() if told[1] >= until}
            if self.papers[made].total <= 0:
                self._gives(made)
            self._apply_open(everything=True)

    def _final(self) -> list[int]:
        read = "SELECT id FROM invoice WHERE status <> 'draft' AND corrects_id IS NULL"
        return [int(str(number)) for (number,) in self.april.rows(read)]

    def _keep(self, made: int, prepaid: int = 0) -> dict[Fraction, Fraction]:
        """A new document: its tax is that of its lines, once for each rate; answers what these come to."""
        read = "SELECT kind, amount, tax_rate FROM invoice_line WHERE invoice_id = %s"
        lines = self.april.rows(read, [made])
        nets: dict[Fraction, Fraction] = {}
        taxes: dict[Fraction, Fraction] = {}
        for kind, amount, rate in lines:
            of = taxes if kind == "tax" else nets
            of[Fraction(str(rate))] = of.get(Fraction(str(rate)), Fraction(0)) + Fraction(str(amount))
        expected = {rate: to_cents(rate * net) for rate, net in nets.items()}
        assert {rate: tax for rate, tax in taxes.items() if tax} == {
            rate: tax for rate, tax in expected.items() if tax
        }
        total = sum(nets.values(), Fraction(0)) + sum(expected.values(), Fraction(0))
        self.papers[made] = Paper(total, self.april.now.date() + DUE_DAYS * DAY, prepaid=prepaid)
        if made not in self.open:
            self.open.append(made)
        return nets

    def _gives(self, made: int) -> None:
        """What was billed beyond the balance is given once it is paid."""
        self.papers[made].gave = bool(self.owed.books.invoices.get(made))

    async def _void(self, number: int) -> None:
        if not self.open:
            return
        made = self.open[number % len(self.open)]
        paper = self.papers[made]
        if paper.paid or paper.prepaid or paper.gave:
            with suppress(Conflict):
                await self.april.do("invoices", "void", made)
                assert (paper.prepaid, paper.paid, paper.gave) == (-1, 0, False)
                self._voided(made)
            return
        await self.april.do("invoices", "void", made)
        self._voided(made)

    def _voided(self, made: int) -> None:
        self.open.remove(made)
        self._take_back(made)
        for told, units in self.papers[made].at_cost.items():
            self.at_cost[told] = self.at_cost.get(told, 0) + units
        if made in self.owed.books.invoices:
            self.owed.books.void(made)

    async def _note(self, number: int) -> None:
        known = len(self.notes)
        await super()._note(number)
        if len(self.notes) > known:
            note, made, _, _ = self.notes[-1]
            self.papers[made].noted = True
            self.papers[note] = Paper(-self.papers[made].total, self.today, of=made)
            if made == self.ordered_on:
                self.ordered = self.ordered_on = None
            self._apply_open(everything=True)

    async def _void_note(self, number: int) -> None:
        if not self.notes:
            return
        note, made, _, _ = self.notes[number % len(self.notes)]
        if self.papers[note].paid:
            with pytest.raises(Conflict, match="is paid back"):
                await self.april.do("invoices", "void", note)
            return
        await super()._void_note(number)
        self.papers[made].noted = False
        self._take_back(note)

    # Credit of notes.

    def _apply_open(self, *, everything: bool = False) -> bool:
        """Apply open credit, and note what it gives; whether an invoice is paid by it."""
        before = {number: sum(paper.credit.values()) for number, paper in self.papers.items()}
        apply_open(self.papers, self.today, everything=everything)
        paid = [
            made for made, paper in self.papers.items()
            if not paper.is_note and paper.rest == 0 and sum(paper.credit.values()) > before[made]
        ]  # fmt: skip
        for made in paid:
            self._settled(made)
        return bool(paid)

    def _settled(self, made: int) -> None:
        """What is paid by other means than notes over it gives its credits, once."""
        paper = self.papers[made]
        came = paper.paid + sum(part for note, part in paper.credit.items() if self.papers[note].of != made)
        if came > 0 and not paper.noted:
            if made == self.ordered_on:
                self.ordered, self.ordered_on = "now", None
            self._gives(made)
            paper.prepaid = min(paper.prepaid, -1) if paper.prepaid else 0

    def _take_back(self, made: int) -> None:
        """A document is void: what it gave or got is taken back."""
        self.papers[made].is_void = True
        for other in self.papers[made].credit:
            del self.papers[other].credit[made]
        self.papers[made].credit.clear()
        self._apply_open()

    def _pick(self, number: int, *, notes: bool) -> int | None:
        found = [made for made, paper in self.papers.items() if paper.is_note == notes and paper.rest > 0]
        return found[number % len(found)] if found else None

    async def _apply(self, how: tuple[int, int]) -> None:
        number, parts = how
        note, made = self._pick(number, notes=True), self._pick(number, notes=False)
        if note is None or made is None:
            return
        part = to_cents(min(self.papers[note].rest, self.papers[made].rest) / parts)
        if part > 0:
            await self.april.do("invoices", "apply", note, invoice_id=made, amount=_said(part))
            for one, other in ((note, made), (made, note)):
                self.papers[one].credit[other] = self.papers[one].credit.get(other, Fraction(0)) + part
            if self.papers[made].rest == 0:
                self._settled(made)

    async def _refund(self, how: tuple[int, int]) -> None:
        number, parts = how
        note = self._pick(number, notes=True)
        if note is None or not (part := to_cents(self.papers[note].rest / parts)):
            return
        reference = str(uuid.uuid4())
        for _ in range(2):
            await self.april.do("invoices", "refund", note, amount=_said(part), reference=reference)
        self.papers[note].payments[reference] = [-part]

    def _on_account(self) -> None:
        """Documents have given and got what they should, and come to what is owed with what no one has."""
        found: dict[int, dict[int, Fraction]] = {}
        read = "SELECT note_id, invoice_id, sum(amount) FROM note_application GROUP BY 1, 2"
        for note, made, amount in self.april.rows(read):
            if amount:
                found.setdefault(int(str(note)), {})[int(str(made))] = Fraction(str(amount))
        expected = {number: paper.credit for number, paper in self.papers.items() if paper.is_note}
        assert found == {number: credit for number, credit in expected.items() if credit}
        assert all(paper.rest >= 0 for paper in self.papers.values())

    async def _on_balance(self) -> None:
        """Documents and what no one has come to what is owed; the report says so, part by part."""
        papers = [paper for paper in self.papers.values() if not paper.is_void]
        notes, dues = ([each for each in papers if each.is_note == is_note] for is_note in (True, False))
        [(unbilled,)] = self.april.rows(
            "SELECT coalesce(sum(amount), 0) FROM charge WHERE invoice_id IS NULL"
        )
        expected = {
            "invoiced": sum(each.total for each in dues), "credited": -sum(each.total for each in notes),
            "paid": sum(each.paid for each in dues), "refunded": -sum(each.paid for each in notes),
            "applied": sum(sum(each.credit.values()) for each in dues),
            "due": sum(each.rest for each in dues), "open_credit": sum(each.rest for each in notes),
            "unbilled": Fraction(str(unbilled)),
        }  # fmt: skip
        expected["balance"] = expected["due"] - expected["open_credit"] + expected["unbilled"]
        ever = ReportPeriod(datetime(2100, 1, 1, tzinfo=UTC))
        for row in await self.april.store.report("balances", ever, 0, 9):
            assert {name: Fraction(str(row[name])) for name in expected} == expected
        rows = await self.april.store.report("receivables", ever, 0, 9)
        due = sum((Fraction(str(row["total"] + row["uncollectible"])) for row in rows), Fraction(0))
        assert due == expected["due"] - expected["open_credit"]
        rows = await self.april.store.report("unbilled", ever, 0, 999)
        assert sum((Fraction(str(row["amount"])) for row in rows), Fraction(0)) == expected["unbilled"]

    # Money.

    async def _pay(self, how: tuple[int, int]) -> None:
        number, parts = how
        waiting = [made for made, paper in self.papers.items() if not paper.is_note and paper.rest > 0]
        if not waiting:
            return
        made = waiting[number % len(waiting)]
        paper, reference = self.papers[made], str(uuid.uuid4())
        amount = to_cents(paper.rest / parts)
        if amount <= 0:
            return
        said = _said(amount)
        row = await self.april.do("invoices", "payments", made, amount=said, reference=reference)
        paper.payments[reference] = [amount]
        self.paid.append((made, said, reference))
        assert (Fraction(str(row["amount_due"])), row["payment_status"]) == (
            paper.rest, paper.status(self.today),
        )  # fmt: skip
        if paper.rest == 0:
            lots = self.owed.books.invoices.get(made)
            expected = [len(lots)] if lots and not paper.gave else []
            expected += [paper.prepaid] if paper.prepaid > 0 else []
            waits = [int(p["amount"]) for _, p in self._writes("credits", look=True)]
            assert sorted(waits) == sorted(expected)
            self._settled(made)

    async def _reverse(self, how: tuple[int, int]) -> None:
        number, parts = how
        found = [
            (made, reference) for made, paper in self.papers.items()
            for reference, amounts in paper.payments.items() if sum(amounts)
        ]  # fmt: skip
        if not found:
            return
        made, reference = found[number % len(found)]
        paper = self.papers[made]
        [(payment,)] = self.april.rows("SELECT id FROM payment WHERE reference = %s", [reference])
        back = to_cents(sum(paper.payments[reference]) / parts)
        if not back:
            return
        told = {"reference": str(uuid.uuid4()), "amount": _said(abs(back))}
        for _ in range(2):
            await self.april.do("payments", "reverse", int(str(payment)), **told)
        paper.payments[reference].append(-back)
        self._apply_open()
        row = await self.april.store.get("invoices", made)
        assert (abs(Fraction(str(row["amount_due"]))), row["payment_status"]) == (
            paper.rest, paper.status(self.today),
        )  # fmt: skip

    async def _give_up(self, number: int) -> None:
        waiting = [
            made for made, paper in self.papers.items() if paper.status(self.today) in {"open", "overdue"}
        ]
        if waiting:
            made = waiting[number % len(waiting)]
            await self.april.do("invoices", "uncollectible", made)
            self.papers[made].given_up = True
            self._apply_open()

    async def _tax(self, how: tuple[int, str]) -> None:
        ahead, rate = how
        begins = self.today + ahead * DAY
        await self.april.do(
            "tax-rates", "create", organization_id=self.ids["organization"], rate=Decimal(rate),
            effective_from=begins,
        )  # fmt: skip
        self.taxes.append((begins, len(self.taxes), Fraction(rate)))

    def _tax_on(self, day: date) -> Fraction:
        return max(each for each in self.taxes if each[0] <= day)[2]

    async def _at(self, day: date) -> None:
        await super()._at(day)
        await self.april.dun(self.schedule)
        self._apply_open()
        self._dun()
        steps = self.april.rows("SELECT invoice_id, days FROM dunning_step WHERE action = 'reminder'")
        assert sorted(steps) == sorted(
            (made, days) for made, paper in self.papers.items() for days in paper.reminded
        )
        marks = self.april.rows(
            "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb LIKE %s"
            " RETURNING verb, id::text",
            ["%block"],
        )
        for verb, request in marks:
            self.april.account.mark(blocked=verb == "block", source=str(request))
        assert self.april.account.manual == self.is_blocked
        await self._flush()

    def _dun(self) -> None:
        """Reminders, the last alone of those that are due at once; then a block, a day behind the last."""
        cause = False
        for _, paper in sorted(self.papers.items(), key=lambda of: (of[1].due, of[0])):
            if paper.status(self.today) != "overdue":
                continue
            days, since = (self.today - paper.due).days, (self.today - (paper.last or self.today)).days
            due = [each for each in REMINDERS if max(paper.reminded, default=0) < each <= days]
            if due:
                paper.reminded.append(due[-1])
                paper.last = self.today
            elif not cause and days >= BLOCK and since >= 1:
                cause = paper.blocks = True
        standing = [
            paper for paper in self.papers.values()
            if paper.blocks and paper.status(self.today) in {"overdue", "uncollectible"}
        ]  # fmt: skip
        self.is_blocked = bool(standing)
        owes = sum(
            (-paper.rest if paper.is_note else paper.rest for paper in self.papers.values()), Fraction(0)
        )
        assert owes > 0 or not self.is_blocked

    async def _all_again(self) -> None:
        before = self.april.rows("SELECT count(*), sum(amount) FROM charge")
        for call in self.made["changed"]:
            with pytest.raises(Conflict):
                await self.april.do(
                    "amendments", "create", request_id=call.request, reason="again", tokens=1, direction="OUT"
                )
        await self.april.dun(self.schedule)
        await self._sell()
        await self.april.charge(self.ids["organization"])
        assert self.april.rows("SELECT count(*), sum(amount) FROM charge") == before


MET_ONCE = {
    "met": MET, "right": RIGHT, "passed on": PASSED_ON, "ordered again": ORDERED_AGAIN, "netted": NETTED, "carried": CARRIED,
    "told back": TOLD_BACK, "told": TOLD, "forth and back": FORTH_AND_BACK, "billed behind": BILLED_BEHIND,
    "debt": DEBT, "beyond the balance": BEYOND, "agreed": AGREED,
}  # fmt: skip


@pytest.mark.parametrize("name", MET_ONCE)
def test_billing_history_that_failed_in_the_past_matches_an_independent_calculation(
    migrated: str, name: str
) -> None:
    asyncio.run(live(EveryHistory, migrated, [("subscribe", FIRST | {"renews": True}), *MET_ONCE[name]]))


@some(3)
@given(steps=over_years(STEPS, 20, 50))
def test_random_billing_history_over_years_matches_an_independent_calculation(
    migrated: str, steps: list[tuple[str, Any]]
) -> None:
    asyncio.run(live(EveryHistory, migrated, [("subscribe", FIRST | {"renews": True}), *steps]))


def _said(amount: Fraction) -> Decimal:
    return Decimal(amount.numerator) / Decimal(amount.denominator)
