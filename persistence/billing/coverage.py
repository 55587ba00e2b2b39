"""Which movements of an account an invoice bills: boxes of days and of seqs, found from what finals cover.

An invoice takes, when it becomes final, the movements of its days up to a seq that no final invoice has.
One that is made void gives up what it took. So each movement has one final invoice at most, whatever was
made void and made again. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple


class Cover(NamedTuple):
    """What an invoice reaches of an account: days from `since` to `until` (not included), up to a seq."""

    invoice_id: int
    since: datetime
    until: datetime
    upto: int
    finalized_at: datetime
    voided_at: datetime | None = None


class Box(NamedTuple):
    """Movements from `since` to `until` (not included) with a seq above `after`, up to `upto`."""

    since: datetime
    until: datetime
    after: int
    upto: int


# Seqs above the first, up to the second, and whose they are.
Part = tuple[int, int, int]


def boxes(covers: Sequence[Cover], wanted: Cover) -> list[Box]:
    """What an invoice has of an account, given all that were final before it, in the order they became so."""
    bounds = {wanted.since, wanted.until}
    for each in covers:
        bounds |= {day for day in (each.since, each.until) if wanted.since < day < wanted.until}
    found: list[Box] = []
    days = sorted(bounds)
    for since, until in pairwise(days):
        here = [each for each in covers if each.since <= since and until <= each.until]
        for after, upto in _parts(here, wanted):
            if found and found[-1] == Box(found[-1].since, since, after, upto):
                found[-1] = Box(found[-1].since, until, after, upto)
            else:
                found.append(Box(since, until, after, upto))
    return found


def _parts(covers: Sequence[Cover], wanted: Cover) -> list[tuple[int, int]]:
    """The seqs of one stretch of days that are the wanted invoice's."""
    if all(each.voided_at is None for each in covers):
        after = max((each.upto for each in covers), default=0)
        return [(after, wanted.upto)] if after < wanted.upto else []
    events = [(each.finalized_at, place, True, each) for place, each in enumerate(covers)]
    for place, each in enumerate(covers):
        if each.voided_at is not None and each.voided_at < wanted.finalized_at:
            events.append((each.voided_at, place + 1, False, each))
    taken: list[Part] = []
    for _, _, takes, each in sorted(events, key=lambda event: event[:2]):
        if takes:
            taken = sorted([*taken, *((a, b, each.invoice_id) for a, b in _free(taken, each.upto))])
        else:
            taken = [part for part in taken if part[2] != each.invoice_id]
    return _free(taken, wanted.upto)


def _free(taken: Sequence[Part], upto: int) -> list[tuple[int, int]]:
    """Seqs up to one that nobody has; parts are in order, and none overlaps another."""
    found, at = [], 0
    for after, end, _ in taken:
        if after > at:
            found.append((at, min(after, upto)))
        at = max(at, end)
    found.append((at, upto))
    return [(after, end) for after, end in found if after < end <= upto]
