"""A movement goes back into its place only where both neighbours agree with it."""

from __future__ import annotations

import pytest

from persistence.ledger.guard import Movement, misfit

ACCOUNT = "tenant:1"


def movement(seq: int, delta: int, balance: int | None, epoch: int = 1) -> Movement:
    return Movement(ACCOUNT, seq, epoch, delta, balance)


BEFORE, AFTER = movement(4, -10, 90), movement(6, -5, 75)


@pytest.mark.parametrize("around", [{}, {4: BEFORE}, {6: AFTER}, {4: BEFORE, 6: AFTER}])
def test_what_fits_fits_wherever_neighbours_are_known(around: dict[int, Movement]) -> None:
    assert misfit(movement(5, -10, 80), 6, around, {}, listed=True) is None


@pytest.mark.parametrize(
    ("found", "head", "listed"),
    [
        (movement(5, -11, 80), 6, True),
        (movement(5, -9, 81), 6, True),
        (movement(5, -10, 80, epoch=0), 6, True),
        (movement(5, -10, 80, epoch=2), 6, True),
        (movement(5, -10, 80), 6, False),
        (movement(4, -10, 90), 6, True),
        (movement(9, -10, 80), 6, False),
    ],
)
def test_what_does_not_fit_is_said(found: Movement, head: int, *, listed: bool) -> None:
    assert misfit(found, head, {4: BEFORE, 6: AFTER}, {}, listed=listed)


def test_the_next_place_needs_no_listing_and_the_first_begins_at_zero() -> None:
    assert misfit(movement(1, 100, 100), 0, {}, {}, listed=False) is None
    assert misfit(movement(1, 100, 90), 0, {}, {}, listed=False)


def test_a_drift_on_file_counts_behind_its_movement() -> None:
    around = {4: BEFORE, 6: AFTER}
    assert misfit(movement(5, -10, 83), 6, around, {4: 3, 5: -3}, listed=True) is None


def test_spend_begins_anew_with_each_month_and_unlimited_chains_to_unlimited() -> None:
    march, april = Movement("spend:1", 1, 1, 50, 50, 3), Movement("spend:1", 2, 1, 7, 7, 4)
    assert misfit(april, 1, {1: march}, {}, listed=False) is None
    assert misfit(Movement("spend:1", 2, 1, 7, 7, 3), 1, {1: march}, {}, listed=False)
    assert misfit(movement(5, -1, None), 5, {4: movement(4, -1, None)}, {}, listed=True) is None
