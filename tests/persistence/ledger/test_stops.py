"""What contradicts the ledger waits; accepted by a person it is set aside, raw, and its account goes on."""

from __future__ import annotations

import psycopg

from persistence.ledger.writer import LedgerWriter
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
    with psycopg.connect(migrated) as connection:
        connection.execute("UPDATE quarantine SET released_at = NULL")
    await release(migrated, name, accept=True)
    assert rows_of(migrated, "SELECT first_seq, last_seq FROM lost_event") == []
    assert (await writer.write(waiting)).rows == {"token_ledger": 1, "call": 1}
    assert await broken(migrated) == []
