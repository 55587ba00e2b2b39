"""The bench of usage fills what the schema has, and every call it made is in what it measures."""

from __future__ import annotations

import psycopg

from gateway.core.accounts.usage import SPANS
from persistence.schema import migrate
from tests.bench import usage


async def test_a_small_run(database: str) -> None:
    migrate.upgrade(database)
    usage.fill(database, calls=3_000)
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT span, sum(requests) FROM usage_rollup GROUP BY span").fetchall()
    assert dict(rows) == dict.fromkeys(SPANS, 3_000)
    asked = usage.reports()
    assert len(set(asked)) == 4 * 2**7
    found = await usage.measure(database, 1, asked[::40])
    assert [report.name for report in found] == asked[::40]
    assert all(report.size > 100 for report in found)
