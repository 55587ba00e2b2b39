"""What a credit note gives back of an invoice: whole lines or parts of them, and their share of the tax.

Pure. No line gives back more than is left of it, over all notes of the invoice together; the last
note gets the rest of the tax to the last minor unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from gateway.core.billing.invoice import INFORMATION
from gateway.core.billing.line import QUANTITY_ONE, Line
from gateway.core.billing.pricing import EXACT, rounded
from gateway.errors import Conflict, Unprocessable

NOTHING = Decimal(0)

# Lines by their position on the invoice.
Lines = Mapping[int, Line]
Amounts = Mapping[int, Decimal]


def whole_note(lines: Lines, given: Amounts) -> dict[int, Line]:
    """Everything that is left of an invoice, turned round; `given` is what other notes gave back of a line.

    `Conflict` where nothing is left.
    """
    note = {
        position: _turned(line, line.amount - given.get(position, NOTHING))
        for position, line in lines.items()
        if line.kind != INFORMATION and (line.amount != given.get(position, NOTHING) or line.amount == 0)
    }
    if not any(line.amount for line in note.values()) and given:
        raise Conflict("All of this invoice was given back already.")
    return note


def partial_note(
    lines: Lines, given: Amounts, asked: Mapping[int, Decimal | None], currency: str
) -> dict[int, Line]:
    """Some amounts of some lines, turned round, with the tax on them; None asks for what is left of a line.

    `Unprocessable` names the lines of which that much cannot be given back.
    """
    errors: list[tuple[str, str]] = []
    note: dict[int, Line] = {}
    for position, amount in asked.items():
        line = lines.get(position)
        if line is None or line.kind in {INFORMATION, "tax"}:
            errors.append((f"lines.{position}", "there is no such line to give back"))
            continue
        rest = line.amount - given.get(position, NOTHING)
        wanted = rest if amount is None else amount
        if wanted != rounded(wanted, currency):
            errors.append((f"lines.{position}", f"has more decimals than {currency}"))
        elif not 0 < wanted <= rest:
            left = rounded(max(rest, NOTHING), currency)
            errors.append((f"lines.{position}", f"{left:f} is left of it, not {wanted:f}"))
        else:
            note[position] = _turned(line, wanted)
    if errors:
        raise Unprocessable("This cannot be given back.", tuple(errors))
    return note | _tax(lines, given, note, currency)


def _tax(lines: Lines, given: Amounts, note: Lines, currency: str) -> dict[int, Line]:
    """Each tax on what is given back of what was billed with it, less what was given back of it before."""
    found = {}
    for position, line in lines.items():
        if line.kind != "tax":
            continue
        net = [
            at for at, each in lines.items() if each.kind not in {INFORMATION, "tax"} and each.tax == line.tax
        ]
        billed = sum((lines[at].amount for at in net), NOTHING)
        if not billed:
            continue
        back = sum((given.get(at, NOTHING) for at in net), NOTHING)
        back -= sum((note[at].amount for at in net if at in note), NOTHING)
        due = rounded(EXACT.divide(EXACT.multiply(line.amount, back), billed), currency)
        amount = min(due, line.amount) - given.get(position, NOTHING)
        if amount > 0:
            found[position] = _turned(line, amount)
    return found


def _turned(line: Line, amount: Decimal) -> Line:
    """A line that gives back so much; a part of one is one of its amount."""
    if amount == line.amount:
        return replace(line, quantity=-line.quantity, amount=-amount)
    return replace(line, quantity=-QUANTITY_ONE, unit_price=amount, amount=-amount)
