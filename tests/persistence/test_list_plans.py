"""Lists by user and by project read what they show, whatever others have; and how an invoice is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import _queries
from sqlalchemy import Text, cast, create_engine, event, func
from sqlalchemy.dialects import postgresql

from gateway.core.accounts.administration import Query
from persistence import engine, entity
from persistence.entity import Entity
from persistence.registry import SUBJECTS
from persistence.resources import people
from persistence.tables import tenant
from tests.connections import connected
from tests.databases import own_database
from tests.in_turn import in_turn
from tests.persistence.migrated import template_of

ROWS, NAMES, SHOWN = 12_000, 400, 50
# Each month's index is asked, down to its first row; then a row each. A whole table is some 500.
BUFFERS_MAX = 120
OF_USE = 'user_id, project_id, "timestamp", epoch, seq'
USED = "n % {names}, n % {names}, timestamptz '2026-04-01Z' + n * interval '5 minutes', 1, n"
# Of each list its table, and so many rows in two months, of so many users and projects in turn.
FILLS = {
    "calls": (
        "INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, user_id,"
        " project_id, input, cache_read, cache_write, cache_write_1h, output, reasoning, audio_input,"
        " audio_output, image_input, image_output, tokens, credits, units, status, streamed, estimated,"
        " duration_ms)"
        " SELECT gen_random_uuid(), timestamptz '2026-04-01Z' + n * interval '5 minutes', n % {names} % 40,"
        " n % {names}, n % {names}, n % {names}, n % {names},"
        " 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 200, false, false, 5"
    ),
    "token-ledger": (
        "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, cycle,"
        " user_id, project_id, created_at, epoch, seq)"
        " SELECT n % 7, 'consume', 1, 1, 'OUT', 1, " + USED
    ),
    "credit-transactions": (
        "INSERT INTO credit_transaction (organization_id, tenant_id, feature_id, credits_used,"
        ' user_id, project_id, "timestamp", epoch, seq) SELECT n % 7, 1, 1, 1, ' + USED
    ),
    "feature-usage": (
        "INSERT INTO feature_usage (organization_id, tenant_id, feature_id, usage_amount,"
        ' user_id, project_id, "timestamp", epoch, seq) SELECT n % 7, 1, 1, 1, ' + USED
    ),
}
DIGEST = "encode(sha256(n::text::bytea), 'hex')"
OWNERS = (
    "INSERT INTO tenant (id, organization_id, name) SELECT n, n % 40, n",
    f"INSERT INTO api_key (id, tenant_id, name, digest, prefix) SELECT n, n, n, {DIGEST}, 'tk_abcde'",
)


@pytest.fixture(scope="module")
def filled(postgres: str) -> Iterator[str]:
    """Every list with rows of many, in a database of its own."""
    with own_database(postgres, "list_plans", template_of(postgres)) as url:
        with connected(url, autocommit=True) as connection:
            connection.execute("SELECT ensure_partitions(timestamptz '2026-04-15Z', 2)")
            for statement in FILLS.values():
                rows = f"{statement} FROM generate_series(1, {ROWS}) AS n"
                connection.execute(rows.format(names=NAMES))  # type: ignore[arg-type]  # SQL of our own
            connection.execute("SET session_replication_role = replica")  # whose calls they are, and no more
            for owners in OWNERS:
                connection.execute(f"{owners} FROM generate_series(1, {NAMES}) AS n")  # type: ignore[arg-type]  # SQL of our own
            connection.execute("ANALYZE")
        yield url


@in_turn("name", ["user_id", "project_id"])
@in_turn("resource", FILLS)
async def test_a_list_reads_the_rows_it_shows(filled: str, resource: str, name: str) -> None:
    query = Query({name: 7}, None, None, None, SHOWN, descending=True)
    plan, rows = await planned(filled, resource, query)
    assert rows == ROWS // NAMES
    # Months without rows are looked at whole: that is no block.
    assert [node for node in nodes(plan) if node["Node Type"] == "Seq Scan" and buffers(node)] == []
    assert buffers(plan) < BUFFERS_MAX


@in_turn("name", ["organization_id", "tenant_id", "api_key_id"])
async def test_calls_of_an_owner_are_read_by_their_index(filled: str, name: str) -> None:
    plan, rows = await planned(filled, "calls", Query({name: 7}, None, None, None, SHOWN, descending=True))
    assert rows == min(SHOWN, ROWS // (40 if name == "organization_id" else NAMES))
    assert buffers(plan) < (3 if name == "organization_id" else 1) * BUFFERS_MAX


async def test_a_list_of_all_calls_reads_the_rows_it_shows(filled: str) -> None:
    plan, rows = await planned(filled, "calls", Query({}, None, None, None, SHOWN, descending=True))
    assert rows == SHOWN
    assert buffers(plan) < BUFFERS_MAX


@pytest.mark.parametrize("descending", [False, True])
async def test_calls_are_listed_by_moment_whatever_their_ids(migrated: str, descending: bool) -> None:
    """Two sessions of keepers have blocks of a thousand ids each, and write in turns."""
    fill = FILLS["calls"].format(names=NAMES)
    with connected(migrated, autocommit=True) as connection:
        for moment in range(1, 8):
            rows = f"{fill} FROM generate_series({moment}, {moment}) AS n RETURNING id"
            [(here,)] = connection.execute(rows).fetchall()  # type: ignore[arg-type]  # SQL of our own
            connection.execute("UPDATE call SET id = %s WHERE id = %s", (here + moment % 2 * 1_000, here))
        moments = [row for (row,) in connection.execute("SELECT created_at FROM call ORDER BY 1").fetchall()]
    pool, found, after = engine.create(migrated), [], None
    async with pool.connect() as connection:
        while len(found) < len(moments):
            query = Query({}, None, None, after, 3, descending)
            page = await connection.run_sync(entity.page_of_rows, SUBJECTS["calls"], query)
            found += [row["created_at"] for row in page.rows]
            after = page.next_after
            assert (after is None) == (len(found) == len(moments))
    await pool.dispose()
    assert found == sorted(moments, reverse=descending)


async def planned(url: str, resource: str, query: Query) -> tuple[dict[str, Any], int]:
    """The plan of a page as the list itself asks for it, as it was run, and how many rows it has."""
    pool, asked = engine.create(url), []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        asked.append((statement, parameters))

    try:
        async with pool.connect() as connection:
            event.listen(connection.sync_connection, "before_cursor_execute", note)
            page = await connection.run_sync(
                lambda plain: entity.page_of_rows(plain, SUBJECTS[resource], query)
            )
            event.remove(connection.sync_connection, "before_cursor_execute", note)
            statement, parameters = asked[-1]
            explained = f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {statement}"
            found = (await connection.exec_driver_sql(explained, parameters)).scalar_one()
    finally:
        await pool.dispose()
    [plan] = found if isinstance(found, list) else json.loads(found)
    return plan["Plan"], len(page.rows)


def buffers(node: dict[str, Any]) -> int:
    """How many blocks a node and all below it looked at."""
    return int(node["Shared Hit Blocks"]) + int(node["Shared Read Blocks"])


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's node and all below it."""
    return [plan, *(node for below in plan.get("Plans", ()) for node in nodes(below))]


