"""Each movement is behind one final invoice at most: random histories against a movement by movement walk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from persistence.billing.invoice_build import Cover, boxes

FIRST = datetime(2026, 4, 1, tzinfo=UTC)
DAYS, SEQS = 6, 12


def day(number: int) -> datetime:
    return FIRST + timedelta(days=number)


@given(
    st.lists(
        st.tuples(
            st.integers(0, DAYS - 1), st.integers(1, DAYS), st.integers(0, 3),
            st.none() | st.integers(1, 8),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_boxes_are_what_is_left_to_an_invoice_when_it_becomes_final(
    drawn: list[tuple[int, int, int, int | None]],
) -> None:
    covers, upto = [], 0
    for number, (since, days, more, voided) in enumerate(drawn):
        upto += more
        final = day(100 + 2 * number)
        void = None if voided is None else final + timedelta(days=2 * voided - 1)
        covers.append(Cover(number, day(since), day(min(DAYS, since + days)), upto, final, void))
    for wanted in covers:
        before = [each for each in covers if each.invoice_id < wanted.invoice_id]
        found = boxes(before, wanted)
        for at in range(DAYS):
            for seq in range(1, SEQS):
                inside = [b for b in found if b.since <= day(at) < b.until and b.after < seq <= b.upto]
                assert len(inside) == (owner(covers, wanted, at, seq) == wanted.invoice_id)


def owner(covers: list[Cover], until: Cover, at: int, seq: int) -> int | None:
    """Whose one movement is right after an invoice became final, told moment by moment."""
    has: int | None = None
    moments = sorted({m for c in covers for m in (c.finalized_at, c.voided_at) if m is not None})
    for moment in moments:
        for cover in covers:
            if cover.voided_at == moment and has == cover.invoice_id:
                has = None
        for cover in covers:
            reaches = cover.since <= day(at) < cover.until and seq <= cover.upto
            if cover.finalized_at == moment and reaches and has is None:
                has = cover.invoice_id
        if moment == until.finalized_at:
            break
    return has
