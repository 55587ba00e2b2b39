"""What is handed over: lines that come to the same however many there may be, and pauses with an end."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.features.stripe.handover import RETRIES, PayableLine, folded

KINDS = ("usage", "overage", "tax")
AMOUNTS = st.decimals(min_value=-1000, max_value=1000, places=2)
LINES = st.lists(st.tuples(st.sampled_from("abcdefgh"), AMOUNTS, st.sampled_from(KINDS)), max_size=40)


@given(LINES, st.integers(len(KINDS), 40))
def test_invoice_lines_merged_for_stripe_keep_the_total_and_stay_within_the_line_maximum(
    drawn: list[tuple[str, Decimal, str]], most: int
) -> None:
    lines = [PayableLine(at, said, amount, kind) for at, (said, amount, kind) in enumerate(drawn, 1)]
    told = folded(lines, most)
    assert sum(Fraction(line.amount) for line in told) == sum(Fraction(amount) for _, amount, _ in drawn)
    assert len(told) <= most
    assert len({line.position for line in told}) == len(told)
    assert folded(lines, most) == told


def test_few_invoice_lines_are_sent_to_stripe_unmerged_without_lines_of_zero() -> None:
    lines = [
        PayableLine(1, "Chat", Decimal("1.00"), "usage"),
        PayableLine(2, "Credits used", Decimal(0), "credits_consumed"),
    ]
    assert folded(lines) == (lines[0],)
    assert folded(lines[1:]) == (lines[1],)


def test_retries_of_a_transfer_to_stripe_end_after_about_two_days() -> None:
    pauses = [RETRIES.after_s(attempt) for attempt in range(1, 17)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == 15
    assert 24 < sum(known) / 3600 < 72
