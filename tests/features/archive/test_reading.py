"""What an archive has of a ledger is what the ledger showed of it: by our command, and by other tools."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.__main__ import main
from gateway.admin.resources.registry import RESOURCES
from gateway.cli.main import run
from gateway.core.accounts.administration import Query
from gateway.counters.redis.keys import partition_of
from gateway.errors import ArchiveFailed, PlaceFailed
from gateway.features.archive.reading import LEDGERS, RowFilter, rows
from gateway.ops.storage import FileStore
from persistence.store import Store
from tests.features.archive.aging import Aging, Clones, clones, lived
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "template"]

Rows = list[dict[str, Any]]
# A call as gateways write it, besides those that the ledgers' uses left.
CALL = """
INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, model, input, cache_read,
                  cache_write, cache_write_1h, output, reasoning, audio_input, audio_output, image_input,
                  image_output, tokens, credits, units, cost, currency, status, streamed, estimated, refused,
                  duration_ms, reason, tools, unknown_usage, amended, rerated, tags, groups, model_asked,
                  substituted_by, saved)
SELECT gen_random_uuid(), '2026-01-25Z', 1, 1, 0, E'a "model",\\nas it is', 5, 1, 0, 0, 7, 2, 0, 0, 0, 0,
       13, 0, 0, 1234567890, 'USD', 200, true, false, false, 12, NULL, '{"web_search": 2}', 'a report', 0, 0,
       '{"feature": "search"}', '[5, 9]', 'dear', '{"id": 7, "name": "team"}', -1000000001
RETURNING id"""

# It is archived by itself: tests/features/archive/test_audit.py.
AUDIT = "audit-log"


@dataclass(frozen=True)
class ArchivedMonths:
    """An archive, and what each list showed of its months before they were archived."""

    root: Path
    tenant_id: int
    before: Mapping[str, Rows]

    def read(self, name: str, **asked: Any) -> Rows:
        """The rows of a list as the archive has them."""
        found = rows(FileStore(str(self.root)), name, RowFilter(**{"limit": 1_000, **asked}))
        return [dict(RESOURCES[name].render(row)) for row in found]


async def shown(past: Aging, name: str) -> Rows:
    """All rows of a list, as the Admin API shows them."""
    page = await Store(past.pool, partition_of).page(name, Query({}, None, None, None, 1_000))
    assert len(page.rows) < 1_000
    return [dict(RESOURCES[name].render(row)) for row in page.rows]


def at(row: dict[str, Any]) -> str:
    return str(row.get("created_at") or row.get("timestamp"))


@pytest.fixture(scope="module")
def kept(clones: Clones, tmp_path_factory: pytest.TempPathFactory) -> ArchivedMonths:
    """Tests read it, and leave it as it is."""
    root = tmp_path_factory.mktemp("archive")

    async def made(url: str) -> ArchivedMonths:
        past = await lived(url, root)
        rows_of(url, CALL)
        before = {name: await shown(past, name) for name in LEDGERS if name != AUDIT}
        last = max(one.month for one in (await past.archive()).files)
        await past.end()
        archived = {
            name: [row for row in found if at(row)[:7] <= f"{last:%Y-%m}"] for name, found in before.items()
        }
        return ArchivedMonths(root, past.account.tenant_id, archived)

    with clones() as url:
        return asyncio.run(made(url))


def test_archived_rows_equal_the_rows_listed_before_archiving(kept: ArchivedMonths) -> None:
    for name, before in kept.before.items():
        assert len(before) > 12, name
        found = kept.read(name)
        in_order = sorted(found, key=lambda row: (datetime.fromisoformat(at(row)), row["id"]))
        assert (in_order if name == "calls" else sorted(found, key=lambda row: row["seq"])) == before, name
    tenant = kept.tenant_id
    ledger = kept.before["token-ledger"]
    assert kept.read("token-ledger", filters={"tenant_id": tenant}) == ledger
    assert kept.read("token-ledger", filters={"tenant_id": tenant}, newest=True, limit=7) == ledger[:-8:-1]
    assert kept.read("token-ledger", filters={"tenant_id": tenant + 1}) == []
    assert kept.read("calls", newest=True) == kept.read("calls")[::-1]


def test_archived_rows_can_be_filtered_by_request_id_time_and_type(kept: ArchivedMonths) -> None:
    uses = kept.before["credit-transactions"]
    one = uses[len(uses) // 2]
    assert kept.read("credit-transactions", filters={"request_id": one["request_id"]}) == [one]
    ledger = kept.before["token-ledger"]
    since, until = ledger[3], ledger[20]
    within = {name: datetime.fromisoformat(at(row)) for name, row in (("since", since), ("until", until))}
    assert kept.read("token-ledger", **within) == ledger[3:20]
    assert kept.read("token-ledger", filters={"transaction_type": "recharge"}) == [
        row for row in ledger if row["transaction_type"] == "recharge"
    ]
    assert kept.read("token-ledger", since=datetime(2031, 1, 1, tzinfo=UTC)) == []
    with pytest.raises(ArchiveFailed, match="has no organization_id of token-ledger"):
        kept.read("token-ledger", filters={"organization_id": 1})


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    return int(ended.value.code or 0)


def test_ledger_list_command_reads_an_archive_without_keeper_or_database(
    kept: ArchivedMonths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No keeper is asked, and no database."""
    monkeypatch.delenv("TOLLKEEPER_ADMIN_URL", raising=False)
    monkeypatch.chdir(kept.root)
    ledger = kept.before["token-ledger"]
    chosen = ledger[5]
    where = ["--archive", str(kept.root), "--json"]
    assert command("ledger", "list", "--tenant", str(kept.tenant_id), "--limit", "9", *where) == 0
    assert json.loads(capsys.readouterr().out)["items"] == ledger[:9]
    assert command("ledger", "list", "--request", chosen["request_id"].upper(), *where) == 0
    assert json.loads(capsys.readouterr().out)["items"] == [chosen]
    assert command("ledger", "list", "--since", at(chosen), "--limit", "1", *where) == 0
    assert json.loads(capsys.readouterr().out)["items"] == [chosen]
    assert command("ledger", "list", *where[:2]) == 0
    assert "consume" in capsys.readouterr().out
    for wrong in (["--tenant", "acme"], ["--request", "17"], ["--since", "yesterday"]):
        assert command("ledger", "list", *wrong, *where) == 2
        assert wrong[0] in capsys.readouterr().err


