"""What may become a row: redelivery, contradictions, gaps and what cannot be read."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.accounts.flush_batch import fan_out
from gateway.core.accounts.outbox import OutboxEntry
from persistence.ledger.writer import LedgerWriter
from tests.builders import encode
from tests.connections import connected
from tests.persistence.scenario import (
    Account,
    batch_of,
    broken,
    busy,
    entries_of,
    entry_id,
    release,
    rows_of,
    settle_in,
)


async def test_redelivery_changes_nothing(migrated: str, writer: LedgerWriter) -> None:
    accounts = settle_in(migrated, 1000, None)
    for account in accounts:
        busy(account)
    batch = batch_of(*accounts)
    first = await writer.write(batch)
    state = rows_of(migrated, "SELECT * FROM tenant_quota"), rows_of(migrated, "SELECT * FROM usage_daily")
    again = await writer.write(batch)
    assert again.rows == {}
    assert again.acknowledged.keys() == first.acknowledged.keys()
    assert again.entries() == first.entries() == entries_of(batch)
    assert again.quarantined == []
    assert (
        rows_of(migrated, "SELECT * FROM tenant_quota"),
        rows_of(migrated, "SELECT * FROM usage_daily"),
    ) == state
    assert await broken(migrated) == []


async def test_an_entry_delivered_twice_in_one_batch_is_one_row(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    account.consume(10, credits_=1)
    once = account.take()
    batch = fan_out({account.partition: [*once, *once]})
    report = await writer.write(batch)
    assert (report.rows["token_ledger"], report.repeated, report.entries()) == (2, 2, 4)
    assert await broken(migrated) == []


@pytest.mark.parametrize("change", [{"amount": 11}, {"remaining": 5}, {"source": str(uuid.uuid4())}])
async def test_a_reused_seq_with_other_content_is_quarantined_never_dropped(
    migrated: str, writer: LedgerWriter, change: dict[str, object]
) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    event = account.consume(10)
    await writer.write(batch_of(account))
    forged = replace(event, **change)  # type: ignore[arg-type]  # the event's own fields
    account.entries.append((entry_id(), encode(forged)))
    account.consume(1)
    other.reset()
    report = await writer.write(batch_of(account, other))
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert report.held == 2
    assert report.rows == {"token_ledger": 1}
    assert account.partition not in report.acknowledged
    [(kind, stored, found, reason)] = rows_of(
        migrated, "SELECT kind, stored_seq, found_seq, reason FROM quarantine"
    )
    assert (kind, stored, found) == ("conflict", 2, 2)
    assert "is stored as" in str(reason)
    assert await broken(migrated) == []


async def test_a_gap_stops_its_account_and_nobody_else(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    account.consume(1)
    lost = account.take()[1:]
    account.consume(2)
    account.consume(3)
    other.reset()
    waiting = batch_of(account, other)
    report = await writer.write(waiting)
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert (report.held, report.rows) == (2, {"token_ledger": 1})

    # Judged again it still waits, said once only.
    again = await writer.write({account.partition: waiting[account.partition]})
    assert (again.quarantined, again.held, again.rows, again.acknowledged) == ([], 2, {}, {})
    assert len(rows_of(migrated, "SELECT 1 FROM quarantine")) == 1

    # What was missing turns up: released, the account goes on where it stood.
    await release(migrated, f"tenant:{account.tenant_id}")
    first = encode(account_first(account))
    streams = {
        account.partition: [(entry_id(), first), *lost, *((e[0], e[1]) for e in waiting[account.partition])]
    }
    report = await writer.write(fan_out(streams))
    assert (report.held, report.rows) == (0, {"token_ledger": 4, "call": 3})
    assert await broken(migrated) == []


def account_first(account: Account) -> OutboxEntry:
    """The first movement the account made."""
    again = Account(account.organization_id, account.tenant_id, account.total)
    return again.reset()


async def test_an_accepted_gap_is_listed_as_lost(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    account.consume(1)
    account.consume(1)
    account.take()
    account.consume(2)
    batch = batch_of(account)
    assert (await writer.write(batch)).held == 1
    await release(migrated, f"tenant:{account.tenant_id}", accept=True)
    assert (await writer.write(batch)).rows == {"token_ledger": 1, "call": 1}
    assert rows_of(migrated, "SELECT account, first_seq, last_seq FROM lost_event") == [
        (f"tenant:{account.tenant_id}", 2, 3)
    ]
    filed = "SELECT transaction_type, amount, direction, total_remaining FROM token_ledger WHERE seq = 3"
    assert rows_of(migrated, filed) == [("adjust", 2, "OUT", 998)]
    assert await broken(migrated) == []


async def test_accounts_moved_by_one_entry_wait_together(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    account.credit(100)
    account.take()  # lost: the credit account has a gap
    account.consume(1)
    account.consume(2, credits_=5)
    account.consume(3)
    batch = batch_of(account)
    report = await writer.write(batch)
    credits_, tenant = f"credits:{account.organization_id}", f"tenant:{account.tenant_id}"
    assert sorted(report.quarantined) == [credits_, tenant]
    assert (report.rows, report.held) == ({"token_ledger": 1, "call": 1}, 2)
    assert rows_of(migrated, "SELECT account, kind, behind FROM quarantine ORDER BY account") == [
        (credits_, "gap", None),
        (tenant, "behind", credits_),
    ]
    await release(migrated, credits_, accept=True)
    assert (await writer.write(batch)).held == 0
    assert await broken(migrated) == []


async def test_an_account_postgresql_does_not_know_waits(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    stranger = Account(account.organization_id, 999_999, 10)
    stranger.reset()
    stranger.mark(blocked=True)
    report = await writer.write(batch_of(stranger))
    assert (report.quarantined, report.held, report.acknowledged) == (["tenant:999999"], 2, {})
    assert rows_of(migrated, "SELECT kind FROM quarantine") == [("unknown_account",)]


async def test_an_entry_of_another_organization_is_a_conflict(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    mixed = Account(other.organization_id, account.tenant_id, 1000)
    mixed.reset()
    report = await writer.write(batch_of(mixed))
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert "belongs to organization" in str(rows_of(migrated, "SELECT reason FROM quarantine")[0][0])


async def test_an_epoch_never_runs_backwards(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.epoch = 3
    account.reset()
    await writer.write(batch_of(account))
    account.epoch = 2
    account.consume(1)
    assert (await writer.write(batch_of(account))).held == 1
    assert rows_of(migrated, "SELECT epoch FROM tenant_quota") == [(3,)]


async def test_bytes_that_say_nothing_go_to_the_dead_letters_raw(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    good = account.take()
    bad = [(entry_id(), b"\x09not an event"), (entry_id(), b"")]
    report = await writer.write(fan_out({account.partition: [*bad, *good]}))
    assert (report.dead_letters, report.rows) == (2, {"token_ledger": 1})
    assert set(report.acknowledged[account.partition]) == {e[0] for e in (*bad, *good)}
    rows = rows_of(migrated, "SELECT partition, entry_id, raw, reason FROM dead_letter ORDER BY id")
    assert [row[:3] for row in rows] == [(account.partition, id_.decode(), raw) for id_, raw in bad]
    assert all(row[3] for row in rows)


@pytest.mark.parametrize(
    "poison",
    [
        {"source": "not-a-uuid"},
        {"remaining": 2**60},
        {"amount": 2**62},
        {"amount": 2**70},
        {"used": 2**60},
        {"epoch": 2**60},
        {"at_ms": 2**60},
        {"next_reset_ms": 2**62},
        {"service_id": 2**80},
    ],
)
async def test_a_poisonous_event_is_a_listed_gap_of_its_own_account(
    migrated: str, writer: LedgerWriter, poison: dict[str, object]
) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    event = account.consume(10)
    account.entries[-1] = (account.entries[-1][0], encode(replace(event, **poison)))  # type: ignore[arg-type]  # the event's own fields
    other.reset()
    batch = batch_of(account, other)
    report = await writer.write(batch)
    assert (report.dead_letters, report.rows) == (1, {"token_ledger": 2})
    assert report.entries() == entries_of(batch)
    account.consume(5)
    assert (await writer.write(batch_of(account))).rows == {"token_ledger": 1, "call": 1}
    [(tenant, seq, raw)] = rows_of(migrated, "SELECT tenant_id, token_seq, raw FROM dead_letter")
    assert (tenant, seq) == (account.tenant_id, 2)
    assert raw == encode(replace(event, **poison))  # type: ignore[arg-type]  # the event's own fields
    assert rows_of(migrated, "SELECT last_seq, epoch FROM tenant_quota WHERE tenant_id = %s", [tenant]) == [
        (3, 1)
    ]
    assert await broken(migrated) == []
    again = await writer.write(batch)
    assert (again.rows, again.quarantined, again.entries()) == ({}, [], entries_of(batch))


@pytest.mark.parametrize("metadata", [b"{broken", b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":1e999999}'])
async def test_unreadable_metadata_is_set_aside_and_the_charge_stands(
    migrated: str, writer: LedgerWriter, metadata: bytes
) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    event = account.consume(10, credits_=1, units=1, metadata=metadata)
    account.consume(5)
    account.consume(6, metadata=metadata)
    batch = batch_of(account)
    report = await writer.write(batch)
    assert (report.rows["token_ledger"], report.dead_letters, report.entries()) == (4, 2, 4)
    rows = rows_of(migrated, "SELECT amount, metadata FROM token_ledger WHERE seq > 1 ORDER BY seq")
    assert [row[0] for row in rows] == [10, 5, 6]
    assert rows[0][1] == rows[2][1] == {"unreadable": True}
    assert rows_of(migrated, "SELECT raw, token_seq FROM dead_letter ORDER BY id")[0] == (encode(event), None)
    assert await broken(migrated) == []


async def test_metadata_is_stored_without_what_no_text_may_have(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    account.consume(10, metadata=b'{"a":"x\\u0000y"}')
    report = await writer.write(batch_of(account))
    assert (report.rows["token_ledger"], report.dead_letters) == (2, 0)
    assert rows_of(migrated, "SELECT metadata FROM token_ledger WHERE seq = 2") == [({"a": "xy"},)]


async def test_a_row_that_is_there_without_its_balance_is_a_conflict(
    migrated: str, writer: LedgerWriter
) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    other.reset()
    at = datetime.fromtimestamp((account.at_ms - 1) / 1000, UTC)
    with connected(migrated, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO token_ledger (tenant_id, transaction_type, amount, direction, created_at, epoch,"
            " seq, cycle) VALUES (%s, 'consume', 1, 'OUT', %s, 1, 1, 1)",
            (account.tenant_id, at),
        )
    report = await writer.write(batch_of(account, other))
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert report.rows == {"token_ledger": 1}
