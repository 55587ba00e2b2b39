"""How much money there may be in one place, so that whatever is taken in can be billed. Pure.

A price and a quantity that people say are looked at together: what they come to has a maximum. So has an
invoice: what is beyond it waits for another one. Sums below both are exact, and fit their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from gateway.core.billing.charge import Charge
from gateway.core.billing.pricing import EXACT, NANO, times

# What a price and a quantity that somebody says come to at most, in units of their currency.
PRODUCT_MAX = 10**12
# What one event, amendment or adjustment has used beyond a plan or a balance comes to at most.
MOVE_MAX = 10**10
# What a token beyond a plan costs at most.
TOKEN_PRICE_MAX = 1_000
# What the charges of one invoice come to at most, those that bill and those that give back each; and how many
# units they are for. Columns of lines have room for ten times as much: tax comes on top.
INVOICE_MAX = 10**15
INVOICE_UNITS_MAX = 10**17


def too_many(quantity: int, unit_price: Decimal | None, most: int = PRODUCT_MAX) -> str | None:
    """Why a quantity is too large at a price, and what would be right; None where it is not."""
    if unit_price is None or times(abs(quantity), unit_price) <= most:
        return None
    right = EXACT.divide_int(Decimal(most), unit_price)
    return f"must be at most {right:f} at {unit_price:f} each: no more than {most} can be billed of it"


def too_dear(unit_price: Decimal | None, quantity: int, most: int = PRODUCT_MAX) -> str | None:
    """Why a price is too high for a quantity, and what would be right; None where it is not."""
    if unit_price is None or times(abs(quantity), unit_price) <= most:
        return None
    right = EXACT.normalize(EXACT.divide_int(Decimal(most * NANO), Decimal(abs(quantity))).scaleb(-9))
    return f"must be at most {right:f} for {abs(quantity)}: no more than {most} can be billed of it"


class Borne(NamedTuple):
    """Charges that one invoice has, and those that are left for another one."""

    taken: Sequence[Charge]
    left: Sequence[Charge]


NOTHING = Borne((), ())


def borne(charges: Sequence[Charge]) -> Borne:
    """What one invoice bears of charges: the first of them first, each that there is room for."""
    taken, left = [], []
    room = dict.fromkeys((False, True), (Decimal(INVOICE_MAX), Decimal(INVOICE_UNITS_MAX)))
    for charge in charges:
        is_back = charge.amount < 0
        money = EXACT.subtract(room[is_back][0], abs(charge.amount))
        units = EXACT.subtract(room[is_back][1], abs(charge.quantity))
        if min(money, units) < 0:
            left.append(charge)
        else:
            room[is_back] = (money, units)
            taken.append(charge)
    return Borne(taken, left)


def left_out(charges: Sequence[Charge], currency: str) -> str:
    """What an invoice says of charges that it left; empty where it left none."""
    if not charges:
        return ""
    total = Decimal(0)
    for charge in charges:
        total = EXACT.add(total, charge.amount)
    named = f"charge {charges[0].id}" if charges[0].id else f"a charge of {charges[0].day}"
    first = named if len(charges) == 1 else f"{len(charges)} charges, the first of them {named}"
    return (
        f"Not on this invoice: {first}, {EXACT.normalize(total):f} {currency} in all."
        f" One invoice bears at most {INVOICE_MAX:,} {currency}."
    )
