"""What many share: nobody has more than its share, and whoever is new gets some."""

from __future__ import annotations

import random

import pytest

from gateway.http.budget import Budget


def fill(budget: Budget, organization_id: int, amount: int = 1) -> int:
    """Take until it is refused; what one has then."""
    while budget.acquire(organization_id, amount):
        pass
    return budget.used_by(organization_id)


def test_one_has_its_share_and_no_more() -> None:
    budget = Budget(2000, 500)
    assert fill(budget, 1) == 500
    assert budget.acquire(2)
    budget.release(1)
    assert budget.acquire(1)


@pytest.mark.parametrize("organizations", [1, 2, 4, 8])
def test_where_some_have_all_they_can_a_newcomer_gets_some(organizations: int) -> None:
    budget = Budget(2000, 500)
    for _ in range(3):
        for organization_id in range(organizations):
            fill(budget, organization_id)
    assert budget.used < 2000
    assert budget.acquire(10_000)
    assert budget.used <= 2000


def test_the_whole_may_be_ones_alone() -> None:
    budget = Budget(3, 3)
    assert fill(budget, 1) == 3
    assert not budget.acquire(2)


def test_a_share_is_one_at_least_and_all_of_it_may_come_at_once() -> None:
    assert Budget(2, 0).acquire(1)
    budget = Budget(128, 32)
    assert budget.acquire(1, 32)
    assert not budget.acquire(1)
    assert not budget.acquire(2, 33)


def test_what_is_given_back_is_there_again_to_the_last() -> None:
    draw, budget, held = random.Random(5), Budget(1000, 250), list[tuple[int, int]]()
    for _ in range(5000):
        if held and draw.random() < 0.5:
            budget.release(*held.pop(draw.randrange(len(held))))
        else:
            wanted = (draw.randrange(20), draw.randrange(1, 90))
            if budget.acquire(*wanted):
                held.append(wanted)
        assert budget.used == sum(amount for _, amount in held) <= 1000
    while held:
        budget.release(*held.pop())
    assert budget.used == 0
    assert not budget._has
