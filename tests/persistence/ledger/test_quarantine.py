"""What contradicts the ledger waits; accepted by a person it is set aside, raw, and its account goes on."""

from __future__ import annotations

import pytest

from persistence.ledger.guard import Movement, misfit
from persistence.ledger.writer import LedgerWriter
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, broken, release, rows_of, settle_in


async def rivals(url: str, writer: LedgerWriter) -> tuple[Account, Account]:
    """Two histories of one tenant that part behind its first movement; the first one is stored."""
    [account] = settle_in(url, 1000)
    account.reset()
    first = list(account.entries)
    other = Account(account.organization_id, account.tenant_id)
    other.seq, other.cycle, other.remaining = account.seq, account.cycle, account.remaining
    account.consume(10)
    account.consume(20)
    account.entries = [*first, *account.entries[len(first) :]]
    await writer.write(batch_of(account))
    return account, other


async def test_accepted_contradictions_become_dead_letters_and_the_break_is_on_file(
    migrated: str, writer: LedgerWriter
) -> None:
    account, other = await rivals(migrated, writer)
    for tokens in (7, 8, 9):
        other.consume(tokens)
    batch = batch_of(other)
    name = f"tenant:{account.tenant_id}"
    assert (await writer.write(batch)).quarantined == [name]

    # Judged again it waits again: releasing alone drops nothing.
    await release(migrated, name)
    again = await writer.write(batch)
    assert (again.quarantined, again.rows, again.acknowledged) == ([name], {}, {})

    await release(migrated, name, accept=True)
    report = await writer.write(batch)
    assert (report.dead_letters, report.rows, report.held) == (2, {"token_ledger": 1, "call": 1}, 0)
    assert rows_of(migrated, "SELECT seq, amount, total_remaining FROM token_ledger ORDER BY seq") == [
        (1, 1000, 1000), (2, 10, 990), (3, 20, 970), (4, 9, 976),
    ]  # fmt: skip
    assert rows_of(migrated, "SELECT account, seq, difference FROM known_drift") == [(name, 3, 15)]
    letters = rows_of(migrated, "SELECT organization_id, tenant_id, token_seq, reason FROM dead_letter")
    assert [row[:3] for row in letters] == [(account.organization_id, account.tenant_id, None)] * 2
    assert all("set aside: a test" in str(row[3]) for row in letters)
    found = await broken(migrated)
    assert [one for one in found if one.invariant != "quota"] == []

    # What comes in later is judged as ever.
    late = Account(account.organization_id, account.tenant_id, seq=1, cycle=1, remaining=1000)
    late.consume(5)
    late.entries = [(b"99999999999999-0", late.entries[0][1])]
    assert (await writer.write(batch_of(late))).quarantined == [name]


async def test_accepted_entries_of_an_unknown_account_become_dead_letters(
    migrated: str, writer: LedgerWriter
) -> None:
    [account] = settle_in(migrated, 1000)
    stranger = Account(account.organization_id, 999_999, 10)
    stranger.reset()
    stranger.mark(blocked=True)
    account.reset()
    batch = batch_of(stranger, account)
    assert (await writer.write(batch)).quarantined == ["tenant:999999"]
    await release(migrated, "tenant:999999", accept=True)
    report = await writer.write(batch)
    assert (report.dead_letters, report.held) == (2, 0)
    assert (
        rows_of(migrated, "SELECT organization_id, tenant_id FROM dead_letter")
        == [(account.organization_id, 999_999)] * 2
    )
    assert await broken(migrated) == []


async def test_a_gap_that_was_filled_meanwhile_is_not_accepted_again(
    migrated: str, writer: LedgerWriter
) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    account.consume(1)
    account.consume(2)
    missing = batch_of(account)
    account.consume(3)
    waiting = batch_of(account)
    name = f"tenant:{account.tenant_id}"
    assert (await writer.write(waiting)).quarantined == [name]
    # It turns up although the account is noted as stopped: as in a database restored to a later moment.
    await release(migrated, name)
    await writer.write(missing)
    with connected(migrated) as connection:
        connection.execute("UPDATE quarantine SET released_at = NULL")
    await release(migrated, name, accept=True)
    assert rows_of(migrated, "SELECT first_seq, last_seq FROM lost_event") == []
    assert (await writer.write(waiting)).rows == {"token_ledger": 1, "call": 1}
    assert await broken(migrated) == []


# --- refill -----------------------------------------------------------------------------
# A movement goes back into its place only where both neighbours agree with it.


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
    assert misfit(movement(1, 100, 100, epoch=0), 0, {}, {}, listed=False) is None
    assert misfit(movement(1, 100, 90), 0, {}, {}, listed=False)


def test_a_drift_on_file_counts_behind_its_movement() -> None:
    around = {4: BEFORE, 6: AFTER}
    assert misfit(movement(5, -10, 83), 6, around, {4: 3, 5: -3}, listed=True) is None
    assert misfit(movement(1, 100, 100), 2, {2: movement(2, -7, 96)}, {1: 3}, listed=True) is None


def test_spend_begins_anew_with_each_month_and_unlimited_chains_to_unlimited() -> None:
    march, april = Movement("spend:1", 1, 1, 50, 50, 3), Movement("spend:1", 2, 1, 7, 7, 4)
    assert misfit(april, 1, {1: march}, {}, listed=False) is None
    assert misfit(Movement("spend:1", 2, 1, 7, 7, 3), 1, {1: march}, {}, listed=False)
    assert misfit(movement(5, -1, None), 5, {4: movement(4, -1, None)}, {}, listed=True) is None
