"""How many rows a month has, as the database estimates it: once, whatever it is divided into."""

from __future__ import annotations

from datetime import date

import pytest

from persistence.archive import months
from persistence.archive.months import BY_NAME
from tests.connections import connected
from tests.features.archive.aging import Clones, clones, months_made
from tests.persistence.migrated import template

__all__ = ["clones", "template"]


@pytest.mark.parametrize("by", ["month", "day"])
def test_estimated_row_count_of_a_partitioned_month_counts_each_row_once(clones: Clones, by: str) -> None:
    with clones() as url, connected(url, autocommit=True) as connection:
        months_made(url, "2026-02-01Z", 2, by=by)
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, seq,"
            " created_at, epoch, cycle)"
            " SELECT 1, 'consume', 1, 1, 'OUT', n, '2026-02-01Z'::timestamptz + n * interval '1 hour', 1, 1"
            " FROM generate_series(1, 600) AS n"
        )
        connection.execute("ANALYZE token_ledger")
        assert months.about(connection, BY_NAME["token_ledger"], date(2026, 2, 1)) == 600
