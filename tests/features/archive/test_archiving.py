"""Months go to an archive as a whole or not at all, and what was proved with them is proved without them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.main import run
from gateway.core.billing.finance import ReportPeriod
from gateway.counters.redis.keys import partition_of
from gateway.errors import ArchiveFailed, PlaceFailed
from gateway.features.archive import archiving
from gateway.features.archive.archiving import ArchiveManifest, ArchiveRun, archive
from gateway.features.archive.reading import prove
from gateway.ops.storage import FileStore
from persistence import engine as engines
from persistence.archive import months as archive_months
from persistence.archive.months import BY_NAME, ArchivedMonth, Connection
from persistence.schema import partitions
from persistence.store import Store
from tests.connections import connected
from tests.features.archive.aging import LEDGERS, Aging, Clones, clones, held, months_made, old
from tests.persistence.billing.drawn import some
from tests.persistence.credits import give
from tests.persistence.ledger.test_checkpoints import BEGINS, STEPS
from tests.persistence.migrated import template
from tests.persistence.scenario import broken, rows_of
from tests.search import STRIDE, is_night

__all__ = ["clones", "old", "template"]

MOVED = st.one_of(STEPS, STEPS, STEPS, STEPS, st.tuples(st.just("archive"), st.none()))


@pytest.mark.parametrize("by", ["month", "day"])
@some(1)
@given(steps=st.lists(MOVED, min_size=8, max_size=24), movements_max=st.sampled_from([2, 5, 1_000]))
def test_archive_and_database_together_hold_every_row_after_archiving_a_random_history(
    clones: Clones,
    tmp_path_factory: pytest.TempPathFactory,
    by: str,
    steps: list[tuple[str, Any]],
    movements_max: int,
) -> None:
    root = tmp_path_factory.mktemp("archive")
    with clones() as url:
        months_made(url, "2026-02-01Z", 24, by=by)
        asyncio.run(live(url, steps, movements_max, root))


async def live(url: str, steps: list[tuple[str, Any]], movements_max: int, root: Path) -> None:
    past = Aging(url, movements_max, root)
    past.begin()
    try:
        for what, how in [
            *steps,
            ("on", 40),
            ("use", 3),
            ("use", 4),
            ("on", 70),
            ("use", 5),
            ("archive", None),
        ]:
            if what == "archive":
                done = await past.archive()
                assert done.open == []
                assert await broken(url) == []
                await past.compare()
                past.store()
                assert held(url, FileStore(str(root))) == past.all_of_it()
                assert (
                    not done.files or (await asyncio.to_thread(prove, url, FileStore(str(root)))).broken == []
                )
            elif what == "close":
                await past.close()
            else:
                getattr(past, what)(how)
        assert rows_of(url, "SELECT count(*) FROM archived_month WHERE dropped_at IS NOT NULL") != [(0,)]
        assert (await past.archive()).files == []
        await past.compare()
    finally:
        await past.end()


CALL = """
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, input, cache_read,
                  cache_write, cache_write_1h, output, reasoning, audio_input, audio_output, image_input,
                  image_output, tokens, credits, units, status, streamed, estimated, refused, duration_ms,
                  reason)