def test_reading_an_archive_fails_if_a_file_was_replaced_or_removed(
    kept: ArchivedMonths, tmp_path: Path
) -> None:
    torn = replace(kept, root=tmp_path / "torn")
    shutil.copytree(kept.root, torn.root)
    files = sorted((torn.root / "token_ledger").rglob("*.parquet"), key=lambda one: one.stat().st_size)
    files[-1].write_bytes(files[0].read_bytes())
    with pytest.raises(ArchiveFailed, match="is not what was archived"):
        torn.read("token-ledger")
    files[-1].unlink()
    with pytest.raises(PlaceFailed, match=files[-1].name):
        torn.read("token-ledger")


@pytest.fixture
def other(kept: ArchivedMonths, tmp_path: Path) -> ArchivedMonths:
    """A copy of the archive, to change."""
    return replace(kept, root=Path(shutil.copytree(kept.root, tmp_path / "other")))


def test_reading_an_archive_fails_if_an_amount_in_a_file_was_changed(other: ArchivedMonths) -> None:
    """As many rows as its manifest says, of which one has another amount."""
    file = max((other.root / "token_ledger").rglob("*.parquet"))
    table = pq.read_table(file, partitioning=None)
    amounts = [amount + 1_000 * (row == 0) for row, amount in enumerate(table["amount"].to_pylist())]
    column = table.schema.get_field_index("amount")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(amounts, pa.int64())), file)
    with pytest.raises(ArchiveFailed, match=f"{file} is not what was archived"):
        other.read("token-ledger", filters={"tenant_id": other.tenant_id})
    assert other.read("token-ledger", limit=1) == other.before["token-ledger"][:1], "the first month is sound"


