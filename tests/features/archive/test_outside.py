"""Rows of months that nobody made a partition of: they get one, and go to the archive as all others."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime

import pytest

from gateway.errors import ArchiveFailed
from gateway.features.archive.archiving import ArchiveRun, archive
from gateway.features.archive.outside import months_findings
from gateway.features.archive.reading import prove
from gateway.features.archive.retention import Retention
from gateway.ops.doctor import examine
from gateway.ops.storage import FileStore
from gateway.settings.settings import Settings
from persistence import engine as engines
from persistence.archive import months as archive_rows
from persistence.archive.months import BY_NAME, behind, connect_as_owner
from tests import connections
from tests.features.archive.aging import Aging, clones, held, old
from tests.persistence.migrated import template
from tests.persistence.scenario import broken, rows_of

__all__ = ["clones", "old", "template"]

FEBRUARY = date(2026, 2, 1)
OUTSIDE = " UNION ALL ".join(f"SELECT FROM {name}_default" for name in BY_NAME)


def without_february(url: str) -> dict[str, int]:
    """Have its rows where they had been, had nobody made that month; how many each ledger has of it."""
    found = {}
    with connections.connected(url) as connection:
        for ledger in BY_NAME.values():
            month = ledger.partition(FEBRUARY)
            connection.execute(f"ALTER TABLE {ledger.name} DETACH PARTITION {month}".encode())
            columns = ", ".join(f'"{column.name}"' for column in ledger.table.columns)
            moved = f"INSERT INTO {ledger.name} ({columns}) SELECT {columns} FROM {month}"
            found[ledger.name] = connection.execute(moved.encode()).rowcount
            connection.execute(f"DROP TABLE {month}".encode())
    return {name: rows for name, rows in found.items() if rows}


@pytest.fixture
def gone(old: Aging) -> dict[str, int]:
    return without_february(old.url)


def archived(old: Aging) -> ArchiveRun:
    return archive(old.url, FileStore(str(old.root)), old.today, None, drop_after=0)


async def test_rows_in_the_default_partition_move_to_a_month_partition_and_are_archived(
    old: Aging, gone: dict[str, int]
) -> None:
    assert {"token_ledger", "credit_transaction", "feature_usage"} <= gone.keys()
    assert rows_of(old.url, f"SELECT count(*) FROM ({OUTSIDE}) AS o") == [(sum(gone.values()),)]
    assert await broken(old.url) == []
    await old.settle()
    done = await asyncio.to_thread(archived, old)
    assert {one.ledger: one.rows for one in done.moved} == gone
    assert {one.month for one in done.moved} == {FEBRUARY}
    assert (done.open, rows_of(old.url, f"SELECT count(*) FROM ({OUTSIDE}) AS o")) == ([], [(0,)])
    months = {f"{one.month:%Y-%m}" for one in done.files if one.ledger == "token_ledger"}
    assert months == {"2026-01", "2026-02", "2026-03"}
    assert held(old.url, FileStore(str(old.root))) == old.all_of_it()
    assert await broken(old.url) == []
    await old.compare()
    assert (await asyncio.to_thread(prove, old.url, FileStore(str(old.root)))).broken == []
    again = await asyncio.to_thread(archived, old)
    assert (again.moved, again.files) == ([], [])


async def test_interrupted_move_of_rows_from_the_default_partition_is_rolled_back(
    old: Aging, gone: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger's rows are where they were until its one transaction is done."""
    before = held(old.url, FileStore(str(old.root)))

    def ended(*_: object) -> None:
        raise ArchiveFailed("the machine is gone")

    monkeypatch.setattr(archive_rows, "put_in", ended)
    with pytest.raises(ArchiveFailed, match="the machine is gone"):
        await asyncio.to_thread(archived, old)
    assert rows_of(old.url, f"SELECT count(*) FROM ({OUTSIDE}) AS o") == [(sum(gone.values()),)]
    assert held(old.url, FileStore(str(old.root))) == before
    assert await broken(old.url) == []


async def test_default_partition_is_emptied_only_for_ledgers_within_the_row_limit(
    old: Aging, gone: dict[str, int]
) -> None:
    with connect_as_owner(old.url) as connection:
        moved = archive_rows.bring_in_rows(connection, min(gone.values()))
    few = {name: rows for name, rows in gone.items() if rows == min(gone.values())}
    assert {one.ledger: one.rows for one in moved} == few


async def test_rows_in_the_default_partition_raise_the_archive_behind_seconds_metric(
    old: Aging, gone: dict[str, int], template: str
) -> None:
    """By a keeper, who owns nothing."""
    name = template.rpartition("/")[2]
    with connections.connected(old.url) as connection:
        connection.execute(f"CREATE ROLE {name}_keeper LOGIN IN ROLE {name}_writer".encode())
    engine = engines.create(old.url.replace("postgres@", f"{name}_keeper@"))
    for month in ("2026-01", "2026-03"):
        for ledger in gone:
            noted = (ledger, f"{month}-01", "/a", "b", 0, 0, 0, "c")
            rows_of(old.url, archive_rows._NOTE + " RETURNING 1", noted)
    rows_of(old.url, "INSERT INTO archive_identity DEFAULT VALUES RETURNING 1")
    found = await behind(engine, Retention().due, datetime(2026, 5, 1, 12, tzinfo=UTC))
    # February was due on 1 April; April will be on 1 June.
    assert dict(found["archive_behind_seconds"]) == dict.fromkeys(sorted(gone), 30.5 * 86_400)  # type: ignore[call-overload]  # ledgers and seconds
    await engine.dispose()


async def test_doctor_command_lists_the_months_of_rows_in_the_default_partition(
    old: Aging, gone: dict[str, int]
) -> None:
    settings = Settings(database_url=old.url, data_dir=str(old.root))
    told = [one async for one in examine(settings, "keeper") if "months without" in one.says]
    found = {one.says.partition(" ")[0]: one.says for one in told if one.well is False}
    assert found.keys() == {f"{ledger}_default" for ledger in gone}
    assert f"{gone['token_ledger']} of 2026-02: " in found["token_ledger_default"]
    assert "run tollkeeper archive" in found["token_ledger_default"]
    assert [rows for *_, rows in archive_rows.months_outside(old.url, rows_max=1)] == [1] * len(gone)
    await old.settle()
    await asyncio.to_thread(archived, old)
    assert months_findings(old.url) == []


async def test_late_call_of_an_archived_month_stays_in_the_default_partition(old: Aging) -> None:
    await old.archive()
    late = "jsonb_populate_record(NULL::call, to_jsonb(c) || jsonb_build_object('created_at', '2026-01-20Z'))"
    one = "(SELECT * FROM call LIMIT 1) AS c"
    rows_of(old.url, f"INSERT INTO call SELECT ({late}).* FROM {one} RETURNING 1")
    assert rows_of(old.url, "SELECT count(*) FROM call_default") == [(1,)]
    done = await asyncio.to_thread(archived, old)
    assert (done.moved, rows_of(old.url, "SELECT count(*) FROM call_default")) == ([], [(1,)])
    assert months_findings(old.url) == []