SELECT gen_random_uuid(), '2026-01-21Z', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, false, false,
       true, 1, E'a "line",\nand another' RETURNING id"""


class Failing(FileStore):
    """A place that goes away after so many files were read or written."""

    def __init__(self, url: str, left: int) -> None:
        super().__init__(url)
        self.left = left

    def _path(self, name: str) -> str:
        self.left -= 1
        if self.left < 0:
            raise OSError("No space left on device")
        return super()._path(name)


async def test_archiving_that_fails_at_any_file_write_neither_loses_nor_duplicates_rows(old: Aging) -> None:
    failed, every = 0, 5 if is_night() else 5 * STRIDE
    while True:
        try:
            done = await old.archive(Failing(str(old.root), every * failed), drop=False)
        except PlaceFailed as error:
            assert "No space left" in str(error)  # noqa: PT017  # the last one does not fail
            failed += 1
            assert held(old.url, FileStore(str(old.root))) == old.all_of_it()
        else:
            break
    assert failed > 1
    assert done.open == []
    assert held(old.url, FileStore(str(old.root))) == old.all_of_it()
    assert await broken(old.url) == []
    await old.compare()
    months = rows_of(old.url, "SELECT DISTINCT month FROM archived_month ORDER BY 1")
    assert [f"{month:%Y-%m}" for (month,) in months] == ["2026-01", "2026-02", "2026-03"][: len(months)]
    # What was set aside is dropped on request alone, and only by the archive that has it.
    set_aside = "SELECT count(*) FROM pg_class WHERE relname ~ '_archived$' AND relkind IN ('r', 'p')"
    [(before,)] = rows_of(old.url, set_aside)
    assert before == 4 * len(months)
    assert (await old.archive(FileStore(str(old.root / "other")))).dropped == []
    assert (await asyncio.to_thread(set_aside_for, old, 1)).dropped == []
    rows_of(old.url, "UPDATE archived_month SET archived_at = now() - interval '31 days' RETURNING 1")
    assert (await asyncio.to_thread(set_aside_for, old, 32)).dropped == []
    assert len((await asyncio.to_thread(set_aside_for, old, 31)).dropped) == before
    assert rows_of(old.url, set_aside) == [(0,)]
    assert held(old.url, FileStore(str(old.root))) == old.all_of_it()


def set_aside_for(old: Aging, days: int) -> ArchiveRun:
    """Have those tables go that are set aside for so many days."""
    return archive(old.url, FileStore(str(old.root)), old.today, None, drop_after=days)


async def test_archived_rows_stay_in_the_database_if_the_archive_file_was_changed(old: Aging) -> None:
    done = await old.archive(drop=False)
    (old.root / done.files[0].file).write_bytes(b"something else")
    with pytest.raises(ArchiveFailed, match="is not what was archived: nothing is dropped"):
        await old.archive()
    assert rows_of(old.url, "SELECT count(*) FROM archived_month WHERE dropped_at IS NOT NULL") == [(0,)]


async def test_row_inserted_while_a_month_is_being_archived_is_archived_too(old: Aging) -> None:
    """A file that was read back is compared again with the rows, once nobody can add any."""

    class Late(FileStore):
        def write_json(self, name: str, value: object) -> None:
            super().write_json(name, value)
            if not came:
                came.append(name)
                rows_of(old.url, CALL)

    came: list[str] = []
    done = await old.archive(Late(str(old.root)))
    calls = next(
        one for one in done.files if one.file == archiving.file_of("call", BEGINS.date().replace(day=1))
    )
    said = pq.read_table(old.root / calls.file)["reason"].to_pylist()
    assert said.count('a "line",\nand another') == 1
    assert calls.rows == len(said) > 1


async def with_little(url: str, root: Path, refused: str) -> None:
    """Have another database use little of the first month and archive it there, which is refused."""
    other = Aging(url, 1_000_000, root)
    months_made(url, "2026-02-01Z", 6)
    other.begin()
    other.on(100)
    other.use(1)
    with pytest.raises(ArchiveFailed, match=refused):
        await other.archive()
    await other.end()


async def test_archiving_into_the_archive_of_another_database_is_refused(old: Aging, clones: Clones) -> None:
    await old.archive()
    with clones() as url:
        await with_little(url, old.root, "2026-01 of another database")


async def test_database_restored_from_an_old_backup_does_not_overwrite_newer_archive_files(
    old: Aging, clones: Clones
) -> None:
    """It was restored from before: it calls itself the same, and has less of the month."""
    place = FileStore(str(old.root))
    await asyncio.to_thread(archive, old.url, place, old.today, date(2026, 2, 1))
    kept = {one: one.read_bytes() for one in old.root.rglob("*") if one.is_file()}
    [(identity,)] = rows_of(old.url, "SELECT id FROM archive_identity")
    with clones() as url:
        rows_of(url, f"INSERT INTO archive_identity (id) VALUES ('{identity}') RETURNING id")
        await with_little(url, old.root, "this database is older than its archive")
    assert {one: one.read_bytes() for one in old.root.rglob("*") if one.is_file()} == kept


async def test_archiving_stops_at_a_month_written_by_another_database_and_keeps_that_file(old: Aging) -> None:
    """Programs of before looked at one month at a time: the first ones may be ours, and these not."""
    place, february = FileStore(str(old.root)), date(2026, 2, 1)
    january = (await asyncio.to_thread(archive, old.url, place, old.today, february)).files
    assert {one.month for one in january} == {date(2026, 1, 1)}
    name = archiving.file_of("token_ledger", february)
    theirs = old.root / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"the only rows there are")
    size, digest = place.digest(name)
    said = ArchiveManifest(
        uuid4(), february, ArchivedMonth("token_ledger", february, place.url, name, 1, size, digest, {})
    )
    archiving.write_manifest(place, said)
    with pytest.raises(ArchiveFailed, match="2026-02 of another database: archive into another place"):
        await old.archive()
    assert theirs.read_bytes() == b"the only rows there are"
    assert archiving.read_manifest(place, february, "token_ledger") == said


OPENS = {
    "is in quarantine: a test": """
INSERT INTO quarantine (account, partition, organization_id, kind, entry_id, epoch, stored_seq, found_seq,
                        reason, created_at)