def test_ledger_list_command_warns_of_an_archived_month_left_out_for_a_missing_manifest(
    other: ArchivedMonths, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = other.before["token-ledger"]
    first, gone, *_, last = sorted((other.root / "manifests" / "token_ledger").iterdir())
    where = ["ledger", "list", "--limit", "1000", "--archive", str(other.root), "--json"]
    assert command(*where) == 0
    assert "left out" not in capsys.readouterr().err
    gone.unlink()
    assert command(*where) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["items"] == [row for row in ledger if at(row)[:7] != gone.stem]
    assert f"{gone.stem} is left out, for {gone} is not there" in " ".join(told.err.split())
    assert command(*where, "--until", f"{first.stem}-05T00:00:00Z") == 0
    assert "left out" not in capsys.readouterr().err, "nobody asked for that month"
    # Without its file too, it is still between others; the last one is known by its file alone.
    shutil.rmtree(other.root / "token_ledger" / f"month={gone.stem}")
    assert command(*where) == 0
    assert f"{gone} is not there: see" in " ".join(capsys.readouterr().err.split())
    last.unlink()
    assert command(*where) == 0
    assert f"{last.stem} is left out, for {last} is not there" in " ".join(capsys.readouterr().err.split())


def test_directory_without_an_archive_is_refused_instead_of_read_as_empty(
    other: ArchivedMonths, tmp_path: Path
) -> None:
    """A name that is misspelt, or a volume that is not there."""
    for root in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArchiveFailed, match=f"{root} is no archive"):
            replace(other, root=root).read("token-ledger")
    assert not (tmp_path / "nothing").exists()
    assert other.read("audit-log") == [], "of other ledgers there are months"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "file",
            "../outside/o.parquet",
            "names the file '../outside/o.parquet': that month's is token_ledger/",
        ),
        ("file", "feature_usage/month=2026-01/feature_usage.parquet", "that month's is token_ledger/"),
        ("ledger", "../token_ledger", "is of '../token_ledger', which is no ledger"),
    ],
)
def test_archive_manifest_pointing_to_another_file_or_ledger_is_refused(
    other: ArchivedMonths, name: str, value: str, said: str
) -> None:
    manifest = min((other.root / "manifests" / "token_ledger").iterdir())
    found = json.loads(manifest.read_text())
    found["files"][0][name] = value
    manifest.write_text(json.dumps(found))
    with pytest.raises(ArchiveFailed, match=re.escape(said)) as refused:
        other.read("token-ledger")
    assert str(manifest) in str(refused.value)


def rewritten(kept: ArchivedMonths, change: Callable[[Any], Any], ledger: str = "token_ledger") -> Path:
    """The first month of a ledger as another table; its manifest goes with it."""
    file = min((kept.root / ledger).rglob("*.parquet"))
    pq.write_table(change(pq.read_table(file, partitioning=None)), file)
    manifest = min((kept.root / "manifests" / ledger).iterdir())
    found, content = json.loads(manifest.read_text()), file.read_bytes()
    found["files"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(found))
    return file


