"""The figures at the top of an invoice's page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple


# The movements of an account that an invoice bills: boxes of days and sequence numbers (seqs).
#
# When an invoice becomes final, it takes the movements of its days, up to a seq, that no final invoice has.
# A voided invoice releases them. So each movement belongs to at most one final invoice. Pure.
class Cover(NamedTuple):
    """The movements that an invoice covers: days from `since` to `until` (excluded), up to the seq `upto`."""

    invoice_id: int
    since: datetime
    until: datetime
    upto: int
    finalized_at: datetime
    voided_at: datetime | None = None


class Box(NamedTuple):
    """Movements from `since` to `until` (excluded) with sequence numbers above `after`, up to `upto`."""

    since: datetime
    until: datetime
    after: int
    upto: int


# A range of seqs above the first number, up to the second, and the position of its invoice.
Part = tuple[int, int, int]


def boxes(covers: Sequence[Cover], wanted: Cover) -> list[Box]:
    """Return the boxes (days and sequence numbers) of the movements that the invoice `wanted` bills.

    Movements that an earlier invoice in `covers` bills are excluded.
    """
    bounds = {wanted.since, wanted.until}
    for cover in covers:
        bounds |= {day for day in (cover.since, cover.until) if wanted.since < day < wanted.until}
    found: list[Box] = []
    days = sorted(bounds)
    for since, until in pairwise(days):
        here = [cover for cover in covers if cover.since <= since and until <= cover.until]
        for after, upto in _parts(here, wanted):
            if found and found[-1] == Box(found[-1].since, since, after, upto):
                found[-1] = Box(found[-1].since, until, after, upto)
            else:
                found.append(Box(since, until, after, upto))
    return found


def _parts(covers: Sequence[Cover], wanted: Cover) -> list[tuple[int, int]]:
    """Return the ranges of sequence numbers that the invoice `wanted` bills in one span of days.

    `covers` are the earlier invoices with movements of these days.
    """
    if all(cover.voided_at is None for cover in covers):
        after = max((cover.upto for cover in covers), default=0)
        return [(after, wanted.upto)] if after < wanted.upto else []
    events = [(cover.finalized_at, place, True, cover) for place, cover in enumerate(covers)]
    for place, cover in enumerate(covers):
        if cover.voided_at is not None and cover.voided_at < wanted.finalized_at:
            events.append((cover.voided_at, place + 1, False, cover))
    taken: list[Part] = []
    for _, _, takes, each in sorted(events, key=lambda event: event[:2]):
        if takes:
            taken = sorted([*taken, *((a, b, each.invoice_id) for a, b in _free(taken, each.upto))])
        else:
            taken = [part for part in taken if part[2] != each.invoice_id]
    return _free(taken, wanted.upto)


def _free(taken: Sequence[Part], upto: int) -> list[tuple[int, int]]:
    """Return the ranges of sequence numbers up to `upto` outside of `taken`, whose parts are in order.

    Each range is above its first number, up to its second.
    """
    found, at = [], 0
    for after, end, _ in taken:
        if after > at:
            found.append((at, min(after, upto)))
        at = max(at, end)
    found.append((at, upto))
    return [(after, end) for after, end in found if after < end]
