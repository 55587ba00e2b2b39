"""An audit log of before it had months: each entry stays as it was, and none can be changed."""

from __future__ import annotations

import psycopg
import pytest

from persistence.schema import migrate
from tests.persistence.scenario import rows_of
from tests.persistence.schema.test_adopted_invoices import bring_to

BEFORE = "0076"
ENTRIES = """
INSERT INTO audit_log (actor, action, resource, before, organization_id, created_at)
SELECT 'someone', 'change', 'plans', jsonb_build_object('n', n), nullif(mod(n, 2), 0),
       '2024-12-31 23:30Z'::timestamptz + n * interval '13 days'
  FROM generate_series(0, 9) AS n RETURNING id"""
ONE = "INSERT INTO audit_log (actor, action, resource) VALUES ('a', 'b', 'c') RETURNING id"
CHANGES = (
    "DELETE FROM audit_log",
    "UPDATE audit_log SET actor = 'nobody'",
    "TRUNCATE audit_log_y2025m01",
)
ALL = "SELECT * FROM audit_log ORDER BY id"
WRONG = """
SELECT count(*) FROM audit_log
 WHERE tableoid::regclass::text <> 'audit_log_y' || to_char(created_at AT TIME ZONE 'UTC', 'YYYY"m"MM')"""


def test_entries_keep_their_ids_and_are_in_their_months(database: str) -> None:
    bring_to(database, BEFORE)
    last = max(int(str(row[0])) for row in rows_of(database, ENTRIES))
    before = rows_of(database, ALL)
    migrate.upgrade(database)
    assert rows_of(database, ALL) == before
    assert len(before) == 10
    assert rows_of(database, WRONG) == [(0,)]
    assert rows_of(database, ONE) == [(last + 1,)]
    for change in CHANGES:
        with (
            psycopg.connect(database) as connection,
            pytest.raises(psycopg.Error, match=r"append-only|refused"),
        ):
            connection.execute(change.encode())
