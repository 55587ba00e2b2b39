"""What invoices are told by: what came in for them, what was given back, and what is done about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction


@dataclass
class Paper:
    """A final invoice: what came in for it, and what was done about it."""

    total: Fraction
    due: date
    payments: dict[str, list[Fraction]] = field(default_factory=dict)
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
        return self.total - self.paid - (self.total if self.noted else 0)

    def status(self, today: date) -> str | None:
        """None of what waits for no money."""
        if self.is_void:
            return None
        if self.rest <= 0:
            return "paid"
        return "uncollectible" if self.given_up else "overdue" if self.due < today else "open"


def half_up(number: Fraction) -> int:
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)


def to_cents(amount: Fraction) -> Fraction:
    """Half up, away from zero."""
    return Fraction(half_up(abs(amount) * 100) * (1 if amount >= 0 else -1), 100)