async def test_the_driver_remembers_how_an_invoice_is_read() -> None:
    """A statement that is longer, or has more parameters, is taken apart at each read, for milliseconds."""
    one = SUBJECTS["invoices"].rows.where(SUBJECTS["invoices"].table.c.id == 1)
    compiled = one.compile(dialect=postgresql.psycopg.dialect())  # type: ignore[no-untyped-call]  # untyped there
    assert len(str(compiled)) <= _queries.MAX_CACHED_STATEMENT_LENGTH
    assert len(compiled.params) <= _queries.MAX_CACHED_STATEMENT_PARAMS


# --- listing ----------------------------------------------------------------------------
# Rows are counted as far as they are shown, and no list waits for its count.


ALL = Query({}, None, None, None, 1)
SLOW = Entity(tenant, conditions={"slow": lambda seconds: cast(func.pg_sleep(seconds), Text) == ""})


@pytest.fixture
def named(cloned: str) -> str:
    with connected(cloned, autocommit=True) as connection:
        connection.execute("insert into organization (name) values ('o')")
        connection.execute(
            "insert into tenant (organization_id, name, deleted_at) select max(organization.id), 't' || n,"
            " case when n = 7 then now() end from organization, generate_series(1, 7) as n group by n"
        )
    return cloned.replace("postgresql://", "postgresql+psycopg://")


def test_what_is_counted_is_what_is_listed(named: str) -> None:
    with create_engine(named).begin() as connection:
        assert entity.count_rows(connection, people.TENANT_SUBJECT, ALL, 6, 10_000) == 6
        assert entity.count_rows(connection, people.TENANT_SUBJECT, ALL, 4, 10_000) == 5
        narrowed = Query({"search": "t3"}, None, None, None, 1)
        assert entity.count_rows(connection, people.TENANT_SUBJECT, narrowed, 5, 10_000) == 1


def test_a_count_that_takes_too_long_is_given_up_and_its_transaction_goes_on(named: str) -> None:
    with create_engine(named).begin() as connection:
        slow = Query({"slow": 3600}, None, None, None, 1)
        assert entity.count_rows(connection, SLOW, slow, 5, 10) is None
        assert len(entity.page_of_rows(connection, people.TENANT_SUBJECT, ALL).rows) == 1


# --- search -----------------------------------------------------------------------------
# Names are found by the beginnings of their words, whatever stands between the words.


@in_turn(
    ("name", "wanted", "found"),
    [
        ("Acme Corporation Europe", "corp", True),
        ("Acme Corporation Europe", "eur acme", True),
        ("Acme Corporation Europe", "ration", False),
        ("acme-eu.example", "eu", True),
        ("acme-eu.example", "acme-eu.ex", True),
        ("customer_000123", "000123", True),
        ("Łódź Wörkshop", "wör", True),
        ("東京 電力", "電", True),
        ("O'Brien & Sons", "o'brien", True),
        ("anything", "' | !x:*", False),
        ("anything", "...", None),
        ("anything", "any\\", True),
    ],
)
def test_search_takes_words_apart_on_both_sides(
    cloned: str, name: str, wanted: str, found: bool | None
) -> None:
    with connected(cloned) as connection:
        said = connection.execute("select name_words(%s) @@ name_query(%s)", (name, wanted)).fetchone()
    assert said == (found,)
