"""What is given back of an invoice: all, or parts that never come to more than was billed."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.invoice import BillLine, bill, partial_note, whole_note
from gateway.errors import Conflict, Unprocessable
from tests.core.billing.test_invoice import totals, worked_example

MADE = bill(worked_example())
TOTAL = sum(totals(MADE), Decimal(0))
LINES = dict(enumerate(MADE.lines, 1))
INFORMATION, TAX = 5, 8


def test_a_whole_note_gives_back_line_by_line() -> None:
    note = whole_note(LINES, {})
    assert sum((line.amount for line in note.values()), TOTAL) == 0
    assert "credits_consumed" not in {line.kind for line in note.values()}
    assert [line.quantity for line in note.values()] == [
        -line.quantity for line in LINES.values() if line.kind != "credits_consumed"
    ]


def test_part_of_a_line_comes_with_its_tax_and_the_rest_follows() -> None:
    note = partial_note(LINES, {}, {4: Decimal("30.00"), 1: None}, "USD")
    assert {position: str(line.amount) for position, line in note.items()} == {
        4: "-30.00", 1: "-14.50", TAX: "-8.90",
    }  # fmt: skip
    assert (note[4].quantity, note[4].unit_price) == (-1, Decimal("30.00"))
    assert note[1].quantity == -15
    given_back = {position: -line.amount for position, line in note.items()}
    rest = whole_note(LINES, given_back)
    assert 1 not in rest
    assert str(rest[4].amount) == "-50.00"
    total = sum((line.amount for line in (*note.values(), *rest.values())), TOTAL)
    assert total == 0
    everything = {position: line.amount for position, line in LINES.items()}
    with pytest.raises(Conflict):
        whole_note(LINES, everything)


@pytest.mark.parametrize(
    ("position", "amount"),
    [(4, "80.01"), (4, "0"), (4, "-1"), (4, "0.001"), (INFORMATION, None), (TAX, "1"), (99, None)],
)
def test_what_cannot_be_given_back_is_named(position: int, amount: str | None) -> None:
    asked = {position: None if amount is None else Decimal(amount)}
    with pytest.raises(Unprocessable) as refused:
        partial_note(LINES, {}, asked, "USD")
    assert [name for name, _ in refused.value.errors] == [f"lines.{position}"]


@given(parts=st.lists(st.integers(1, 9_000), min_size=1, max_size=8))
def test_parts_come_to_the_whole_whatever_they_are(parts: list[int]) -> None:
    back: dict[int, Decimal] = {}

    def keep(note: dict[int, BillLine]) -> None:
        for position, line in note.items():
            back[position] = back.get(position, Decimal(0)) - line.amount

    for cents in parts:
        asked = Decimal(cents) / 100
        if asked <= LINES[4].amount - back.get(4, Decimal(0)):
            keep(partial_note(LINES, back, {4: asked}, "USD"))
        assert all(back[position] <= LINES[position].amount for position in back)
    keep(whole_note(LINES, back))
    assert sum(back.values()) == TOTAL
