"""Each ledger goes to an archive when its own time is over, and what was proved holds with others here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.main import run
from gateway.errors import PlaceFailed
from gateway.features.archive import archiving
from gateway.features.archive.archiving import ArchiveRun, archive
from gateway.features.archive.reading import RowFilter, prove, rows
from gateway.features.archive.retention import Retention
from gateway.ops.storage import FileStore
from gateway.settings.settings import Settings
from persistence import engine as engines
from persistence.archive.months import AUDIT, BY_NAME, CALLS, CREDITS, LEDGERS, SPENDS, TOKENS, behind
from tests.connections import connected
from tests.features.archive.aging import Aging, clones, held, old
from tests.persistence.migrated import template
from tests.persistence.scenario import broken, rows_of

__all__ = ["clones", "old", "template"]

NEVER = Retention(tokens=0, credits=0, usage=0, calls=0)
# One ledger after the other, each as soon as it may.
ORDERS = (
    (Retention(0, 0, 0, 1), Retention(1, 0, 0, 1), Retention(1, 0, 1, 1), Retention()),
    (Retention(0, 1, 0, 0), Retention(0, 1, 1, 0), Retention(1, 1, 1, 0), Retention()),
)
DAYS = st.dates(date(2001, 1, 1), date(2090, 12, 31))


@given(today=DAYS, months=st.integers(1, 60))
def test_archive_retention_keeps_the_given_number_of_whole_months_before_the_current_month(
    today: date, months: int
) -> None:
    """Counted day by day: each month is over as often as its end has been passed."""
    found = Retention(tokens=months).before(TOKENS, today)
    assert found is not None
    assert found.day == 1
    assert found <= today - timedelta(days=31)
    firsts, day = 0, today
    while day > found:
        firsts += day.day == 1
        day -= timedelta(days=1)
    # Of the shortest months, 31 days of grace are one month more.
    assert firsts in ({months} if months > 1 else {1, 2})


@given(today=DAYS, months=st.integers(1, 60), days=st.integers(1, 3_000))
def test_calls_are_archived_before_the_setting_calls_keep_days_would_delete_the_calls(
    today: date, months: int, days: int
) -> None:
    found = Retention(calls=months, calls_days=days).before(CALLS, today)
    by_days, latest = ((today - timedelta(days=n)).replace(day=1) for n in (days, 31))
    longest = Retention(calls=months).before(CALLS, today)
    assert longest is not None
    assert found == max(longest, min(by_days, latest))
    assert Retention(calls=0, calls_days=days).before(CALLS, today) is None
    assert Retention(credits=months, calls_days=days).before(CREDITS, today) == Retention(
        credits=months
    ).before(CREDITS, today)


@given(month=DAYS, months=st.integers(0, 60), days=st.integers(0, 3_000), ledger=st.sampled_from([*BY_NAME]))
def test_month_is_due_for_archiving_on_the_first_day_the_retention_setting_selects_that_month(
    month: date, months: int, days: int, ledger: str
) -> None:
    kept = Retention(months, months, months, months, months, calls_days=days)
    first, of = month.replace(day=1), BY_NAME[ledger]
    end = (first + timedelta(days=31)).replace(day=1)
    due = kept.due(ledger, first)
    if not months:
        assert due is None
        return
    assert due is not None
    before, day_before = (kept.before(of, day) for day in (due, due - timedelta(days=1)))
    assert before is not None
    assert day_before is not None
    assert day_before < end <= before


async def test_archive_behind_seconds_metric_counts_from_the_day_a_month_was_due(old: Aging) -> None:
    """2026-03 was due on 2 May, and 2026-04 will be on 1 June; calls are kept for a month more."""
    engine, kept = engines.create(old.url), Retention(calls=2)
    now = datetime(2026, 5, 24, 12, tzinfo=UTC)
    days = dict.fromkeys(("token_ledger", "credit_transaction", "feature_usage"), 22.5) | {"call": 0.0}

    async def told(at: datetime) -> dict[str, float]:
        found: Any = (await behind(engine, kept.due, at)).get("archive_behind_seconds", ())
        return {ledger: seconds / 86_400 for ledger, seconds in found}

    assert await told(now) == {}
    await old.archive(FileStore(str(old.root)), retention=NEVER)
    [(first,)] = rows_of(old.url, "SELECT min(created_at)::date FROM token_ledger")
    assert first < date(2026, 2, 1)
    assert all(waits > 31 for waits in (await told(now)).values())
    await asyncio.to_thread(archive, old.url, FileStore(str(old.root)), old.today, date(2026, 3, 1))
    assert await told(now) == days
    await asyncio.to_thread(archive, old.url, FileStore(str(old.root)), old.today, date(2026, 4, 1))
    assert set((await told(now)).values()) == {0.0}
    assert await told(datetime(2026, 7, 3, tzinfo=UTC)) == dict.fromkeys(days, 32.0) | {"call": 2.0}
    await engine.dispose()


def test_archive_settings_set_a_separate_retention_for_each_ledger() -> None:
    """By default as before there were any: ledgers and calls a month, the audit log for ever."""
    today = date(2026, 6, 20)
    by_default = Retention.of(Settings())
    assert by_default == Retention()
    assert [by_default.before(one, today) for one in LEDGERS] == [date(2026, 5, 1)] * 4
    assert by_default.before(AUDIT, today) is None
    said = Settings().with_values(
        archive_token_ledger_after_months=13, archive_credit_transactions_after_months=25,
        archive_feature_usage_after_months=2, archive_calls_after_months=3, archive_audit_log_after_months=36,
        calls_keep_days=70,
    )  # fmt: skip
    days = [Retention.of(said).before(one, today) for one in BY_NAME.values()]
    assert days == [
        date(2025, 5, 1), date(2024, 5, 1), date(2026, 4, 1), date(2026, 4, 1), date(2023, 6, 1),
    ]  # fmt: skip
    assert Retention(tokens=1_200).before(TOKENS, date(99, 5, 1)) == date(1, 1, 1)


@pytest.mark.parametrize("order", ORDERS)
async def test_ledgers_archived_in_any_order_leave_invariants_and_archive_proof_intact(
    old: Aging, order: tuple[Retention, ...]
) -> None:
    place, gone = FileStore(str(old.root)), set[str]()
    assert (await old.archive(retention=NEVER)).files == []
    for retention in order:
        done = await old.archive(retention=retention)
        [ledger] = {one.ledger for one in done.files}
        gone.add(ledger)
        assert done.open == []
        assert {name for (name,) in rows_of(old.url, "SELECT ledger FROM kept_since")} == gone
        assert await broken(old.url) == []
        await old.compare()
        assert held(old.url, place) == old.all_of_it()
        proof = await asyncio.to_thread(prove, old.url, place)
        assert (proof.broken, proof.elsewhere) == ([], [])
    assert gone == {one.name for one in LEDGERS}


async def test_each_ledger_is_archived_up_to_the_month_set_by_the_retention_of_that_ledger(
    old: Aging,
) -> None:
    assert old.today == date(2026, 5, 24)
    done = await old.archive(retention=Retention(tokens=1, credits=2, usage=3, calls=0))
    assert months_of(done) == {
        TOKENS.name: ["2026-01", "2026-02", "2026-03"],
        CREDITS.name: ["2026-01", "2026-02"],
        SPENDS.name: ["2026-01"],
    }
    assert await broken(old.url) == []
    # What went by itself is read by itself.
    place, tenant = FileStore(str(old.root)), old.account.tenant_id
    read = rows(place, "token-ledger", RowFilter({"tenant_id": tenant}, limit=1_000))
    assert [row["seq"] for row in read] == list(range(1, len(read) + 1))
    assert rows(place, "calls", RowFilter()) == []
    assert months_of(await old.archive())[SPENDS.name] == ["2026-02", "2026-03"]
    assert await broken(old.url) == []


def months_of(done: ArchiveRun) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in done.files:
        found.setdefault(one.ledger, []).append(f"{one.month:%Y-%m}")
    return found


async def test_invariant_check_compares_daily_usage_sums_with_every_month_not_yet_archived(
    old: Aging,
) -> None:
    await old.archive(retention=Retention(tokens=1, credits=0, usage=0, calls=0))
    here = {
        "tokens": {"2026-04"},
        "requests": {"2026-04"},
        "credits": {"2026-01", "2026-02", "2026-03", "2026-04"},
    }
    with connected(old.url) as connection:
        for column, months in here.items():
            with connection.transaction(force_rollback=True):
                connection.execute(f"UPDATE usage_daily SET {column} = {column} + 1".encode())
                said = connection.execute("SELECT detail FROM invariant_rollup").fetchall()
            assert {str(detail).split()[1][:7] for (detail,) in said} == months, column
    assert await broken(old.url) == []


async def test_month_not_closed_in_a_ledger_does_not_stop_archiving_of_other_ledgers(old: Aging) -> None:
    [(seq,)] = rows_of(old.url, "SELECT allocated_seq FROM organization")
    rows_of(old.url, "UPDATE organization SET allocated_seq = 1 RETURNING 1")
    done = await asyncio.to_thread(archive, old.url, FileStore(str(old.root)), old.today, None)
    assert [(one.month, one.ledgers) for one in done.open] == [(date(2026, 1, 1), (CREDITS.name,))]
    assert "has credits that are not allocated" in done.open[0].reasons[0]
    assert set(months_of(done)) == {TOKENS.name, SPENDS.name, CALLS.name}
    rows_of(old.url, "UPDATE organization SET allocated_seq = %s RETURNING 1", [seq])
    assert await broken(old.url) == []
    assert set(months_of(await old.archive())) == {CREDITS.name}
    assert await broken(old.url) == []


def as_before(root: Path, months: set[date]) -> None:
    """Have manifests as programs wrote them that knew one of all ledgers."""
    for month in months:
        said = [archiving.name_of(month, one.name) for one in LEDGERS]
        documents = [json.loads((root / name).read_text()) for name in said if (root / name).exists()]
        files = [each for document in documents for each in document["files"]]
        (root / f"manifests/{month:%Y-%m}.json").write_text(json.dumps({**documents[0], "files": files}))
        for name in said:
            (root / name).unlink(missing_ok=True)


async def test_archive_with_manifests_of_an_older_version_is_read_and_proved_unchanged(old: Aging) -> None:
    done = await old.archive()
    place, tenant = FileStore(str(old.root)), {"tenant_id": old.account.tenant_id}
    read = rows(place, "token-ledger", RowFilter(tenant, limit=1_000))
    as_before(old.root, {one.month for one in done.files})
    before = {path: path.read_bytes() for path in old.root.rglob("*.*")}
    assert rows(place, "token-ledger", RowFilter(tenant, limit=1_000)) == read
    assert len(read) > 24
    assert held(old.url, place) == old.all_of_it()
    assert (await asyncio.to_thread(prove, old.url, place)).broken == []
    assert (await old.archive()).files == []
    assert {path: path.read_bytes() for path in old.root.rglob("*.*")} == before


class Stopping(FileStore):
    """A place that is gone once a month is written and read back."""

    def write_json(self, name: str, value: object) -> None:
        super().write_json(name, value)
        raise OSError("the machine is gone")


async def test_archiving_completes_a_month_left_half_archived_by_an_older_version(old: Aging) -> None:
    """Its manifest names all ledgers, none of which was taken out. What is torn is written again."""
    for alone in ("tokens", "credits", "usage", "calls"):
        with pytest.raises(PlaceFailed, match="the machine is gone"):
            await old.archive(Stopping(str(old.root)), retention=replace(NEVER, **{alone: 1}))
    january, place = date(2026, 1, 1), FileStore(str(old.root))
    as_before(old.root, {january})
    assert rows_of(old.url, "SELECT count(*) FROM archived_month") == [(0,)]
    whole = {one.name: old.root / archiving.file_of(one.name, january) for one in LEDGERS}
    whole[SPENDS.name].write_bytes(b"torn")
    written = {name: path.stat().st_mtime_ns for name, path in whole.items()}
    await old.archive()
    again = {name for name, path in whole.items() if path.stat().st_mtime_ns != written[name]}
    assert again == {SPENDS.name}
    assert not (old.root / "manifests/2026-01.json").exists()
    assert held(old.url, place) == old.all_of_it()
    assert (await asyncio.to_thread(prove, old.url, place)).broken == []
    assert await broken(old.url) == []


async def test_archive_command_archives_only_the_ledgers_enabled_in_settings(
    old: Aging, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for ledger in ("token_ledger", "credit_transactions", "calls"):
        monkeypatch.setenv(f"TOLLKEEPER_ARCHIVE_{ledger.upper()}_AFTER_MONTHS", "0")
    await old.settle()
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(run, ["archive", "--to", str(old.root), "--database-url", old.url, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {one["ledger"] for one in told["files"]} == {SPENDS.name}
    assert {one["month"] for one in told["files"]} >= {"2026-01", "2026-02", "2026-03"}
    assert (ended.value.code or 0) == (1 if told["open_months"] else 0)
    assert await broken(old.url) == []
