"""Charges as lists show them, and who has something that is known and not charged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, text

from persistence.billing import charges, early_uses
from persistence.subject import Subject, hold_flushes
from persistence.tables import charge as table

# Days that are over; in advance also today, whose cycle has begun.
_BEGUN = "cast(:today AS date) + CASE WHEN billing = 'advance' THEN 1 ELSE 0 END"
# Units that were used, credits beyond the balance, days that are over or were lost, and plans that ended.
# Tokens beyond plans, and credits that were sold, are charged when they are stored.
_DUE = text(f"""
SELECT id FROM (
    SELECT organization_id AS id FROM usage_tier
     WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    SELECT organization_id FROM usage_told WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    SELECT organization_id FROM credit_debt WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    SELECT e.organization_id FROM plan_end AS e
     WHERE e.quantity IS NULL AND e.organization_id > :after AND {early_uses.KNOWN}
    UNION
    SELECT organization_id FROM subscription_segment
     WHERE organization_id > :after AND start_date < least(end_date, {_BEGUN})
       AND (charged_until IS NULL OR charged_until < least(end_date, {_BEGUN})
            OR charged_until > end_date)) AS due
 ORDER BY id LIMIT :count""")  # noqa: S608  # our own words


def due(connection: Connection, today: date, after: int, count: int) -> Sequence[int]:
    """Organizations with something to charge, in the order of their ids."""
    found = connection.execute(_DUE, {"today": today, "after": after, "count": count})
    return list(found.scalars())


def charge(connection: Connection, organization_id: int, partition: int, today: date) -> None:
    """Charge what is known, while no flush of its partition runs."""
    charges.hold(connection, organization_id)
    hold_flushes(connection, partition)
    charges.accrue(connection, [organization_id], today, today=today)


def charge_free(
    connection: Connection, organization_ids: Sequence[int], partition: int, today: date
) -> list[int]:
    """The same of those of a partition that nobody else charges or invoices now; answers the others."""
    held = charges.hold_free(connection, organization_ids)
    if held:
        hold_flushes(connection, partition)
        charges.accrue(connection, held, today, today=today)
    return sorted(set(organization_ids) - set(held))


SUBJECT = Subject(
    table,
    time="period_start",
    conditions={
        "billed": lambda wanted: table.c.invoice_id.is_not(None) if wanted else table.c.invoice_id.is_(None)
    },
)
