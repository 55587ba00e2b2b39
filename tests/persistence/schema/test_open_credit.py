"""What notes gave back of invoices before credit was applied: as much as was left then, at each moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
from sqlalchemy import create_engine, text

from persistence.billing.journal import rest_before
from persistence.engine import dialect_url
from persistence.schema import migrate
from tests.persistence.schema.test_adopted_invoices import bring_to

BEFORE = "0094"
FIRST = datetime(2026, 5, 1, tzinfo=UTC)
INVOICES, EVENTS, EACH = 60, 12, 100
_DOCUMENT = """
INSERT INTO invoice (id, organization_id, kind, status, number, currency, period_start, period_end,
                     total_amount, finalized_at, corrects_id, payment_status)
VALUES (%s, 1, %s, 'finalized', %s, 'USD', '2026-04-01', '2026-05-01', %s, %s, %s, %s)"""
_PAYMENT = """
INSERT INTO payment (organization_id, invoice_id, amount, currency, reference, created_at, corrects_id)
VALUES (1, %s, %s, 'USD', %s, %s, %s)"""


def lived(connection: psycopg.Connection[Any], made: int, random: Random) -> list[int]:
    """An invoice of 100, and what happened to it, a day after the other; what was left behind each."""
    connection.execute(_DOCUMENT, (made, "invoice", f"{made}", EACH, FIRST, None, "open"))
    paid, notes, left = 0, dict[int, int](), [EACH]
    for number in range(1, EVENTS + 1):
        at, size, given = FIRST + timedelta(days=number), random.randint(1, EACH), sum(notes.values())
        what = random.choice(["pay", "pay", "back", "note", "void"])
        if what == "pay" and (part := min(size, EACH - given - paid)) > 0:
            paid += part
            connection.execute(_PAYMENT, (made, part, f"{number}", at, None))
        elif what == "back" and paid:
            paid -= (part := min(size, paid))
            connection.execute(_PAYMENT, (made, -part, f"{number}", at, -1))
        elif what == "note" and (part := min(size, EACH - given)) > 0:
            notes[made + number] = part
            connection.execute(
                _DOCUMENT, (made + number, "credit_note", f"{made + number}", -part, at, made, None)
            )
        elif what == "void" and notes:
            void = random.choice(sorted(notes))
            del notes[void]
            connection.execute("UPDATE invoice SET status = 'void', voided_at = %s WHERE id = %s", (at, void))
        left.append(EACH - sum(notes.values()) - paid)
    status = "paid" if left[-1] <= 0 else "open"
    connection.execute("UPDATE invoice SET payment_status = %s WHERE id = %s", (status, made))
    return left


def test_what_was_left_at_each_moment_stays_what_it_was(database: str) -> None:
    bring_to(database, BEFORE)
    random = Random(7)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("INSERT INTO organization (id, name, currency) VALUES (1, 'Acme', 'USD')")
        left = {made: lived(connection, made, random) for made in range(100, 100 * (INVOICES + 1), 100)}
    assert min(min(some) for some in left.values()) < 0, "some were to be paid back"
    migrate.upgrade(database)
    pool = create_engine(dialect_url(database))
    rest = rest_before("cast(:at AS timestamptz)")
    read = text(
        f"SELECT coalesce(sum(rest) FILTER (WHERE kind = 'invoice'), 0), coalesce(sum(rest) FILTER"
        f" (WHERE kind <> 'invoice'), 0) FROM (SELECT kind, {rest} AS rest FROM invoice AS i"
        " WHERE coalesce(i.corrects_id, i.id) = :made AND i.finalized_at < :at"
        " AND coalesce(i.voided_at, 'infinity') >= :at) AS d"
    )
    with pool.connect() as connection:
        for made, rests in left.items():
            for number, expected in enumerate(rests):
                here = {"at": FIRST + timedelta(days=number, seconds=1), "made": made}
                found = tuple(connection.execute(read, here).one())
                assert found == (max(0, expected), min(0, expected)), (made, number)
        assert connection.execute(text("SELECT * FROM invariant_payments")).all() == []
    pool.dispose()