SELECT 'credits:' || id, 1, id, 'conflict', '1-1', 1, 1, 2, 'a test', '2026-01-25Z' FROM organization""",
    "dead letter that nobody resolved: a test": """
INSERT INTO dead_letter (partition, entry_id, raw, reason, created_at)
VALUES (1, '1-1', '', 'a test', '2026-01-25Z')""",
    "change that is not applied: recharge": """
INSERT INTO control_write (id, partition, account, verb, payload, created_at)
VALUES (gen_random_uuid(), 1, 'tenant:1', 'recharge', '{}', '2026-01-25Z')""",
    "does not agree, by the last reconciliation: drift": """
INSERT INTO reconciliation (started_at, finished_at, checked, drift_tokens, drift_credits, pending, items)
VALUES (now(), now(), 1, 1, 0, 0, '[{"account": "tenant:1", "kind": "drift"}]')""",
    "use that no invoice has: USD": """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, fact)
SELECT id, 'usage', '2026-01-25Z', '2026-01-26Z', 1, 2, 2, 'USD', 'usage_tier', 'a test' FROM organization""",
    "use that is not charged: units of 2026-01-25": """
INSERT INTO usage_tier (day, tenant_id, service_id, organization_id, unit_price, first_unit, quantity)
SELECT '2026-01-25', 1, 1, id, 1, 1, 5 FROM organization""",
    "use that is not charged: units told late of 2026-01-20": """
INSERT INTO usage_told (day, supplied_on, told_on, is_back, tenant_id, service_id, organization_id,
                        unit_price, quantity)
SELECT '2026-02-03', '2026-01-20', '2026-02-03', false, 1, 1, id, 1, 5 FROM organization""",
    "is a draft of an invoice: from 2026-01-01": """
INSERT INTO invoice (organization_id, period_start, period_end, currency, status)
SELECT id, '2026-01-01', '2026-02-01', 'USD', 'draft' FROM organization""",
    "has no checkpoint of it": "DELETE FROM account_checkpoint WHERE account LIKE 'spend:%'",
    "does not chain: movement 4": "UPDATE token_ledger SET amount = amount + 5 WHERE seq = 4",
    "has credits that are not allocated": "UPDATE organization SET allocated_seq = 1",
    "days of a subscription that are not charged": """
WITH made AS (
    INSERT INTO subscription_plan (name, monthly_cost, annual_cost, feature_access) VALUES ('a', 1, 1, '[]')
    RETURNING id)
INSERT INTO subscription_segment (organization_id, plan_id, start_date, end_date, cost, anchor_date,
                                  billing_interval)
