"""What many share: nobody has more than its share, and whoever is new gets some."""

from __future__ import annotations

import random

import pytest

from gateway.http.fair_share import FairShares


def fill(shares: FairShares, organization_id: int, amount: int = 1) -> int:
    """Take until it is refused; what one has then."""
    while shares.acquire(organization_id, amount):
        pass
    return shares.used_by(organization_id)


def test_one_has_its_share_and_no_more() -> None:
    shares = FairShares(2000, 500)
    assert fill(shares, 1) == 500
    assert shares.acquire(2)
    shares.release(1)
    assert shares.acquire(1)


@pytest.mark.parametrize("organizations", [1, 2, 4, 8])
def test_where_some_have_all_they_can_a_newcomer_gets_some(organizations: int) -> None:
    shares = FairShares(2000, 500)
    for _ in range(3):
        for organization_id in range(organizations):
            fill(shares, organization_id)
    assert shares.used < 2000
    assert shares.acquire(10_000)
    assert shares.used <= 2000


def test_the_whole_may_be_ones_alone() -> None:
    shares = FairShares(3, 3)
    assert fill(shares, 1) == 3
    assert not shares.acquire(2)


def test_a_share_is_one_at_least_and_all_of_it_may_come_at_once() -> None:
    assert FairShares(2, 0).acquire(1)
    shares = FairShares(128, 32)
    assert shares.acquire(1, 32)
    assert not shares.acquire(1)
    assert not shares.acquire(2, 33)


def test_what_is_given_back_is_there_again_to_the_last() -> None:
    draw, shares, held = random.Random(5), FairShares(1000, 250), list[tuple[int, int]]()
    for _ in range(5000):
        if held and draw.random() < 0.5:
            shares.release(*held.pop(draw.randrange(len(held))))
        else:
            wanted = (draw.randrange(20), draw.randrange(1, 90))
            if shares.acquire(*wanted):
                held.append(wanted)
        assert shares.used == sum(amount for _, amount in held) <= 1000
    while held:
        shares.release(*held.pop())
    assert shares.used == 0
    assert not shares._has
