"""Allocates uses of credits to the grants that pay for them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

NEVER = 2**63


@dataclass(frozen=True, slots=True)
class CreditGrant:
    """Added credits. A lower `priority` is used first. They never expire if `expires_ms` is None."""

    id: int
    amount: int
    priority: int = 100
    expires_ms: int | None = None
    promotional: bool = False

    @property
    def order(self) -> tuple[int, int, bool, int]:
        """The sort key of grants: among several, the grant with the lowest key pays first."""
        return (self.priority, self.until_ms, not self.promotional, self.id)

    @property
    def until_ms(self) -> int:
        """The first Unix ms at which the grant no longer pays; `NEVER` if it does not expire."""
        return NEVER if self.expires_ms is None else self.expires_ms


@dataclass(frozen=True, slots=True)
class ExpiredGrant:
    """A grant that has expired, with its organization."""

    id: int
    organization_id: int


@dataclass(frozen=True, slots=True)
class Outflow:
    """Credits that left an account with the movement `seq`. `grant_id` is set if a grant expired."""

    seq: int
    at_ms: int
    amount: int
    grant_id: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A part of an outflow, and the grant that pays for it; None is debt.

    A negative amount removes debt that a later grant pays.
    """

    seq: int
    grant_id: int | None
    amount: int


@dataclass(slots=True)
class Allocator:
    """The grants of one account with their remaining amounts, and its debts, oldest first."""

    rests: dict[int, int] = field(default_factory=dict)
    _queue: list[tuple[tuple[int, int, bool, int], CreditGrant]] = field(default_factory=list)
    _debts: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def resume(cls, grants: Iterable[tuple[CreditGrant, int]], debts: Iterable[tuple[int, int]]) -> Allocator:
        """Restore an allocator: the grants with their remaining amounts, and the debts as (seq, amount)."""
        allocator = cls(_debts=sorted(debts))
        for grant, rest in grants:
            allocator.rests[grant.id] = rest
            if rest > 0:
                heappush(allocator._queue, (grant.order, grant))
        return allocator

    def left_of(self, grant_id: int) -> int:
        return self.rests.get(grant_id, 0)

    def add_grant(self, grant: CreditGrant, first: Collection[int] = ()) -> list[Allocation]:
        """Add a grant of credits, which pays debts and then later outflows; return the payments of debts.

        Debts whose seq is in `first` are paid before others.
        """
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
        """Pay an outflow from the grants valid at its time; the rest becomes debt. Return these parts."""
        left, allocations = outflow.amount, list[Allocation]()

        def pay_from(grant_id: int) -> None:
            nonlocal left
            if part := min(left, self.left_of(grant_id)):
                self.rests[grant_id] -= part
                left -= part
                allocations.append(Allocation(outflow.seq, grant_id, part))

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
            allocations.append(Allocation(outflow.seq, None, left))
        return allocations


def settled(allocations: Iterable[Allocation]) -> dict[tuple[int, int | None], int]:
    """Return the sum of the allocations of each (seq, grant id); pairs whose sum is zero are missing."""
    sums: dict[tuple[int, int | None], int] = {}
    for allocation in allocations:
        place = (allocation.seq, allocation.grant_id)
        sums[place] = sums.get(place, 0) + allocation.amount
    return {place: amount for place, amount in sums.items() if amount}
