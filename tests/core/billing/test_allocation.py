"""Credits are allocated to the last one, in the stated order, from no grant more than it has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.charges import Allocation, Allocator, CreditGrant, Outflow, settled

DAY_MS = 86_400_000


def amounts(found: list[Allocation]) -> list[tuple[int | None, int]]:
    return [(each.grant_id, each.amount) for each in found]


def test_priority_then_expiry_then_promotional_then_id() -> None:
    allocator = Allocator()
    for grant in (
        CreditGrant(1, 10),
        CreditGrant(2, 10, promotional=True),
        CreditGrant(3, 10, expires_ms=9 * DAY_MS),
        CreditGrant(4, 10, priority=200, expires_ms=1 * DAY_MS),
        CreditGrant(5, 10, expires_ms=8 * DAY_MS),
        CreditGrant(6, 10, promotional=True),
    ):
        allocator.add_grant(grant)
    found = allocator.pay(Outflow(1, 0, 60))
    assert [grant for grant, _ in amounts(found)] == [5, 3, 2, 6, 1, 4]


def test_an_expired_grant_no_longer_pays_and_keeps_its_rest() -> None:
    allocator = Allocator()
    allocator.add_grant(CreditGrant(1, 10, expires_ms=100))
    allocator.add_grant(CreditGrant(2, 10))
    assert amounts(allocator.pay(Outflow(1, 99, 4))) == [(1, 4)]
    assert amounts(allocator.pay(Outflow(2, 100, 4))) == [(2, 4)]
    assert allocator.left_of(1) == 6
    assert amounts(allocator.pay(Outflow(3, 101, 6, grant_id=1))) == [(1, 6)]
    assert (allocator.left_of(1), allocator.left_of(2)) == (0, 6)


def test_debt_is_covered_by_the_next_grant() -> None:
    allocator = Allocator()
    assert amounts(allocator.pay(Outflow(1, 0, 30))) == [(None, 30)]
    assert amounts(allocator.add_grant(CreditGrant(1, 20))) == [(None, -20), (1, 20)]
    assert allocator.left_of(1) == 0
    assert amounts(allocator.add_grant(CreditGrant(2, 50))) == [(None, -10), (2, 10)]
    assert allocator.left_of(2) == 40


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("grant"), st.integers(1, 200), st.integers(0, 3),
            st.none() | st.integers(1, 400), st.booleans(),
        ),
        st.tuples(st.just("use"), st.integers(1, 150), st.integers(0, 40)),
        st.tuples(st.just("expire")),
    ),
    max_size=40,
)  # fmt: skip


@given(events=EVENTS, cuts=st.sets(st.integers(0, 40)))
def test_every_credit_is_allocated_once_and_resuming_changes_nothing(
    events: list[tuple[object, ...]], cuts: set[int]
) -> None:
    """One run, and one that is put down and taken up again at every cut, agree on everything."""
    whole, parts = Allocator(), Allocator()
    grants: dict[int, CreditGrant] = {}
    found: list[Allocation] = []
    again: list[Allocation] = []
    outflows: dict[int, int] = {}
    at = balance = 0
    for seq, event in enumerate(events):
        if seq in cuts:
            sums = settled(again)
            debts = [(s, n) for (s, grant), n in sums.items() if grant is None]
            parts = Allocator.resume([(g, parts.left_of(g.id)) for g in grants.values()], debts)
        match event:
            case ("grant", int(amount), int(priority), until, bool(promotional)):
                expires = at + until if isinstance(until, int) else None
                grant = grants[seq] = CreditGrant(seq, amount, priority, expires, promotional)
                found += whole.add_grant(grant)
                again += parts.add_grant(grant)
                balance += amount
                continue
            case ("use", int(amount), int(later)):
                at += later
                outflow = Outflow(seq, at, amount)
            case _:
                due = [g for g in grants.values() if g.until_ms <= at and whole.left_of(g.id)]
                if not due:
                    continue
                outflow = Outflow(seq, at, whole.left_of(due[0].id), grant_id=due[0].id)
        outflows[seq] = outflow.amount
        balance -= outflow.amount
        found += whole.pay(outflow)
        again += parts.pay(outflow)
    sums = settled(found)
    assert sums == settled(again)
    assert all(amount > 0 for amount in sums.values())
    for seq, amount in outflows.items():
        assert sum(n for (s, _), n in sums.items() if s == seq) == amount
    for grant in grants.values():
        given_ = sum(n for (_, g), n in sums.items() if g == grant.id)
        assert given_ + whole.left_of(grant.id) == grant.amount
    owed = sum(n for (_, grant), n in sums.items() if grant is None)
    assert balance == sum(whole.rests.values()) - owed