SELECT o.id, made.id, '2026-01-30', '2026-02-02', 1, '2026-01-30', 'monthly' FROM organization AS o, made""",
}


def why_open(connection: Connection, month: date) -> list[str]:
    """Of all ledgers."""
    return [one for ledger in BY_NAME.values() for one in archive_months.why_open(connection, ledger, month)]


async def test_archiving_lists_every_reason_a_month_is_not_closed(old: Aging) -> None:
    january = BEGINS.date().replace(day=1)
    with connected(old.url, autocommit=True) as connection:
        assert why_open(connection, january) == []
        for why, statement in OPENS.items():
            with connection.transaction(force_rollback=True):
                connection.execute("SET LOCAL session_replication_role = replica")
                connection.execute(statement.encode())
                said = why_open(connection, january)
                assert any(why in reason for reason in said), (why, said)
        assert why_open(connection, january) == []


async def test_archiving_lists_the_first_reasons_a_month_is_not_closed_and_counts_the_rest(
    old: Aging,
) -> None:
    january, more = BEGINS.date().replace(day=1), partitions.NAMED_MAX + 3
    use = (
        OPENS["use that no invoice has: USD"]
        .replace("SELECT id, ", "SELECT n, ")
        .replace("'a test'", "n")
        .replace("FROM organization", f"FROM generate_series(11, {10 + more}) AS n")
    )
    pool = engines.create(old.url)
    with connected(old.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(use.encode())
        said = why_open(connection, january)
    named = [
        f"organization {n} has use that no invoice has: USD 2" for n in range(11, 11 + partitions.NAMED_MAX)
    ]
    assert said[: partitions.NAMED_MAX + 1] == [*named, "and 3 more like it"]
    async with pool.connect() as asked:
        assert await partitions.why_unbilled(asked, date(2026, 2, 1)) == named[0]
        assert await partitions.why_unbilled(asked, january) == ""
    await pool.dispose()


async def test_archiving_stops_at_the_first_month_not_closed(old: Aging) -> None:
    rows_of(old.url, OPENS["dead letter that nobody resolved: a test"] + " RETURNING 1")
    done = await old.archive()
    assert [(one.month, one.ledgers) for one in done.open] == [
        (BEGINS.date().replace(day=1), (*LEDGERS, "call"))
    ]
    assert done.files == []
    assert rows_of(old.url, "SELECT count(*) FROM archived_month") == [(0,)]


async def test_archiving_refuses_a_month_too_recent_for_all_calls_to_be_settled(old: Aging) -> None:
    latest = old.today.replace(day=1)
    with pytest.raises(ArchiveFailed, match="at the latest"):
        archive(old.url, FileStore(str(old.root)), old.today, latest)


# The database has a clock of its own: have all of it known as it happened.
AS_OF_THEN = """
SET LOCAL session_replication_role = replica;
UPDATE charge SET created_at = period_end;
DELETE FROM credit_drawdown;
INSERT INTO credit_drawdown (organization_id, credit_addition_id, kind, day, credits)
SELECT a.organization_id, a.credit_addition_id, 'use',
       (greatest(t."timestamp", p.created_at) AT TIME ZONE 'UTC')::date, sum(a.amount)
  FROM credit_allocation AS a JOIN credit_transaction AS t USING (organization_id, seq)
  JOIN credit_posting AS p USING (credit_addition_id) GROUP BY 1, 2, 4"""


async def test_deferred_revenue_report_is_the_same_before_and_after_archiving(old: Aging) -> None:
    """As before they were archived, though none of their uses is left."""
    store = Store(old.pool, partition_of, lambda: datetime.combine(old.today, time(12), UTC))
    give(old.url, old.account, 5_000, unit_cost="0.01")
    begins = datetime.combine(old.today, time(), UTC)
    for _ in range(4):
        old.on(31)
        old.use(6)
    await old.settle()
    with connected(old.url) as connection:
        connection.execute(AS_OF_THEN.encode())
    ends = [ReportPeriod(begins + timedelta(days=days)) for days in range(1, 130, 9)]
    before = [await store.report("deferred-revenue", asked, 0, 99) for asked in ends]
    assert len({row["amount"] for [row] in before}) == 5
    done = await old.archive()
    assert done.files
    assert [await store.report("deferred-revenue", asked, 0, 99) for asked in ends] == before


async def test_archiving_merges_the_credit_use_of_a_month_into_a_single_row_per_purchase(old: Aging) -> None:
    """Debt of it stays use by use, and is covered by what is bought later."""
    sums = "SELECT credit_addition_id, sum(amount) FROM credit_allocation GROUP BY 1 ORDER BY 1"
    of_runs = """
SELECT r.last_seq, a.credit_addition_id, count(*) FROM archived_run AS r
  JOIN credit_allocation AS a ON a.seq BETWEEN r.first_seq AND r.last_seq
 WHERE split_part(r.account, ':', 1) = 'credits' GROUP BY 1, 2"""
    [(_, debt)] = rows_of(old.url, sums)
    first = give(old.url, old.account, int(debt) // 2)
    second = give(old.url, old.account, int(debt) - int(debt) // 2 - 20)
    for _ in range(3):
        old.on(31)
        old.use(0)
    await old.settle()
    before = rows_of(old.url, sums)
    assert [owner for owner, _ in before] == [first, second, None]
    await old.archive()
    assert rows_of(old.url, sums) == before
    found = rows_of(old.url, of_runs)
    assert {owner for _, owner, _ in found} == {first, second, None}
    assert {rows for _, owner, rows in found if owner} == {1}
    assert max(rows for _, owner, rows in found if not owner) > 1
    assert await broken(old.url) == []
    last = give(old.url, old.account, 100)
    await old.settle()
    assert rows_of(old.url, sums) == [*before[:2], (last, 20)]
    assert await broken(old.url) == []


async def command(arguments: list[str]) -> int:
    """Run a command; its exit status."""
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(run, arguments)
    return int(ended.value.code or 0)


async def test_archive_command_reports_archived_files_and_months_not_closed(
    old: Aging, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["archive", "--to", str(old.root), "--database-url", old.url, "--json"]
    rows_of(old.url, OPENS["dead letter that nobody resolved: a test"] + " RETURNING 1")
    assert await command(arguments) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["open_month"], told["files"]) == ("2026-01", [])
    assert told["open"] == ["letter 1 is a dead letter that nobody resolved: a test"]
    assert told["open_months"] == [
        {"month": "2026-01", "ledgers": [*LEDGERS, "call"], "reasons": told["open"]}
    ]
    rows_of(old.url, "UPDATE dead_letter SET resolved_at = now(), resolution = 'resolved' RETURNING 1")
    assert await command(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["ledger"] for one in told["files"]} == {*LEDGERS, "call"}
    assert sum(one["rows"] for one in told["files"]) > 0
    assert await command(arguments[:-1]) == 0
    assert "No month is left" in capsys.readouterr().out
