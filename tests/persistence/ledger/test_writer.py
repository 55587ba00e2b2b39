"""One transaction from entries to rows: what each movement becomes."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventFlag, EventKind, OutboxEntry
from gateway.core.accounts.usage import SPANS
from gateway.core.billing.money import IN_MONEY
from gateway.core.model import INTEGER_MAX
from gateway.core.times import DAY_MS, ms_of
from persistence.ledger.late_units import report_day, supplied_day
from persistence.ledger.statements import SUM_MAX, added, bounded
from persistence.ledger.writer import LedgerWriter
from tests.builders import encode
from tests.connections import connected
from tests.persistence.ledger.test_calls import rollup_in
from tests.persistence.scenario import (
    METADATA,
    Account,
    batch_of,
    broken,
    busy,
    document,
    one,
    rows_of,
    settle_in,
)


async def test_every_movement_becomes_its_row(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    busy(account)
    batch = batch_of(account)
    report = await writer.write(batch)
    assert report.rows == {
        "token_ledger": 6,
        "credit_transaction": 2,
        "feature_usage": 2,
        "credit_posting": 2,
        "call": 4,
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


async def test_a_row_says_who_used_what(migrated: str, writer: LedgerWriter) -> None:
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


async def test_unlimited_accounts_have_no_remainder(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, None)
    account.consume(10)
    account.grant(EventKind.RECHARGE, 5)
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT total_remaining FROM token_ledger") == [(None,), (None,)]
    assert rows_of(migrated, "SELECT tokens_used, tokens_remaining, is_blocked FROM tenant_quota") == [
        (10, None, False)
    ]
    assert await broken(migrated) == []


async def test_a_control_write_is_done_by_its_row_alone(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    verbs = ("recharge", "adjust", "reset", "block", "credits", "recharge")
    with connected(migrated, autocommit=True) as connection:
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
    states = rows_of(migrated, "SELECT state FROM control_write ORDER BY position")
    assert states == [("done",)] * 5 + [("pending",)]
    assert rows_of(migrated, "SELECT kind, amount, credit_addition_id FROM credit_posting") == [
        ("addition", 9, addition)
    ]
    assert rows_of(migrated, "SELECT is_blocked, manual_block FROM tenant_quota") == [(True, True)]


async def test_a_plan_is_in_force_once_its_movement_is_stored(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    await writer.write(batch_of(account))
    with connected(migrated, autocommit=True) as connection:
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


async def test_a_block_behind_a_later_movement_does_not_stand(migrated: str, writer: LedgerWriter) -> None:
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


async def test_an_adjustment_names_the_request_it_corrects(migrated: str, writer: LedgerWriter) -> None:
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


async def test_months_have_their_own_partitions_and_spend(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.at_ms = int(datetime(2026, 11, 30, 23, 59, 59, 998_000, UTC).timestamp() * 1000)
    account.reset()
    account.consume(1, credits_=1, units=1, spend=5)
    account.consume(2, credits_=1, units=1, spend=7)
    with connected(migrated, autocommit=True) as connection:
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


async def test_roll_ups_are_by_day_tenant_and_service(migrated: str, writer: LedgerWriter) -> None:
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
    writer = LedgerWriter(migrated, new_users_a_day_max=3)
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


async def test_a_one_time_service_is_activated_once(migrated: str, writer: LedgerWriter) -> None:
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


async def test_ids_of_late_posts_are_forgotten_in_the_counters(migrated: str, writer: LedgerWriter) -> None:
    [account] = settle_in(migrated, 1000)
    account.reset()
    event = account.consume(10, metadata=METADATA, note=1)
    account.consume(10, note=2)
    report = await writer.write(batch_of(account))
    assert report.control_ids == {account.partition: [event.source]}


# --- sums -------------------------------------------------------------------------------
# No sum stops a flush: one beyond its column is the largest it holds, and everybody's rows are stored.


DEAR = CallFacts(
    model="m", status=200, counts=(5, 0, 0, 0, 2, 0, 0, 0, 0, 0), total=7, cost=SUM_MAX, currency="VND"
)
EDGES = (0, 1, INTEGER_MAX, SUM_MAX // 2, SUM_MAX // 2 + 1, SUM_MAX - 1, SUM_MAX)
sums = st.one_of(
    st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]), st.integers(-SUM_MAX, SUM_MAX)
)


def two(url: str) -> tuple[Account, Account]:
    """One that pays with credits and in money of a small unit, and one that has nothing to do with it."""
    large, small = settle_in(url, None, 10**9)
    large.tiers = IN_MONEY
    for account in (large, small):
        account.reset()
        account.credit(INTEGER_MAX)
    return large, small


@pytest.mark.parametrize("batches", [1, 2])
async def test_two_largest_uses_stop_nobodys_rows(migrated: str, writer: LedgerWriter, batches: int) -> None:
    large, small = two(migrated)
    for use in range(2):
        large.consume(INTEGER_MAX // 2, credits_=INTEGER_MAX, units=INTEGER_MAX, metadata=write_facts(DEAR))
        small.consume(7, metadata=write_facts(DEAR))
        if use or batches == 2:
            report = await writer.write(batch_of(large, small))
            assert (report.dead_letters, report.quarantined) == (0, [])
    owner = f"tenant_id = {large.tenant_id}"
    assert rows_of(
        migrated, f"SELECT requests, tokens, credits, usage_amount FROM usage_daily WHERE {owner}"
    ) == [(2, INTEGER_MAX - 1, 2 * INTEGER_MAX, 2 * INTEGER_MAX)]
    assert rows_of(migrated, "SELECT quantity FROM usage_tier") == [(2 * INTEGER_MAX,)]
    assert rows_of(migrated, f"SELECT count(*) FROM call WHERE tenant_id = {small.tenant_id}") == [(2,)]
    for span in SPANS:
        assert {row["cost"] for row in rollup_in(migrated, span)} == {SUM_MAX}
    assert await broken(migrated) == []


async def test_a_number_that_no_row_holds_is_still_a_dead_letter(migrated: str, writer: LedgerWriter) -> None:
    large, small = two(migrated)
    large.consume(7, units=INTEGER_MAX + 1)
    small.consume(7)
    report = await writer.write(batch_of(large, small))
    assert (report.dead_letters, report.quarantined) == (1, [])
    assert rows_of(migrated, f"SELECT count(*) FROM call WHERE tenant_id = {small.tenant_id}") == [(1,)]


async def test_what_is_full_stays_full_and_nothing_false_is_said_of_it(
    migrated: str, writer: LedgerWriter
) -> None:
    large, _ = two(migrated)
    request = str(uuid.uuid4())
    large.consume(7, credits_=1, units=1, request_id=request, metadata=b'{"estimated":true,"reclaimed":true}')
    await writer.write(batch_of(large))
    with connected(migrated, autocommit=True) as connection:
        connection.execute(
            f"UPDATE usage_daily SET tokens = {SUM_MAX}, credits = {SUM_MAX}, usage_amount = {SUM_MAX}"
        )
        connection.execute(f"UPDATE usage_tier SET quantity = {SUM_MAX}")
    for _ in range(2):
        large.consume(7, credits_=1, units=1, metadata=write_facts(DEAR))
    large.consume(
        2, kind=EventKind.ADJUST, credits_=1, units=-1,
        metadata=mark_as_correction(write_facts(DEAR), request, "settled late"),
    )  # fmt: skip
    report = await writer.write(batch_of(large))
    assert report.dead_letters == 0
    assert rows_of(migrated, "SELECT requests, tokens, credits, usage_amount FROM usage_daily") == [
        (3, SUM_MAX, SUM_MAX, SUM_MAX)
    ]
    assert rows_of(migrated, "SELECT quantity FROM usage_tier") == [(SUM_MAX,)]
    assert rows_of(migrated, "SELECT quantity FROM usage_told") == [(-1,)]
    said = {one.invariant for one in await broken(migrated)}
    assert said.isdisjoint({"rollup", "usage_adds_up", "invoice"})
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE usage_daily SET requests = requests + 1")
        connection.execute("UPDATE usage_rollup SET tokens = tokens + 1 WHERE span = 'day'")
    assert {one.invariant for one in await broken(migrated)} >= {"rollup", "usage_adds_up"}


@given(before=sums, more=sums)
def test_postgresql_adds_as_it_is_said(migrated: str, before: int, more: int) -> None:
    [(found,)] = rows_of(
        migrated,
        f"SELECT {added('n')} FROM (SELECT {before}::bigint AS n) AS u,"
        f" (SELECT {more}::bigint AS n) AS excluded",
    )
    full = next((each for each in (before, more) if abs(each) == SUM_MAX), None)
    assert found == (bounded(before + more) if full is None else full)


# --- told units -------------------------------------------------------------------------
# The day that units were supplied on, and the one they were told on, as an entry says it.


NOON = ms_of(datetime(2026, 5, 10, 12, tzinfo=UTC))
TODAY = NOON // DAY_MS


def entry(**facts: object) -> OutboxEntry:
    account = Account(1, 2, None)
    account.at_ms = NOON
    made = account.consume(None, units=-3, kind=EventKind.ADJUST)
    return replace(made, **facts)  # type: ignore[arg-type]  # by their names


@pytest.mark.parametrize(
    ("used_ms", "day"),
    [(0, TODAY), (NOON, TODAY), (NOON - 3 * DAY_MS, TODAY - 3), (NOON + DAY_MS, TODAY), (1, 0)],
)
def test_an_event_was_used_on_its_own_day_but_never_on_one_to_come(used_ms: int, day: int) -> None:
    facts = CallFacts(used_ms=used_ms)
    assert supplied_day(entry(kind=EventKind.CONSUME, units=3, facts=facts)) == day


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("2026-05-07", TODAY - 3), ("2026-05-10", TODAY), ("2026-05-11", TODAY), ("2026-02-30", TODAY),
        ("", TODAY), (5, TODAY), (None, TODAY),
    ],
)  # fmt: skip
def test_a_correction_names_its_days_and_what_is_none_is_that_of_its_entry(said: object, day: int) -> None:
    both = entry(metadata=document(corrects="x", supplied_on=said, told_on=said))
    assert (supplied_day(both), report_day(both)) == (day, day)
    # Only what is taken back is of another one that was told, and only a correction is believed.
    assert report_day(replace(both, units=3)) == TODAY
    assert supplied_day(replace(both, kind=EventKind.CONSUME)) == TODAY


@pytest.mark.parametrize("metadata", [b"", b'"supplied_on"', b'{"supplied_on":', b"[]"])
def test_what_cannot_be_read_says_no_day(metadata: bytes) -> None:
    assert supplied_day(entry(metadata=metadata)) == TODAY