def changed(column: str, made: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A table in which one column is another."""
    return lambda table: table.set_column(table.column_names.index(column), column, made(table[column]))


def with_first(value: Any) -> Callable[[Any], Any]:
    return lambda cells: pa.array([value, *cells.to_pylist()[1:]], cells.type)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["seq"]), "it has no column seq"),
        (lambda table: table.append_column("seq", table["seq"]), "it has 2 columns seq"),
        (changed("amount", lambda cells: cells.cast(pa.string())), "it has string in amount, which is int64"),
        (changed("created_at", lambda cells: cells.cast(pa.int64())), "it has int64 in created_at, which is"),
        (changed("seq", with_first(None)), "a row of it has no seq"),
        (changed("created_at", with_first(None)), "a row of it has no created_at"),
        (changed("metadata", with_first("[")), "Expecting value"),
        (changed("request_id", with_first("one")), "request_id Input should be a valid UUID"),
        (lambda table: table.slice(1), "rows, by its manifest"),
        (lambda table: table.rename_columns([str(number) for number in range(table.num_columns)]), "has no"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_tenant", [True, False])
def test_archive_file_with_foreign_content_but_matching_digest_is_refused_naming_the_file(
    other: ArchivedMonths,
    change: Callable[[Any], Any],
    said: str,
    by_tenant: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their digests agree, so that only what is in the file says that it is no ledger."""
    file = rewritten(other, change)
    whose = ["--tenant", str(other.tenant_id)] if by_tenant else []
    assert main(["ledger", "list", *whose, "--archive", str(other.root), "--json"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"{file} is not of token_ledger: " in told
    assert said in told


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("null", "says nothing"),
        ("[]", "is not a manifest"),
        ('{"format": 1, "database": 5, "files": []}', "is not a manifest"),
        ('{"files": []}', "names no file"),
        ('{"files": [{"rows": Infinity}]}', "is not a manifest"),
        ('{"files": [{"columns": [1]}]}', "is not a manifest"),
        (
            '{"files": [{"ledger": "call", "file": "call/month=2026-01/call.parquet"}]}',
            "is not of token_ledger",
        ),
    ],
)
def test_malformed_archive_manifest_is_refused_naming_the_manifest(
    other: ArchivedMonths, document: str, said: str
) -> None:
    """It is not left out as one that is not there."""
    manifest = min((other.root / "manifests" / "token_ledger").iterdir())
    was, put = json.loads(manifest.read_text()), json.loads(document)
    if isinstance(put, dict):
        files = [was["files"][0] | each for each in put.get("files", ())]
        put = was | put | {"files": files}
    manifest.write_text(json.dumps(put))
    with pytest.raises((ArchiveFailed, PlaceFailed), match=said) as refused:
        other.read("token-ledger")
    assert str(manifest) in str(refused.value)


def test_column_missing_from_an_archive_file_of_an_older_version_reads_as_null(other: ArchivedMonths) -> None:
    rewritten(other, lambda table: table.drop_columns(["feature_version"]))
    assert other.read("token-ledger") == other.before["token-ledger"]


def test_tags_and_groups_missing_from_an_archive_file_of_an_older_version_are_none(
    other: ArchivedMonths,
) -> None:
    tagged = [call["id"] for call in other.before["calls"] if call["tags"] == {"feature": "search"}]
    assert [call["id"] for call in other.read("calls") if call["tags"]] == tagged
    assert len(tagged) == 1
    rewritten(other, lambda table: table.drop_columns(["tags", "groups"]), "call")
    assert other.read("calls") == [
        call | ({"tags": {}, "groups": []} if call["id"] in tagged else {}) for call in other.before["calls"]
    ]


def test_duckdb_reads_the_archive_files_directly(kept: ArchivedMonths) -> None:
    """By DuckDB: months are a column, moments are moments, numbers are numbers."""
    database = duckdb.connect()

    def asked(statement: str) -> list[tuple[Any, ...]]:
        return database.execute(statement).fetchall()

    def files(ledger: str) -> str:
        return f"read_parquet('{Path(kept.root, ledger)}/*/*.parquet', hive_partitioning = true)"

    ledger = kept.before["token-ledger"]
    used = sum(row["amount"] for row in ledger if row["direction"] == "OUT")
    counted = f"SELECT count(*), sum(amount) FILTER (direction = 'OUT') FROM {files('token_ledger')}"
    assert asked(counted) == [(len(ledger), used)]
    by_month: dict[str, int] = {}
    for row in kept.before["feature-usage"]:
        by_month[at(row)[:7]] = by_month.get(at(row)[:7], 0) + row["usage_amount"]
    summed = (
        f"SELECT month::text, sum(usage_amount)::bigint FROM {files('feature_usage')} GROUP BY 1 ORDER BY 1"
    )
    assert asked(summed) == sorted(by_month.items())
    kinds = dict(
        asked(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {files('token_ledger')})")
    )
    told = {name: kinds[name] for name in ("created_at", "amount", "seq", "request_id", "metadata")}
    assert told == {
        "created_at": "TIMESTAMP WITH TIME ZONE", "amount": "BIGINT", "seq": "BIGINT",
        "request_id": "VARCHAR", "metadata": "VARCHAR",
    }  # fmt: skip
    [(first,)] = asked(f"SELECT min(epoch_us(created_at)) FROM {files('token_ledger')}")
    assert datetime.fromtimestamp(first / 1e6, UTC) == datetime.fromisoformat(at(ledger[0]))
    chained = f"""
SELECT count(*) FROM (
       SELECT seq, total_remaining, lag(total_remaining) OVER w AS before, lag(seq) OVER w AS previous,
       CASE direction WHEN 'IN' THEN amount ELSE -amount END AS delta FROM {files("token_ledger")}
       WINDOW w AS (PARTITION BY tenant_id ORDER BY seq))
 WHERE previous = seq - 1 AND total_remaining <> before + delta"""
    assert asked(chained) == [(0,)]
    [(model, read_, cost)] = asked(f"SELECT model, cache_read, cost FROM {files('call')} WHERE cost > 0")
    assert (model, read_, cost) == ('a "model",\nas it is', 1, 1_234_567_890)
