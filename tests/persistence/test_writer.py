"""One transaction from entries to rows: each exactly once, whatever fails around it."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from gateway.core.ledger import EventFlag, EventKind, encode
from gateway.core.outbox import fan_out
from gateway.errors import LedgerUnavailable
from persistence import engine, invariants, quarantine
from persistence.writer import Writer
from tests.persistence.lossy_proxy import LossyProxy
from tests.persistence.scenario import (
    METADATA,
    Account,
    batch_of,
    document,
    entries_of,
    entry_id,
    one,
    rows_of,
    settle_in,
)


@pytest.fixture
def writer(migrated: str) -> Iterator[Writer]:
    writer = Writer(migrated)
    yield writer
    writer.close()


async def broken(url: str) -> list[invariants.Violation]:
    pool = engine.create(url)
    async with pool.connect() as connection:
        found = await invariants.violations(connection)
    await pool.dispose()
    return found


def busy(account: Account) -> None:
    """One of everything."""
    account.reset()
    account.consume(10, user="ada")
    account.consume(5, credits_=3, user="bob")
    account.consume(None, units=2, spend=7)
    account.grant(EventKind.RECHARGE, 50)
    account.grant(EventKind.ADJUST, -20)
    account.credit(100)
    account.mark(blocked=True)
    account.mark(blocked=False)
    account.credit(-10)
    account.consume(2000, credits_=1, units=1, spend=2)


async def test_every_movement_becomes_its_row(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    report = await writer.write(batch)
    assert report.rows == {
        "token_ledger": 6,
        "credit_transaction": 2,
        "feature_usage": 2,
        "credit_posting": 2,
    }
    assert sorted(report.acknowledged[account.partition]) == [e[0] for e in batch[account.partition]]
    assert len(report.control_ids[account.partition]) == 6
    assert rows_of(
        migrated,
        "SELECT transaction_type, direction, amount, total_remaining, seq, cycle"
        " FROM token_ledger ORDER BY seq",
    ) == [
        ("reset", "IN", 1000, 1000, 1, 1),
        ("consume", "OUT", 10, 990, 2, 1),
        ("consume", "OUT", 5, 985, 3, 1),
        ("recharge", "IN", 50, 1035, 4, 1),
        ("adjust", "OUT", 20, 1015, 5, 1),
        ("consume", "OUT", 2000, -985, 6, 1),
    ]  # fmt: skip
    assert rows_of(
        migrated,
        "SELECT total, tokens_used, tokens_remaining, is_blocked, manual_block, cycle, last_seq"
        " FROM tenant_quota",
    ) == [(1000, 2015, -985, True, False, 1, 6)]
    assert rows_of(
        migrated,
        "SELECT credit_balance, credit_last_seq, spent, spend_last_seq, spend_month::text FROM organization",
    ) == [(86, 4, 9, 2, "2026-09-01")]
    assert rows_of(migrated, "SELECT requests, tokens, credits, usage_amount FROM usage_daily") == [
        (4, 2015, 4, 3)
    ]
    assert await broken(migrated) == []


async def test_a_row_says_who_used_what(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    request = str(uuid.uuid4())
    account.consume(
        7, credits_=2, units=1, spend=5, user="ada", request_id=request, attribution="11\t12\tv1",
        metadata=document(model="m", input=3),
    )  # fmt: skip
    await writer.write(batch_of(account))
    [(user_id, first_sight)] = rows_of(
        migrated, "SELECT id, first_sight FROM app_user WHERE external_id = 'ada'"
    )
    assert first_sight is True
    at = datetime.fromtimestamp((account.at_ms - 1) / 1000, UTC)
    assert rows_of(
        migrated,
        "SELECT request_id::text, service_id, api_key_id, user_id, metadata, created_at"
        " FROM token_ledger WHERE seq = 2",
    ) == [(request, 1, 5, user_id, {"model": "m", "input": 3}, at)]
    for table in ("credit_transaction", "feature_usage"):
        assert rows_of(
            migrated,
            "SELECT request_id::text, feature_id, user_id, tenant_id, content_id, project_id,"
            f' feature_version, metadata, "timestamp" FROM {table}',
        ) == [(request, 1, user_id, account.tenant_id, 11, 12, "v1", {"model": "m", "input": 3}, at)]


async def test_unlimited_accounts_have_no_remainder(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, None)
    account.consume(10)
    account.grant(EventKind.RECHARGE, 5)
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT total_remaining FROM token_ledger") == [(None,), (None,)]
    assert rows_of(migrated, "SELECT tokens_used, tokens_remaining, is_blocked FROM tenant_quota") == [
        (10, None, False)
    ]
    assert await broken(migrated) == []


async def test_redelivery_changes_nothing(migrated: str, writer: Writer) -> None:
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


async def test_an_entry_delivered_twice_in_one_batch_is_one_row(migrated: str, writer: Writer) -> None:
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
    migrated: str, writer: Writer, change: dict[str, object]
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


async def test_a_gap_stops_its_account_and_nobody_else(migrated: str, writer: Writer) -> None:
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
    pool = engine.create(migrated)
    assert await quarantine.release(pool, f"tenant:{account.tenant_id}", by="test") == [
        f"tenant:{account.tenant_id}"
    ]
    await pool.dispose()
    first = encode(account_first(account))
    streams = {
        account.partition: [(entry_id(), first), *lost, *((e[0], e[1]) for e in waiting[account.partition])]
    }
    report = await writer.write(fan_out(streams))
    assert (report.held, report.rows) == (0, {"token_ledger": 4})
    assert await broken(migrated) == []


def account_first(account: Account):  # type: ignore[no-untyped-def]  # an Event
    """The first movement the account made."""
    again = Account(account.organization_id, account.tenant_id, account.total)
    return again.reset()


async def test_an_accepted_gap_is_listed_as_lost(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    account.consume(1)
    account.consume(1)
    account.take()
    account.consume(2)
    batch = batch_of(account)
    assert (await writer.write(batch)).held == 1
    pool = engine.create(migrated)
    await quarantine.release(pool, f"tenant:{account.tenant_id}", by="test", accept_gap=True)
    await pool.dispose()
    assert (await writer.write(batch)).rows == {"token_ledger": 1}
    assert rows_of(migrated, "SELECT account, first_seq, last_seq FROM lost_event") == [
        (f"tenant:{account.tenant_id}", 2, 3)
    ]
    assert await broken(migrated) == []


async def test_accounts_moved_by_one_entry_wait_together(migrated: str, writer: Writer) -> None:
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
    assert (report.rows, report.held) == ({"token_ledger": 1}, 2)
    assert rows_of(migrated, "SELECT account, kind, behind FROM quarantine ORDER BY account") == [
        (credits_, "gap", None),
        (tenant, "behind", credits_),
    ]
    pool = engine.create(migrated)
    assert await quarantine.release(pool, credits_, by="test", accept_gap=True) == [credits_, tenant]
    await pool.dispose()
    assert (await writer.write(batch)).held == 0
    assert await broken(migrated) == []


async def test_an_account_postgresql_does_not_know_waits(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    stranger = Account(account.organization_id, 999_999, 10)
    stranger.reset()
    stranger.mark(blocked=True)
    report = await writer.write(batch_of(stranger))
    assert (report.quarantined, report.held, report.acknowledged) == (["tenant:999999"], 2, {})
    assert rows_of(migrated, "SELECT kind FROM quarantine") == [("unknown_account",)]


async def test_an_entry_of_another_organization_is_a_conflict(migrated: str, writer: Writer) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    mixed = Account(other.organization_id, account.tenant_id, 1000)
    mixed.reset()
    report = await writer.write(batch_of(mixed))
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert "belongs to organization" in str(rows_of(migrated, "SELECT reason FROM quarantine")[0][0])


async def test_an_epoch_never_runs_backwards(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.epoch = 3
    account.reset()
    await writer.write(batch_of(account))
    account.epoch = 2
    account.consume(1)
    assert (await writer.write(batch_of(account))).held == 1
    assert rows_of(migrated, "SELECT epoch FROM tenant_quota") == [(3,)]


async def test_bytes_that_say_nothing_go_to_the_dead_letters_raw(migrated: str, writer: Writer) -> None:
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
        {"metadata": b"{broken"},
        {"metadata": b'{"a":"\\u0000"}'},
        {"metadata": b'{"a":"\xff"}'},
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
    migrated: str, writer: Writer, poison: dict[str, object]
) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    event = account.consume(10)
    account.entries[-1] = (account.entries[-1][0], encode(replace(event, **poison)))  # type: ignore[arg-type]
    other.reset()
    batch = batch_of(account, other)
    report = await writer.write(batch)
    assert (report.dead_letters, report.rows) == (1, {"token_ledger": 2})
    assert report.entries() == entries_of(batch)
    account.consume(5)
    assert (await writer.write(batch_of(account))).rows == {"token_ledger": 1}
    [(tenant, seq, raw)] = rows_of(migrated, "SELECT tenant_id, token_seq, raw FROM dead_letter")
    assert (tenant, seq) == (account.tenant_id, 2)
    assert raw == encode(replace(event, **poison))  # type: ignore[arg-type]
    assert rows_of(migrated, "SELECT last_seq, epoch FROM tenant_quota WHERE tenant_id = %s", [tenant]) == [
        (3, 1)
    ]
    assert await broken(migrated) == []
    again = await writer.write(batch)
    assert (again.rows, again.quarantined, again.entries()) == ({}, [], entries_of(batch))


async def test_a_row_that_is_there_without_its_balance_is_a_conflict(migrated: str, writer: Writer) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    other.reset()
    at = datetime.fromtimestamp((account.at_ms - 1) / 1000, UTC)
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO token_ledger (tenant_id, transaction_type, amount, direction, created_at, epoch,"
            " seq, cycle) VALUES (%s, 'consume', 1, 'OUT', %s, 1, 1, 1)",
            (account.tenant_id, at),
        )
    report = await writer.write(batch_of(account, other))
    assert report.quarantined == [f"tenant:{account.tenant_id}"]
    assert report.rows == {"token_ledger": 1}


async def test_a_control_write_is_done_by_its_row_alone(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    verbs = ("recharge", "adjust", "reset", "block", "credits", "recharge")
    with psycopg.connect(migrated, autocommit=True) as connection:
        ids = [
            str(
                connection.execute(
                    "INSERT INTO control_write (account, verb, partition) VALUES (%s, %s, 1) RETURNING id",
                    (f"tenant:{account.tenant_id}", verb),
                ).fetchone()[0]  # type: ignore[index]  # RETURNING answers one row
            )
            for verb in verbs
        ]
        addition = one(
            connection,
            "INSERT INTO credit_addition (organization_id, credits_added, control_write_id)"
            " VALUES (%s, 9, %s) RETURNING id",
            account.organization_id, ids[4],
        )  # fmt: skip
    account.reset()
    account.grant(EventKind.RECHARGE, 5, ids[0])
    account.grant(EventKind.ADJUST, -5, ids[1])
    account.reset(ids[2])
    account.mark(blocked=True, source=ids[3])
    account.credit(9, ids[4])
    report = await writer.write(batch_of(account))
    assert sorted(report.control_ids[account.partition]) == sorted(ids[:5])
    done = dict(rows_of(migrated, "SELECT id::text, state FROM control_write"))  # type: ignore[arg-type]
    assert [done[id_] for id_ in ids] == ["done"] * 5 + ["pending"]
    assert rows_of(migrated, "SELECT kind, amount, credit_addition_id FROM credit_posting") == [
        ("addition", 9, addition)
    ]
    assert rows_of(migrated, "SELECT is_blocked, manual_block FROM tenant_quota") == [(True, True)]


async def test_a_plan_is_in_force_once_its_movement_is_stored(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    with psycopg.connect(migrated, autocommit=True) as connection:
        plan = one(
            connection, "INSERT INTO token_plan (name, total_amount) VALUES ('big', 5000) RETURNING id"
        )
        row = connection.execute(
            "INSERT INTO control_write (account, verb, payload) VALUES (%s, 'plan', %s) RETURNING id::text",
            (f"tenant:{account.tenant_id}", f'{{"plan_id": {plan}}}'),
        ).fetchone()
    assert row is not None
    account.total = 5000
    account.grant(EventKind.ADJUST, 4000, row[0])
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT plan_id, total, tokens_remaining FROM tenant_quota") == [
        (plan, 5000, 5000)
    ]


async def test_a_block_behind_a_later_movement_does_not_stand(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 100)
    account.reset()
    account.mark(blocked=True)
    account.mark(blocked=False)
    account.consume(100)
    batch = batch_of(account)
    await writer.write(batch)
    assert rows_of(migrated, "SELECT is_blocked, manual_block FROM tenant_quota") == [(True, False)]
    await writer.write(batch)
    assert rows_of(migrated, "SELECT is_blocked, manual_block FROM tenant_quota") == [(True, False)]


async def test_an_adjustment_names_the_request_it_corrects(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    event = account.consume(10)
    account.grant(EventKind.ADJUST, -5, metadata=document(reason="late", corrects=event.source))
    await writer.write(batch_of(account))
    rows = rows_of(
        migrated, "SELECT transaction_type, request_id::text FROM token_ledger WHERE seq > 1 ORDER BY seq"
    )
    assert rows == [("consume", event.source), ("adjust", event.source)]
    assert await broken(migrated) == []


async def test_months_have_their_own_partitions_and_spend(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.at_ms = int(datetime(2026, 11, 30, 23, 59, 59, 998_000, UTC).timestamp() * 1000)
    account.reset()
    account.consume(1, credits_=1, units=1, spend=5)
    account.consume(2, credits_=1, units=1, spend=7)
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("SELECT ensure_partitions('2026-12-01Z', 1)")
    await writer.write(batch_of(account))
    for table in ("token_ledger", "credit_transaction", "feature_usage"):
        assert rows_of(migrated, f"SELECT DISTINCT tableoid::regclass::text FROM {table} ORDER BY 1") == [
            (f"{table}_y2026m11",),
            (f"{table}_y2026m12",),
        ]
    assert rows_of(migrated, "SELECT day::text, tokens FROM usage_daily ORDER BY day") == [
        ("2026-11-30", 1),
        ("2026-12-01", 2),
    ]
    assert rows_of(migrated, "SELECT spent, spend_month::text FROM organization") == [(7, "2026-12-01")]
    assert await broken(migrated) == []


async def test_roll_ups_are_by_day_tenant_and_service(migrated: str, writer: Writer) -> None:
    accounts = settle_in(migrated, 1000, 1000)
    for account in accounts:
        account.reset()
        for service in (1, 2, 1):
            account.service_id = service
            account.consume(10, credits_=1)
        account.at_ms += 86_400_000
        account.consume(1)
        await writer.write(batch_of(account))
        account.consume(1)
        await writer.write(batch_of(account))
    assert rows_of(
        migrated,
        "SELECT tenant_id, service_id, requests, tokens, credits FROM usage_daily ORDER BY 1, day, 2",
    ) == [
        row
        for tenant in (a.tenant_id for a in accounts)
        for row in ((tenant, 1, 2, 20, 2), (tenant, 2, 1, 10, 1), (tenant, 1, 2, 2, 0))
    ]
    assert await broken(migrated) == []


async def test_new_users_are_capped_by_organization_and_day(migrated: str) -> None:
    writer = Writer(migrated, new_users_a_day_max=3)
    account, other = settle_in(migrated, 1000, 1000)
    for one_of in (account, other):
        one_of.reset()
        for number in range(5):
            one_of.consume(1, user=f"user-{number}")
    await writer.write(batch_of(account, other))
    account.consume(1, user="user-0")
    account.consume(1, user="user-9")
    await writer.write(batch_of(account))
    writer.close()
    assert rows_of(migrated, "SELECT organization_id, count(*) FROM app_user GROUP BY 1 ORDER BY 1") == [
        (account.organization_id, 3),
        (other.organization_id, 3),
    ]
    assert rows_of(
        migrated, "SELECT count(*), count(user_id) FROM token_ledger WHERE transaction_type = 'consume'"
    ) == [(12, 7)]


async def test_a_one_time_service_is_activated_once(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    first = account.consume(1, credits_=50)
    account.entries[-1] = (
        account.entries[-1][0],
        encode(replace(first, flags=first.flags | EventFlag.ACTIVATES)),
    )
    batch = batch_of(account)
    await writer.write(batch)
    await writer.write(batch)
    assert rows_of(
        migrated, "SELECT organization_id, service_id, request_id::text FROM service_activation"
    ) == [(account.organization_id, 1, first.source)]


async def test_a_partition_another_flusher_holds_is_left(migrated: str, writer: Writer) -> None:
    account, other = settle_in(migrated, 1000, 1000)
    account.reset()
    other.reset()
    batch = batch_of(account, other)
    with psycopg.connect(migrated) as rival:
        rival.execute("SELECT pg_advisory_xact_lock(7800, %s)", (account.partition,))
        report = await writer.write(batch)
        assert report.left_over == {account.partition}
        assert report.acknowledged.keys() == {other.partition}
    assert (await writer.write(batch)).left_over == frozenset()
    assert await broken(migrated) == []


async def test_two_writers_at_once_write_each_row_once(migrated: str) -> None:
    accounts = settle_in(migrated, *[10_000] * 6)
    for account in accounts:
        busy(account)
    batches = [batch_of(account) for account in accounts]
    writers = [Writer(migrated), Writer(migrated)]

    def insist(which: int) -> None:
        for batch in batches if which else reversed(batches):
            while writers[which].write_now(batch).left_over:
                time.sleep(0.01)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(insist, (0, 1)))
    for writer in writers:
        writer.close()
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(36,)]
    assert await broken(migrated) == []


async def test_a_lost_commit_reply_is_recognised_at_redelivery(migrated: str) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with LossyProxy(migrated) as proxy:
        writer = Writer(proxy.url)
        proxy.swallow_next(b"COMMIT")
        with pytest.raises(LedgerUnavailable):
            await writer.write(batch)
        assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(6,)]
        report = await writer.write(batch)
        writer.close()
    assert (report.rows, report.entries(), report.quarantined) == ({}, entries_of(batch), [])
    assert await broken(migrated) == []


async def test_a_connection_killed_before_the_commit_leaves_nothing(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with psycopg.connect(migrated) as rival:
        rival.execute("LOCK TABLE tenant_quota IN EXCLUSIVE MODE")  # the writer waits here, behind its COPY
        failed: list[BaseException] = []

        def attempt() -> None:
            try:
                writer.write_now(batch)
            except LedgerUnavailable as error:
                failed.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        with psycopg.connect(migrated, autocommit=True) as admin:
            while not admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall():
                await asyncio.sleep(0.01)
        thread.join(10)
    assert len(failed) == 1
    assert rows_of(migrated, "SELECT count(*) FROM token_ledger") == [(0,)]
    assert (await writer.write(batch)).rows["token_ledger"] == 6
    assert await broken(migrated) == []


async def test_a_deadlock_is_retried(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    with psycopg.connect(migrated) as rival, ThreadPoolExecutor(1) as pool:
        rival.execute("SET deadlock_timeout = '20s'")  # the writer is the one to be cancelled
        rival.execute("UPDATE organization SET name = 'x'")
        writing = pool.submit(writer.write_now, batch)
        with psycopg.connect(migrated, autocommit=True) as admin:
            while not admin.execute(
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall():
                await asyncio.sleep(0.01)
        rival.execute("UPDATE tenant_quota SET anchor = 1")  # waits for the writer, which waits for us
        rival.commit()
        report = writing.result(10)
    assert report.rows["token_ledger"] == 6
    assert await broken(migrated) == []


async def test_without_postgresql_the_writer_says_so(migrated: str) -> None:
    writer = Writer("postgresql://postgres@127.0.0.1:9/none")
    with pytest.raises(LedgerUnavailable):
        await writer.write({})


async def test_ids_of_late_posts_are_forgotten_in_the_counters(migrated: str, writer: Writer) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    event = account.consume(10, metadata=METADATA, note=1)
    account.consume(10, note=2)
    report = await writer.write(batch_of(account))
    assert report.control_ids == {account.partition: [event.source]}
