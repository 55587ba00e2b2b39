"""What documents are told by: what came in for them, what notes give, and what is done about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction


@dataclass
class Paper:
    """A final document: an invoice, or a note, whose total is below zero.

    `credit` is what it gave, or got, by the other one's id.
    """

    total: Fraction
    due: date
    payments: dict[str, list[Fraction]] = field(default_factory=dict)
    credit: dict[int, Fraction] = field(default_factory=dict)
    # Of a note over an invoice: which.
    of: int | None = None
    at_cost: dict[tuple[date, date], int] = field(default_factory=dict)
    prepaid: int = 0
    noted: bool = False
    is_void: bool = False
    given_up: bool = False
    gave: bool = False
    reminded: list[int] = field(default_factory=list)
    last: date | None = None
    blocks: bool = False

    @property
    def paid(self) -> Fraction:
        return sum((amount for each in self.payments.values() for amount in each), Fraction(0))

    @property
    def rest(self) -> Fraction:
        """What is left to pay; of a note, above zero too, its open credit."""
        if self.is_void:
            return Fraction(0)
        return abs(self.total - self.paid) - sum(self.credit.values(), Fraction(0))

    @property
    def is_note(self) -> bool:
        return self.total < 0

    def status(self, today: date) -> str | None:
        """None of what waits for no money."""
        if self.is_void or self.is_note:
            return None
        if self.rest <= 0:
            return "paid"
        return "uncollectible" if self.given_up else "overdue" if self.due < today else "open"


def apply_open(papers: dict[int, Paper], today: date, *, everything: bool) -> None:
    """Notes give their own invoices what is left of those, then the oldest that are past due, or all."""
    notes = [(number, paper) for number, paper in sorted(papers.items()) if paper.is_note and paper.rest > 0]
    dues = sorted(
        ((paper.due, number) for number, paper in papers.items() if not paper.is_note and paper.rest > 0)
    )
    late = [made for due, made in dues if everything or due < today or papers[made].given_up]
    for targets in (lambda note: [note.of] if note.of is not None else [], lambda _: late):
        for number, note in notes:
            for made in targets(note):
                if (part := min(note.rest, papers[made].rest)) > 0:
                    note.credit[made] = note.credit.get(made, Fraction(0)) + part
                    papers[made].credit[number] = papers[made].credit.get(number, Fraction(0)) + part


def half_up(number: Fraction) -> int:
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)


def to_cents(amount: Fraction) -> Fraction:
    """Half up, away from zero."""
    return Fraction(half_up(abs(amount) * 100) * (1 if amount >= 0 else -1), 100)
