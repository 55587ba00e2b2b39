"""Tax by the date of supply: at which rate, and why at none. Pure.

Categories are those of EN 16931 (UNTDID 5305). A rate is in force from a day on until the next one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

STANDARD, ZERO, EXEMPT, REVERSE_CHARGE = "standard", "zero", "exempt", "reverse_charge"
OUTSIDE_SCOPE, EXPORT = "outside_scope", "export"
CODES = {
    STANDARD: "S", ZERO: "Z", EXEMPT: "E", REVERSE_CHARGE: "AE", OUTSIDE_SCOPE: "O", EXPORT: "G",
}  # fmt: skip
CATEGORIES = tuple(CODES)
# What a document has to say where nothing is taxed, and why is not said.
REASONS = {
    EXEMPT: "Exempt from tax",
    REVERSE_CHARGE: "Reverse charge",
    OUTSIDE_SCOPE: "Not subject to tax",
    EXPORT: "Export outside the union",
}


@dataclass(frozen=True, slots=True)
class Tax:
    """A rate as a fraction, what kind of one it is (None where nobody said), and why there is no tax."""

    rate: Decimal
    category: str | None = None
    reason: str | None = None

    @property
    def percent(self) -> str:
        """The rate as people write it."""
        return f"{(self.rate * 100).normalize():f}"

    @property
    def said(self) -> str:
        """What a document says of it; empty where there is no tax and nothing to say of that."""
        if self.rate:
            return f"Tax {self.percent} %"
        why = self.reason or REASONS.get(self.category or "")
        return f"Tax 0 %, {why}" if why else ""


NO_TAX = Tax(Decimal(0))


@dataclass(frozen=True, slots=True)
class Dated:
    """A tax, and the first day of supply it is for."""

    effective_from: date
    tax: Tax


def in_force(dated: Sequence[Dated], before: Tax, day: date) -> Tax:
    """The tax of what is supplied on a day: the latest from then on, `before` where all of them are later.

    `dated` are in the order of their days; of two from the same day the last said counts.
    """
    found = before
    for each in dated:
        if each.effective_from > day:
            break
        found = each.tax
    return found


def misfits(tax: Tax) -> tuple[tuple[str, str], ...]:
    """What of a tax contradicts itself: the field, and what would be right."""
    errors = []
    if tax.rate and tax.category not in (None, STANDARD):
        errors.append(("category", f"is {STANDARD} of a rate above zero, not {tax.category}"))
    if not tax.rate and tax.category == STANDARD:
        untaxed = ", ".join(name for name in CATEGORIES if name != STANDARD)
        errors.append(("category", f"is one of {untaxed} where the rate is zero"))
    if tax.reason is not None and tax.category not in REASONS:
        errors.append(
            ("reason", f"says why nothing is taxed; for that the category is one of {', '.join(REASONS)}")
        )
    return tuple(errors)


def taxes_of(lines: Iterable[tuple[Tax | None, Decimal]]) -> dict[Tax, Decimal]:
    """What lines with a tax come to before it, by tax, in the order in which taxes are first met."""
    sums: dict[Tax, Decimal] = {}
    for tax, amount in lines:
        if tax is not None:
            sums[tax] = sums.get(tax, Decimal(0)) + amount
    return sums
