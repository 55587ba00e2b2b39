"""Which grant of credits paid for which use: priority, then expiry, then promotional before paid, then id.

Movements come in the order of their seq, which is the order of their time. What no grant covers
is debt, and the next grant covers it first. Exact: every outflow is allocated to the last
credit, no grant gives more than it has, and none gives after its moment of expiry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

NEVER = 2**63


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that were added. A lower `priority` is used first; `expires_ms` None is never."""

    id: int
    amount: int
    priority: int = 100
    expires_ms: int | None = None
    promotional: bool = False

    @property
    def order(self) -> tuple[int, int, bool, int]:
        """Its place among the grants that could pay."""
        return (self.priority, self.until_ms, not self.promotional, self.id)

    @property
    def until_ms(self) -> int:
        """The first millisecond it no longer pays."""
        return NEVER if self.expires_ms is None else self.expires_ms


@dataclass(frozen=True, slots=True)
class ExpiredGrant:
    """A grant whose moment of expiry has passed, and whose it is."""

    id: int
    organization_id: int


@dataclass(frozen=True, slots=True)
class Outflow:
    """Credits that left at a place of the account. `grant_id` where they are one grant's expiry."""

    seq: int
    at_ms: int
    amount: int
    grant_id: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """Part of an outflow and the grant that covers it; None is debt.

    A negative amount takes debt back that a later grant covers.
    """

    seq: int
    grant_id: int | None
    amount: int


@dataclass(slots=True)
class Allocator:
    """The grants of one account with what is left of them, and its debts, oldest first."""

    rests: dict[int, int] = field(default_factory=dict)
    _queue: list[tuple[tuple[int, int, bool, int], Grant]] = field(default_factory=list)
    _debts: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def resume(cls, grants: Iterable[tuple[Grant, int]], debts: Iterable[tuple[int, int]]) -> Allocator:
        """Go on where an earlier run ended: grants with what is left, debts as (seq, amount)."""
        allocator = cls(_debts=sorted(debts))
        for grant, rest in grants:
            allocator.rests[grant.id] = rest
            if rest > 0:
                heappush(allocator._queue, (grant.order, grant))
        return allocator

    def left_of(self, grant_id: int) -> int:
        """What a grant has not paid for."""
        return self.rests.get(grant_id, 0)

    def add_grant(self, grant: Grant, first: Collection[int] = ()) -> list[Allocation]:
        """Add a grant: it covers debts, those `first` of which it says the seq; the rest pays from now on."""
        assert grant.amount > 0
        assert grant.id not in self.rests
        rest, covered = grant.amount, []
        if first:
            self._debts.sort(key=lambda debt: (debt[0] not in first, debt))
        while rest and self._debts:
            seq, owed = self._debts[0]
            part = min(rest, owed)
            covered += [Allocation(seq, None, -part), Allocation(seq, grant.id, part)]
            rest -= part
            if part == owed:
                self._debts.pop(0)
            else:
                self._debts[0] = (seq, owed - part)
        if first:
            self._debts.sort()
        self.rests[grant.id] = rest
        if rest:
            heappush(self._queue, (grant.order, grant))
        return covered

    def pay(self, outflow: Outflow) -> list[Allocation]:
        """Allocate an outflow to the grants that pay at its time; what is left is debt."""
        left, found = outflow.amount, list[Allocation]()

        def pay_from(grant_id: int) -> None:
            nonlocal left
            if part := min(left, self.left_of(grant_id)):
                self.rests[grant_id] -= part
                left -= part
                found.append(Allocation(outflow.seq, grant_id, part))

        if outflow.grant_id is not None:
            pay_from(outflow.grant_id)
        while left and self._queue:
            grant = self._queue[0][1]
            if grant.until_ms <= outflow.at_ms or not self.rests[grant.id]:
                heappop(self._queue)
            else:
                pay_from(grant.id)
        if left:
            self._debts.append((outflow.seq, left))
            found.append(Allocation(outflow.seq, None, left))
        return found


def settled(allocations: Iterable[Allocation]) -> dict[tuple[int, int | None], int]:
    """Add allocations up by outflow and grant; what came to nothing is left out."""
    sums: dict[tuple[int, int | None], int] = {}
    for each in allocations:
        place = (each.seq, each.grant_id)
        sums[place] = sums.get(place, 0) + each.amount
    return {place: amount for place, amount in sums.items() if amount}
